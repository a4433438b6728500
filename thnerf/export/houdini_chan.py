"""The head's motion as .chan: one row a frame, ``frame tx ty tz rx ry rz``, as Nuke, Houdini's File CHOP and Blender's add-on read it.

Rotations in degrees about fixed axes, x first (order XYZ, Houdini's and Blender's default; choose it in Nuke). No names, no frame rate, no expressions:
those are in .clip.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.curves import Curve, assemble, frame_range
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.space import Space, to_euler
from thnerf.export.text import read_text, rows

UNIT = "m"
ORDER = "xyz"


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write a .chan, atomically."""
    first = options.first_frame(scene.track.fps)
    matrix, position = scene.space(options, UNIT).head(scene.track.rotation, scene.track.translation)
    values = np.concatenate([position, to_euler(matrix, ORDER)], 1)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.writelines(f"{first + i} {row}\n" for i, row in enumerate(rows(values, 6)))


def read(path: Path, options: ExportOptions) -> Imported:
    """Read the head's motion; frames that are left out are interpolated. Raises InputError."""
    table = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        cells = line.split("#")[0].split()
        if not cells:
            continue
        try:
            row = [float(cell) for cell in cells[:7]]
        except ValueError:
            raise InputError(f"{path}: line {number} is not made of numbers; a .chan has frame, position and angles in each line") from None
        if len(row) < 7 or not np.isfinite(row).all():
            raise InputError(f"{path}: line {number} has no seven numbers (frame tx ty tz rx ry rz)")
        table.append(row)
    if not table:
        raise InputError(f"{path} has no frames; export it again")
    data = np.array(table)
    curves = {name: Curve(data[:, 0], data[:, 1 + i], ("linear",) * len(data)) for i, name in enumerate(("tx", "ty", "tz", "rx", "ry", "rz"))}
    frames = frame_range(curves, None, None, str(path))
    return assemble(options.fps, {}, {"head": {name: curve.at(frames) for name, curve in curves.items()}}, Space(options.scale(UNIT), options.up), options, str(path), ORDER)
