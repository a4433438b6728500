"""Reading text files that anybody may have written, and writing numbers fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np

from render.files import InputError

MAX_BYTES = 1 << 28
MAX_FRAMES = 1_000_000


def read_text(path: Path) -> str:
    """A whole text file. Raises InputError when it cannot be read, or is larger than any motion is (256 MiB)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that are read; cut it into parts")
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give another file") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises InputError otherwise."""
    try:
        value = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds JSON, but no object with named values; it is no motion")
    return value


def numbers(value: Any, what: str, shape: Sequence[int | None]) -> np.ndarray:
    """Nested lists as a finite float64 array of `shape`, None being any length. Raises InputError that begins with `what`."""
    try:
        array = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{what} holds something other than numbers in equal rows ({error})") from None
    if array.ndim != len(shape) or any(want is not None and have != want for have, want in zip(array.shape, shape)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{what} has {' x '.join(map(str, array.shape)) or 'one'} values instead of {wanted}")
    if not np.isfinite(array).all():
        raise InputError(f"{what} has values that are not finite")
    return array


def names_of(value: Any, what: str) -> tuple[str, ...]:
    """A list of strings. Raises InputError that begins with `what`."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{what} is not a list of names")
    return tuple(value)


def rows(array: np.ndarray, digits: int, separator: str = " ") -> Iterator[str]:
    """Each row of (T,N) numbers as text, without -0."""
    array = np.round(np.asarray(array, np.float64), digits) + 0.0
    pattern = separator.join([f"%.{digits}f"] * array.shape[1])
    return (pattern % tuple(row) for row in array.tolist())
