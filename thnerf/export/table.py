"""CSV tables of numbers under a header."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from render.files import InputError
from thnerf.export.text import MAX_FRAMES, numbers, read_text


@dataclass
class Table:
    """names (C,) and values (T,C); columns that were set aside as text in `words`."""

    names: list[str]
    values: np.ndarray
    words: dict[str, list[str]]

    def fps_of(self, column: str, path: Path) -> float | None:
        """Frame rate of a column of seconds, None where there is none or one row. Raises InputError for times that do not rise evenly."""
        if column not in self.names or len(self.values) < 2:
            return None
        times = self.values[:, self.names.index(column)]
        step = (times[-1] - times[0]) / (len(times) - 1)
        if not step > 0 or np.abs(times - times[0] - step * np.arange(len(times))).max() > 0.3 * step:
            raise InputError(f"{path}: the {column} column does not rise evenly; give every frame the same time step")
        fps = 1 / step
        return float(round(fps)) if abs(fps - round(fps)) < 2e-4 * fps else float(fps)


def read_table(path: Path, text_columns: tuple[str, ...] = ()) -> Table:
    """A CSV file. text_columns: lower-case names of columns that are no numbers. Raises InputError with the line that is wrong."""
    try:
        table = [row for row in csv.reader(io.StringIO(read_text(path))) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(f"{path} is no readable CSV ({error}); record or export it again") from None
    if len(table) < 2:
        raise InputError(f"{path} has no frames; record or export it again")
    header = [cell.strip() for cell in table[0]]
    wrong = next((i for i, row in enumerate(table) if len(row) != len(header)), None)
    if wrong is not None:
        raise InputError(f"{path}: line {wrong + 1} has {len(table[wrong])} cells and the header {len(header)}; record or export it again")
    if len(table) > MAX_FRAMES or len(table) * len(header) > 3e7:
        raise InputError(f"{path} has more frames than can be read; cut it into parts")
    keep = [i for i, name in enumerate(header) if name.lower() not in text_columns]
    try:
        values = numbers([[float(row[i]) for i in keep] for row in table[1:]], str(path), (len(table) - 1, len(keep)))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} has a cell that is no number ({error}); record or export it again") from None
    words = {header[i].lower(): [row[i] for row in table[1:]] for i in range(len(header)) if i not in set(keep)}
    return Table([header[i] for i in keep], values, words)
