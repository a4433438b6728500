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

import numpy as np

from recon.track import Track
from render.files import InputError, atomic_path
from render.rotations import head_angles

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


def timecode(frame: int, fps: float) -> str:
    """HH:MM:SS:FF.mmm of a frame, non-drop: FF counts to the rounded fps; .mmm, the thousandths of a frame, is always 000."""
    base = max(1, int(round(fps)))
    seconds, part = divmod(int(frame), base)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{part:02d}.000"


def livelink_values(track: Track) -> np.ndarray:
    """The 61 value columns, (T,61) float64; angles in rad with the signs of the module text.

    Raises InputError when the track's face model lacks the 52 ARKit weights.
    """
    index = {name.lower(): i for i, name in enumerate(track.expression_names)}
    missing = [name for name in BLEND_SHAPES if name.lower() not in index]
    if missing:
        raise InputError(
            f"Live Link Face carries the 52 ARKit weights and the face model {track.model_id} lacks {len(missing)} of them "
            f"({', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}); turn it into ARKit's with thnerf retarget --model default first")
    weights = track.expression[:, [index[name.lower()] for name in BLEND_SHAPES]].astype(np.float64)
    head = head_angles(track.rotation) * (-1.0, -1.0, 1.0)
    eyes = np.concatenate([-track.gaze.astype(np.float64), np.zeros((len(track), 2, 1))], -1).reshape(len(track), 6)
    return np.concatenate([weights, head, eyes], 1)


def write_livelink(track: Track, path: str | Path, start_frame: int = 0) -> None:
    """Write a Live Link Face CSV, atomically. start_frame: the timecode of the first row, in frames.

    The file itself carries no frame rate: an importer must be told the track's. Raises InputError like `livelink_values`.
    """
    rows = livelink_values(track) + 0.0  # −0.0 → 0.0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        for i, row in enumerate(rows):
            stream.write(f"{timecode(start_frame + i, track.fps)},{VALUES}," + ",".join(f"{v:.10f}" for v in row) + "\n")
