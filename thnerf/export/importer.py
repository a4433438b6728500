"""From a file of another program to a Track of a subject: what the file says, and for the rest what the subject does."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Optional

import numpy as np

from recon.gaze import looks_of
from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, from_frontal, relative_to_frontal
from thnerf.export.formats import format_named, format_of
from thnerf.export.names import match
from thnerf.export.options import ExportOptions, Imported, check_fps
from thnerf.export.scene import gaze_of_looks
from thnerf.export.text import MAX_FRAMES

SAME_POSE = np.deg2rad(1.0)  # median difference below which a file is an edit of the track that it is compared with
LARGEST = {"weights": 1e3, "translation": 1e6}  # beyond these a file is damaged
PIVOT_RIDGE = 1e-3  # rad² of spread of the rotation below which a footage tells little about its pivot
PIVOT = np.array([0.0, -120.0, -20.0])  # mm in model space: about where a head turns on its neck


def import_track(path: str | Path, subject: Subject, options: ExportOptions = ExportOptions(), format: Optional[str] = None,
                 base: Optional[Track] = None) -> tuple[Track, dict[str, Any]]:
    """A Track of `subject` from a file, and a report {format, frames, fps, matched, missing, unknown, notes}.

    Names are matched without case and separators. Expressions that the file lacks keep the subject's neutral face (the median of its training
    frames), eyeLook and gaze follow each other. Torso, camera and a missing translation are the subject's: frame by frame where the file is an
    edit of its own track (as many frames, the same head pose to within a degree), else what goes with the pose. base: the Track that the file was made from; what
    the file lacks is then taken from there, frame by frame. options.fps: the frame rate of files that carry none; others are resampled to it.
    Raises InputError for a file that is damaged, empty, of no known kind or without anything that the subject's face model knows.
    """
    path = Path(path)
    check_fps(options.fps)
    name = format or format_of(path)
    form = format_named(name)
    if not form.two_way:
        raise InputError(f"{name} cannot be imported; export to a format that can")
    if not path.is_file():
        raise InputError(f"{path} does not exist; name the file to import")
    found = form.load().read(path, options)
    _check(found, path)
    fps = found.fps or options.fps
    if fps is None:
        raise InputError(f"{path} carries no frame rate; give it with --fps")
    check_fps(fps)
    if base is not None and base.model_id != subject.track.model_id:
        raise InputError(f"the base track belongs to the face model {base.model_id} and the subject to {subject.track.model_id}; re-express it with thnerf retarget")
    if base is not None and (len(base) != len(found) or abs(base.fps - fps) > 0.01):
        raise InputError(f"the base track has {len(base)} frames at {base.fps:g} a second and {path} {len(found)} at {fps:g}; give the track that it was made from")
    track, report = _complete(found, fps, subject, base, path)
    if options.fps is not None and abs(options.fps - fps) > 1e-6:
        track = track.resample(options.fps)
    report = {"format": name, "frames": len(track), "fps": track.fps, **report}
    return track.replace(meta={**track.meta, "imported": {"file": path.name, "format": name}}), report


def import_file(path: Path, subject: Subject, out: Path, options: ExportOptions, format: Optional[str] = None, base: Optional[Path] = None) -> dict[str, Any]:
    """``thnerf import``: write the Track of `import_track`, say what the file lacks or has too much, and return the report with `file`."""
    if out.suffix != ".npz":
        raise InputError(f"a track is written as .npz, not {out.name!r}")
    track, report = import_track(path, subject, options, format, None if base is None else Track.load(base))
    track.save(out)
    for note in report["notes"]:
        warnings.warn(note, stacklevel=1)
    return {"file": str(out), **report}


def _check(found: Imported, path: Path) -> None:
    """Raise InputError for motion that cannot be."""
    T = len(found)
    if not T:
        raise InputError(f"{path} has no frames; export it again")
    if T > MAX_FRAMES:
        raise InputError(f"{path} has {T} frames, more than the {MAX_FRAMES} that are read; cut it into parts")
    if found.fps is not None and not (np.isfinite(found.fps) and 1 <= found.fps <= 1000):
        raise InputError(f"{path} says that it has {found.fps:g} frames a second; export it again with a rate between 1 and 1000")
    for what, shape in (("weights", (T, len(found.names))), ("rotation", (T, 3)), ("translation", (T, 3)), ("gaze", (T, 2, 2))):
        value = getattr(found, what)
        if value is None:
            continue
        if value.shape != shape or not np.isfinite(value).all() or np.abs(value).max(initial=0) > LARGEST.get(what, 1e3):
            raise InputError(f"{path} has {what} that are not finite or too large to be true; export it again")


def _complete(found: Imported, fps: float, subject: Subject, base: Optional[Track], path: Path) -> tuple[Track, dict[str, Any]]:
    """The Track, and what the report says about names."""
    own, T = subject.track, len(found)
    pairs, unknown = match([_by_number(name, own.expression_names) for name in found.names], own.expression_names)
    if not pairs and found.rotation is None and found.gaze is None:
        raise InputError(f"{path} has no weights that the subject's face model knows, and no head pose; it has {', '.join(found.names[:5]) or 'nothing'}")
    train = subject.frames("train")
    origin = base if base is not None else own if _is_edit(found, own, fps) else None
    neutral = np.median(own.expression[train], 0)
    expression = np.repeat(neutral[None], T, 0) if base is None else base.expression.astype(np.float64)
    for i, j in pairs.items():
        expression[:, i] = found.weights[:, j]
    gaze = _gaze(found, pairs, expression, own, base, train)
    looks = looks_of(own.expression_names, gaze)
    for i in set(np.flatnonzero(np.isfinite(looks[0]))) - set(pairs):
        if found.gaze is not None:
            expression[:, i] = looks[:, i]
    rotation, translation, torso = _pose(found, subject, origin, train)
    notes = list(found.notes)
    missing = [n for i, n in enumerate(own.expression_names) if i not in pairs]
    kept = "the base track" if base is not None else "the neutral face"
    if missing and not pairs:
        notes.append(f"{path.name} carries no expressions, which keep {kept}" + ("" if base is not None else "; --base TRACK.npz keeps those of another track"))
    elif missing:
        notes.append(f"{path.name} lacks {len(missing)} expressions, which keep {kept}: {', '.join(missing)}")
    if unknown:
        notes.append(f"{path.name} has {len(unknown)} names that the face model does not know: {', '.join(unknown)}")
    if found.camera is not None and not _same_camera(found, own):
        notes.append(f"{path.name} has a camera of its own, which is not taken over; thnerf render --camera moves the camera")
    like = origin if origin is not None else own
    still = own.camera.at(np.zeros(T, int))
    track = own.replace(
        fps=fps, camera=still if origin is None else origin.camera, expression=expression, rotation=rotation, translation=translation, gaze=gaze,
        torso=torso, valid=np.ones(T, bool) if origin is None else like.valid, clip_starts=(0,) if origin is None else like.clip_starts, meta={})
    return track, {"matched": len(pairs), "missing": missing, "unknown": unknown, "notes": notes}


def _by_number(name: str, wanted: tuple[str, ...]) -> str:
    """Maya names a blend shape's channels weight[k] where it does not use aliases; they are in the order of the face model."""
    number = re.fullmatch(r"(?:.*\.)?(?:weight|w)\[(\d{1,6})\]", name)
    return wanted[int(number[1])] if number and int(number[1]) < len(wanted) else name


