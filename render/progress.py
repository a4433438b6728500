"""One progress bar for all long work: label, rate and ETA on stderr, silent when asked."""

from __future__ import annotations

import os
import sys
from typing import Any, Iterable


def progress(items: Iterable[Any] | None = None, label: str = "", total: int | float | None = None, unit: str = "frame") -> Any:
    """Wrap an iterable, or make a bar to update by hand when `items` is None (a context manager with .update(n)).

    Draws on stderr with an ETA; every 10 s a plain line where stderr is no terminal. THNERF_QUIET=1 silences it.
    """
    from tqdm import tqdm

    quiet = os.environ.get("THNERF_QUIET") == "1"
    terminal = sys.stderr.isatty()
    return tqdm(items, desc=label, total=total, unit=unit, disable=quiet, dynamic_ncols=terminal, mininterval=0.2 if terminal else 10, ascii=not terminal)


def timed(seconds: dict[str, float], name: str) -> "_Timer":
    """Context manager that adds the wall-clock seconds of its block to ``seconds[name]``."""
    return _Timer(seconds, name)


class _Timer:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        import time

        self.clock = time.perf_counter
        self.start = self.clock()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + self.clock() - self.start
