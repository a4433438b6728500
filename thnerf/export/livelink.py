"""Live Link Face CSV, as the iOS app records it and Unreal, MetaHuman and Blender importers read it.

63 columns: Timecode, BlendShapeCount, then 61 values: the 52 ARKit weights in the app's own order (JawRight
before JawLeft, MouthRight before MouthLeft: ARKit's and the UDP protocol's order is the other way round) and
nine angles in radians. Column order, ten decimals and timecode were compared with recordings of the app.

Signs. An eye's yaw is negative towards the subject's left and its pitch negative up (in recordings pitch rises with
EyeLookDown, and yaw rises as EyeLookInLeft grows and EyeLookInRight shrinks). The head goes through the same axes
in Epic's face tracking (x into the face, z up, yaw clockwise seen from above), so: HeadYaw negative towards
the subject's left, HeadPitch negative up, HeadRoll positive towards the subject's left shoulder, yaw applied
last, as in `render.rotations.head_angles`. Eye roll is not tracked and is 0.

EyeLook* columns carry the expression as it is (in the default model it moves the lids only); the eye
columns carry `Track.gaze`. Frames that were not valid carry the track's interpolated values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np

from recon.track import Track
from render.files import InputError, atomic_path
from render.rotations import from_head_angles, head_angles
from thnerf.export.names import plain, swap_side
from thnerf.export.options import ExportOptions, Imported, frame_of, timecode
from thnerf.export.scene import Scene
from thnerf.export.table import read_table
from thnerf.export.text import rows

_EYE = ("EyeBlink", "EyeLookDown", "EyeLookIn", "EyeLookOut", "EyeLookUp", "EyeSquint", "EyeWide")
_BOTH = lambda *stems: tuple(stem + side for stem in stems for side in ("Left", "Right"))  # noqa: E731

BLEND_SHAPES: tuple[str, ...] = (
    *(stem + "Left" for stem in _EYE), *(stem + "Right" for stem in _EYE),
    "JawForward", "JawRight", "JawLeft", "JawOpen", "MouthClose", "MouthFunnel", "MouthPucker", "MouthRight", "MouthLeft",
    *_BOTH("MouthSmile", "MouthFrown", "MouthDimple", "MouthStretch"),
    "MouthRollLower", "MouthRollUpper", "MouthShrugLower", "MouthShrugUpper",
    *_BOTH("MouthPress", "MouthLowerDown", "MouthUpperUp", "BrowDown"), "BrowInnerUp", *_BOTH("BrowOuterUp"),
    "CheekPuff", *_BOTH("CheekSquint", "NoseSneer"), "TongueOut",
)
"""The 52 ARKit weights in the order of the CSV."""
ANGLES = ("HeadYaw", "HeadPitch", "HeadRoll", "LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")
COLUMNS = ("Timecode", "BlendShapeCount", *BLEND_SHAPES, *ANGLES)
VALUES = len(BLEND_SHAPES) + len(ANGLES)
WORDS = ("Timecode", "BlendShapeCount")  # what a file of this kind begins with
APP_SIGNS = np.array([-1.0, -1.0, 1.0])  # of yaw, pitch, roll against `render.rotations.head_angles`


def livelink_values(track: Track, options: ExportOptions = ExportOptions(), names: Sequence[str] = BLEND_SHAPES) -> np.ndarray:
    """The 61 values of each frame, weights in the order of `names`, then ANGLES: (T,61) float64; angles in rad with the signs of the module text.

    Raises InputError when the track's face model lacks the 52 ARKit weights.
    """
    index = {(swap_side(name) if options.sides == "viewer" else name).lower(): i for i, name in enumerate(track.expression_names)}
    missing = [name for name in names if name.lower() not in index]
    if missing:
        raise InputError(
            f"Live Link Face carries the 52 ARKit weights and the face model {track.model_id} lacks {len(missing)} of them "
            f"({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}); turn it into ARKit's with thnerf retarget --model default first")
    weights = track.expression[:, [index[name.lower()] for name in names]].astype(np.float64)
    signs = APP_SIGNS if options.signs == "livelink" else np.ones(3)
    eyes = np.concatenate([track.gaze.astype(np.float64), np.zeros((len(track), 2, 1))], -1) * signs
    if options.eyes == "blendshape":
        eyes[:] = 0
    if options.sides == "viewer":
        eyes = eyes[:, ::-1]
    return np.concatenate([weights, head_angles(track.rotation) * signs, eyes.reshape(len(track), 6)], 1)


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write a Live Link Face CSV, atomically.

    The file itself carries no frame rate: an importer must be told the track's. Raises InputError like `livelink_values`.
    """
    track = scene.track
    first = options.first_frame(track.fps)
    values = livelink_values(track, options)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        stream.writelines(f"{timecode(first + i, track.fps)},{VALUES},{row}\n" for i, row in enumerate(rows(values, 10, ",")))


