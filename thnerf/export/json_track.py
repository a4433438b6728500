"""JSON with everything spelt out, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from render.camera import Camera
from render.files import InputError, atomic_path
from render.rotations import head_angles
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.text import names_of, numbers, read_object

CONVENTIONS = ("mm and rad; model space y up, z out of the face, +x to the subject's left; rotation and translation map it to OpenCV camera axes; "
               "head_angles yaw + to the subject's left, pitch + up, roll + towards the left shoulder; gaze [left, right] eye x [yaw, pitch], "
               "+ to the subject's left and up")


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write strict JSON, atomically: fps, names, one list per frame, conventions in words; always mm and rad.

    Keys: format, version, fps, first_frame, model_id, names (E), expression (T,E), rotation (T,3) axis-angle rad and translation
    (T,3) mm, model → world, head_angles (T,3) rad [yaw, pitch, roll], gaze (T,2,2) rad, torso (T,K), valid (T),
    clip_starts, shape (S), camera {K, width, height, world_to_camera (T,4,4) where it moves}, conventions.
    """
    track = scene.track
    lists = lambda array: np.round(np.asarray(array, np.float64), 7).tolist()  # noqa: E731
    camera: dict[str, Any] = {"K": track.camera.K.tolist(), "width": track.camera.width, "height": track.camera.height}
    if not np.array_equal(track.camera.world_to_camera, np.broadcast_to(np.eye(4), track.camera.world_to_camera.shape)):
        camera["world_to_camera"] = lists(track.camera.world_to_camera)
    value = {
        "format": "thnerf-track", "version": 1, "fps": track.fps, "first_frame": options.first_frame(track.fps), "model_id": track.model_id,
        "frames": len(track), "names": list(scene.names(options)), "expression": lists(track.expression), "rotation": lists(track.rotation),
        "translation": lists(track.translation), "head_angles": lists(head_angles(track.rotation)),
        "gaze": lists(track.gaze), "torso": lists(track.torso), "valid": track.valid.tolist(),
        "clip_starts": list(track.clip_starts), "shape": track.shape.astype(float).tolist(), "camera": camera, "conventions": CONVENTIONS,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def read(path: Path, options: ExportOptions) -> Imported:
    """Read what `write` wrote, or as much of it as there is: only `names` and `expression` have to be; Audio2Face's JSON, too. Raises InputError."""
    value = read_object(path)
    if "names" not in value and "facsNames" in value:
        from thnerf.export import a2f

        return a2f.read(path, options)
    names = names_of(value.get("names"), f"{path}: names")
    weights = numbers(value.get("expression"), f"{path}: expression", (None, len(names)))
    frames = len(weights)
    fps = float(numbers(value["fps"], f"{path}: fps", ())) if value.get("fps") is not None else None
    part = lambda key, *shape: numbers(value[key], f"{path}: {key}", (frames, *shape)) if value.get(key) is not None else None  # noqa: E731
    swapped = tuple(swap_side(n) for n in names) if options.sides == "viewer" else names
    return Imported(fps, swapped, weights, part("rotation", 3), part("translation", 3), part("gaze", 2, 2), _camera(value.get("camera"), path, frames))


def _camera(value: Any, path: Path, frames: int) -> Camera | None:
    """The camera of a file. Raises InputError when there is one that cannot be."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError(f"{path}: camera is not an object with K, width and height")
    K = numbers(value.get("K"), f"{path}: camera K", (3, 3))
    width, height = (int(numbers(value.get(key), f"{path}: camera {key}", ())) for key in ("width", "height"))
    moving = value.get("world_to_camera")
    pose = np.repeat(np.eye(4)[None], frames, 0) if moving is None else numbers(moving, f"{path}: world_to_camera", (frames, 4, 4))
    try:
        return Camera(K, pose, width, height)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: {error}") from None
