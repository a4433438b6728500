"""Errors that a user can act on, and writes that either happen whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator


class InputError(ValueError):
    """The input is at fault; the message is one sentence that says what to do. Exit code 2."""


class StageError(RuntimeError):
    """The work failed for a reason outside the input (disk full, encoder died). Exit code 1."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the same folder (same suffix); rename it to `path` on success.

    On any exception the temporary file is removed and an earlier `path` stays as it was.
    Raises StageError when the disk refuses the write.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}")
    except OSError as error:
        raise StageError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise StageError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise InputError where nothing can be written at `path`, before the work whose result is to go there. Leaves nothing behind."""
    path = Path(path)
    place = next((p for p in (path, *path.absolute().parents) if p.exists() and (p.is_dir() or p != path)), Path.cwd())
    try:
        if not place.is_dir():
            raise InputError(f"{path} cannot be written, because {place} is a file; choose another place")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}); choose another place") from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically. Infinities and NaN become null."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """A copy of a nested value that strict JSON can hold: non-finite floats are None, arrays are lists."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. Raises InputError when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); write it again") from None
