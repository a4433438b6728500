"""Errors that a user can act on, and writes that either happen whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator, Mapping


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
        raise write_failure(path, error) from error
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
        raise write_failure(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_failure(path: str | os.PathLike[str], error: BaseException) -> StageError:
    """What to say of an error of the system or of the encoder while `path` was written."""
    said = str(getattr(error, "strerror", None) or error).rstrip(".")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return StageError(f"cannot write {path}: {said}; free some space or choose another folder")
    return StageError(f"cannot write {path}: {said}; choose another folder" if isinstance(error, OSError) else f"cannot encode {path}: ffmpeg says {said!r}; choose another kind of file, size or frame rate")


def unreadable(error: BaseException) -> str:
    """Why numpy could not read a file, without its advice to let pickles run."""
    return "it is no such file" if "allow_pickle" in str(error) or "pickled data" in str(error) else str(error)[:200] or type(error).__name__


def check_number(name: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Raise InputError for a number (NaN, too) outside low to high, by the name of its option."""
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"lie between {low:.10g} and {high:.10g}{unit}" if math.isfinite(high) else f"be a number of at least {low:.10g}{unit}" if math.isfinite(low) else "be a finite number"
        raise InputError(f"{name} must {bounds}, not {value:.10g}")


def check_numbers(config: Any, limits: Mapping[str, tuple[float, float]], prefix: str = "--") -> None:
    """`check_number` of all numbers of a config dataclass and those in it: finite, and within limits by the name of the field (head.levels of one within)."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_numbers(value, {k.removeprefix(f"{field.name}."): v for k, v in limits.items() if k.startswith(f"{field.name}.")}, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(prefix + name, value, *limits.get(field.name, (-math.inf, math.inf)))


def check_place(*paths: str | os.PathLike[str] | None) -> None:
    """Raise InputError where nothing can be written at one of `paths`, before the work whose result is to go there. Leaves nothing behind."""
    for path in paths:
        if path is not None:
            _check_place(Path(path))


def _check_place(path: Path) -> None:
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
