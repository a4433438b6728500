"""The CSV of Audio2Face's client; see `thnerf.export.a2f`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.table import read_table
from thnerf.export.text import MAX_FRAMES, rows

WORDS = ("timeCode", "blendShapes.")
PREFIX = "blendShapes."


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write the CSV, atomically."""
    track = scene.track
    names = [PREFIX + name[:1].upper() + name[1:] for name in scene.names(options)]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(",".join(["", "timeCode", *names]) + "\n")
        stream.writelines(f"{i},{i / track.fps:.9f},{row}\n" for i, row in enumerate(rows(track.expression, 7, ",")))


def read(path: Path, options: ExportOptions) -> Imported:
    """Read such a CSV; uneven time codes are interpolated to --fps, or to their median step. Raises InputError."""
    table = read_table(path)
    columns = [i for i, name in enumerate(table.names) if name.startswith(PREFIX)]
    if not columns:
        raise InputError(f"{path} has no columns that begin with {PREFIX}")
    names = [table.names[i][len(PREFIX) :] for i in columns]
    names = tuple(swap_side(n) for n in names) if options.sides == "viewer" else tuple(names)
    values, fps = table.values[:, columns], None
    at = next((i for i, name in enumerate(table.names) if name.lower() == "timecode"), None)
    if at is not None and len(values) > 1:
        times = table.values[:, at]
        steps = np.diff(times)
        if not (steps > 0).all():
            raise InputError(f"{path}: its time codes do not rise; export it again")
        fps = 1 / float(np.median(steps))
        fps = float(round(fps)) if abs(fps - round(fps)) < 2e-3 * fps else fps
        if np.abs(steps - 1 / fps).max() > 0.1 / fps:
            count = (times[-1] - times[0]) * fps + 1
            if not count <= min(MAX_FRAMES, 10 * len(values) + 1000):
                raise InputError(f"{path}: its time codes jump; export it again")
            even = times[0] + np.arange(int(round(count))) / fps
            values = np.stack([np.interp(even, times, column) for column in values.T], 1)
    return Imported(fps, names, values)
