"""A plain CSV of everything that moves, for any face model: FLAME's and Basel's coefficients as well as ARKit weights.

Columns: frame, time (s), every expression by name, then rotation_x … (axis-angle, rad) and translation_x … (mm), which map model to camera axes
as in a Track, and gaze_left_yaw, gaze_left_pitch, gaze_right_yaw, gaze_right_pitch (rad, + to the subject's left and up). Always mm and rad.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.table import read_table
from thnerf.export.text import rows

ROTATION = tuple(f"rotation_{a}" for a in "xyz")
TRANSLATION = tuple(f"translation_{a}" for a in "xyz")
GAZE = ("gaze_left_yaw", "gaze_left_pitch", "gaze_right_yaw", "gaze_right_pitch")


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write the CSV, atomically. Raises InputError when an expression has the name of another column."""
    track, first = scene.track, options.first_frame(scene.track.fps)
    names = scene.names(options)
    taken = set(names) & {"frame", "time", *ROTATION, *TRANSLATION, *GAZE}
    if taken:
        raise InputError(f"the face model has an expression that is named {taken.pop()}, which is another column here; export to json")
    values = np.concatenate([track.expression, track.rotation, track.translation, track.gaze.reshape(-1, 4)], 1, dtype=np.float64)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow(["frame", "time", *names, *ROTATION, *TRANSLATION, *GAZE])
        stream.writelines(f"{first + i},{i / track.fps:.9f},{row}\n" for i, row in enumerate(rows(values, 8, ",")))


def read(path: Path, options: ExportOptions) -> Imported:
    """Read such a CSV, columns by name; expressions are all that have no other meaning. Raises InputError."""
    table = read_table(path)
    fps = table.fps_of("time", path)
    at = {name: i for i, name in enumerate(table.names)}
    part = lambda names: table.values[:, [at[n] for n in names]] if all(n in at for n in names) else None  # noqa: E731
    gaze = part(GAZE)
    rest = [i for i, n in enumerate(table.names) if n not in ("frame", "time", "", *ROTATION, *TRANSLATION, *GAZE)]
    names = tuple(swap_side(table.names[i]) if options.sides == "viewer" else table.names[i] for i in rest)
    return Imported(fps, names, table.values[:, rest], part(ROTATION), part(TRANSLATION), None if gaze is None else gaze.reshape(-1, 2, 2))