def _is_edit(found: Imported, own: Track, fps: float) -> bool:
    """Whether the frames of a file are the subject's own, edited."""
    if len(found) != len(own) or abs(fps - own.fps) > 0.01:
        return False
    return found.rotation is None or float(np.median(angle_between(found.rotation, own.rotation))) < SAME_POSE


def _same_camera(found: Imported, own: Track) -> bool:
    """Whether the file's camera is the subject's, to within rounding: half a pixel, 1 mm. A picture of another shape (Blender's render size) is the same camera."""

    def lens(camera: Camera) -> np.ndarray:
        middle = np.array([[0, 0, camera.width / 2], [0, 0, camera.height / 2]])
        return (camera.K[:2] - middle) * own.camera.width / camera.width

    alike = np.allclose(lens(found.camera), lens(own.camera), rtol=2e-3, atol=0.5)
    return bool(alike and np.allclose(found.camera.world_to_camera, own.camera.world_to_camera[:1], atol=1.0 if len(own) else 0))


def _gaze(found: Imported, pairs: dict[int, int], expression: np.ndarray, own: Track, base: Optional[Track], train: np.ndarray) -> np.ndarray:
    """Gaze (T,2,2): the file's, or what its eyeLook weights mean, or the base's, or straight ahead as the subject does it."""
    if found.gaze is not None:
        return found.gaze
    looks = np.flatnonzero(np.isfinite(looks_of(own.expression_names, np.zeros((1, 2, 2)))[0]))
    if len(looks) and set(looks.tolist()) <= set(pairs):
        return gaze_of_looks(own.expression_names, expression)
    return base.gaze if base is not None else np.repeat(np.median(own.gaze[train], 0)[None], len(expression), 0)


def _pose(found: Imported, subject: Subject, origin: Optional[Track], train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation, translation and torso."""
    own, T = subject.track, len(found)
    rotation = found.rotation
    if rotation is None:
        middle = from_frontal(np.median(relative_to_frontal(own.rotation[train]), 0))
        rotation = origin.rotation if origin is not None else np.repeat(middle[None], T, 0)
    translation = found.translation
    if translation is None:
        translation = origin.translation if origin is not None else turned_about_neck(own, train, rotation)
    if origin is not None:
        return rotation, translation, origin.torso
    from thnerf.pose import fit_pose

    model = fit_pose(own, train, np.zeros(len(own)))
    states = np.concatenate([relative_to_frontal(rotation), translation, np.zeros((T, model.states.shape[1] - 6))], 1)
    return rotation, translation, model.torso_for(states)


def turned_about_neck(track: Track, frames: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Translations (T,3) mm for rotations (T,3): the head turns about the point that moved least in some frames of a track, at its usual place.

    The point minimises the spread of ``R p + t``, with a pull towards a neck where the footage shows little rotation.
    """
    R, t = axis_angle_to_matrix(track.rotation[frames].astype(np.float64)), track.translation[frames].astype(np.float64)
    A, b = R - R.mean(0), t - t.mean(0)
    left = np.einsum("tji,tjk->ik", A, A) / len(R)
    ridge = PIVOT_RIDGE * np.eye(3)
    pivot = np.linalg.solve(left + ridge, ridge @ PIVOT - np.einsum("tji,tj->i", A, b) / len(R))
    centre = np.median(np.einsum("tij,j->ti", R, pivot) + t, 0)
    return centre - axis_angle_to_matrix(rotation) @ pivot
