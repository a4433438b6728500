"""Plain formats: JSON with everything spelt out, and the Track's own npz."""

from __future__ import annotations

import json
from pathlib import Path

from recon.track import Track
from render.files import atomic_path
from render.rotations import head_angles


def write_json_track(track: Track, path: str | Path) -> None:
    """Write strict JSON, atomically: fps, names, one list per frame, conventions in words.

    Keys: format, version, fps, model_id, names (E), expression (T,E), rotation (T,3) axis-angle rad and translation
    (T,3) mm, model → world, head_angles (T,3) rad [yaw, pitch, roll], gaze (T,2,2) rad, torso (T,K), valid (T),
    clip_starts, shape (S), camera {K, width, height}, conventions.
    """
    lists = lambda array: [[round(float(v), 7) for v in row] for row in array.reshape(len(array), -1)]  # noqa: E731
    value = {
        "format": "thnerf-track", "version": 1, "fps": track.fps, "model_id": track.model_id, "frames": len(track),
        "names": list(track.expression_names), "expression": lists(track.expression), "rotation": lists(track.rotation),
        "translation": lists(track.translation), "head_angles": lists(head_angles(track.rotation)),
        "gaze": track.gaze.round(7).astype(float).tolist(), "torso": lists(track.torso), "valid": track.valid.tolist(),
        "clip_starts": list(track.clip_starts), "shape": track.shape.astype(float).tolist(),
        "camera": {"K": track.camera.K.tolist(), "width": track.camera.width, "height": track.camera.height},
        "conventions": "mm and rad; model space y up, z out of the face, +x to the subject's left; rotation and translation map it to OpenCV "
                       "camera axes; head_angles yaw + to the subject's left, pitch + up, roll + towards the left shoulder; "
                       "gaze [left, right] eye x [yaw, pitch], + to the subject's left and up",
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def write_npz(track: Track, path: str | Path) -> None:
    """Write the Track file itself (see `recon.track.Track.save`)."""
    track.save(path)