def read(path: Path, options: ExportOptions) -> Imported:
    """Read a Live Link Face CSV, columns by name, in any order and any number of them.

    Timecodes tell the frame rate where they run over a second's end, and which frames a recording lost (those are interpolated).
    Raises InputError for a file that is no such CSV.
    """
    table = read_table(path, ("timecode",))
    columns = [i for i, name in enumerate(table.names) if plain(name) not in ("blendshapecount", "")]
    if not columns:
        raise InputError(f"{path} has no columns of weights; it is no Live Link Face CSV")
    values, fps, notes = table.values[:, columns], None, []
    if "timecode" in table.words:
        values, fps, notes = _by_timecode(table.words["timecode"], values, options, path)
    return _imported([table.names[i] for i in columns], values, fps, tuple(notes), options)


def _by_timecode(codes: list[str], values: np.ndarray, options: ExportOptions, path: Path) -> tuple[np.ndarray, float | None, list[str]]:
    """Frames at every timecode between the first and the last, the frame rate that the codes count in (None: cannot be told), and notes."""
    last = [code.strip().rsplit(":", 1)[-1].split(".")[0] for code in codes]
    parts = [int(part) for part in last if part.isascii() and part.isdigit() and len(part) < 4]
    if len(parts) < len(codes):
        return values, options.fps, [f"{path.name}: some timecodes are not HH:MM:SS:FF, so its rows are taken for consecutive frames"]
    wraps = [a for a, b in zip(parts, parts[1:]) if b < a]
    fps = options.fps or (float(max(wraps) + 1) if wraps else None)
    notes = [] if options.fps or fps is None else [f"{path.name} carries no frame rate; its timecodes count to {fps:g} a second (--fps says otherwise)"]
    if fps is None:
        return values, None, notes
    try:
        frames = np.array([frame_of(code, fps) for code in codes])
    except InputError:
        return values, fps, [*notes, f"{path.name}: its timecodes do not count in {fps:g} frames a second, so its rows are taken for consecutive frames"]
    steps = np.diff(frames)
    if (steps == 1).all():
        return values, fps, notes
    if (steps < 1).any() or steps.sum() > 2 * len(values) + 10 * fps:
        return values, fps, [*notes, f"{path.name}: its timecodes repeat or jump, so its rows are taken for consecutive frames"]
    every = np.arange(frames[0], frames[-1] + 1)
    filled = np.stack([np.interp(every, frames, column) for column in values.T], 1)
    return filled, fps, [*notes, f"{path.name}: {len(every) - len(values)} frames are missing in it and were interpolated"]


def _imported(names: list[str], values: np.ndarray, fps: float | None, notes: tuple[str, ...], options: ExportOptions) -> Imported:
    """Weights and angles from named columns."""
    place = {plain(name): i for i, name in enumerate(names)}
    angles = {plain(name) for name in ANGLES}
    rest = [i for i, name in enumerate(names) if plain(name) not in angles]
    signs = APP_SIGNS if options.signs == "livelink" else np.ones(3)
    rotation = gaze = None
    if {"headyaw", "headpitch", "headroll"} <= place.keys():
        rotation = from_head_angles(values[:, [place["headyaw"], place["headpitch"], place["headroll"]]] * signs)
    if {f"{side}eye{angle}" for side in ("left", "right") for angle in ("yaw", "pitch")} <= place.keys() and options.eyes == "rotation":
        gaze = np.stack([values[:, [place[f"{side}eyeyaw"], place[f"{side}eyepitch"]]] * signs[:2] for side in ("left", "right")], 1)
        gaze = gaze[:, ::-1] if options.sides == "viewer" else gaze
    spelt = tuple(swap_side(names[i]) if options.sides == "viewer" else names[i] for i in rest)
    return Imported(fps, spelt, values[:, rest], rotation, None, gaze, None, notes)
