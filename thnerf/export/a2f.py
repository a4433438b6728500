"""Weights as NVIDIA's Audio2Face writes them: the JSON of its blend-shape export and the CSV of its service's client.

JSON: exportFps, trackPath, numPoses, numFrames, facsNames (numPoses), weightMat (numFrames, numPoses). CSV: an unnamed counter, timeCode in s, and
blendShapes.NAME with ARKit's names beginning with a capital. Neither has a head pose or eye rotations.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from render.files import atomic_path
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.text import names_of, numbers, read_object

WORDS = ("facsNames",)


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write the JSON, atomically."""
    names = scene.names(options)
    value = {"exportFps": scene.track.fps, "trackPath": str(scene.audio or ""), "numPoses": len(names), "numFrames": len(scene.track), "facsNames": list(names),
             "weightMat": np.round(scene.track.expression.astype(np.float64), 7).tolist()}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def read(path: Path, options: ExportOptions) -> Imported:
    """Read such a JSON. Raises InputError."""
    value = read_object(path)
    names = names_of(value.get("facsNames"), f"{path}: facsNames")
    weights = numbers(value.get("weightMat"), f"{path}: weightMat", (None, len(names)))
    fps = float(numbers(value["exportFps"], f"{path}: exportFps", ())) if value.get("exportFps") is not None else None
    return Imported(fps, tuple(swap_side(n) for n in names) if options.sides == "viewer" else names, weights)
