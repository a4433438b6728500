"""Shared fixtures. Footage comes from THNERF_FOOTAGE or ../shared/data; without it those tests skip."""

import os
import signal
from pathlib import Path

import pytest

import thnerf  # noqa: F401 - before torch: it sets how idle OpenMP threads wait

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("THNERF_QUIET", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's background job: commands that a test interrupts would not notice
    signal.signal(signal.SIGINT, signal.default_int_handler)


def footage_folder() -> Path | None:
    """The folder of development footage, or None."""
    for candidate in (os.environ.get("THNERF_FOOTAGE"), ROOT.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def footage() -> Path:
    """Folder of real footage; skips when it is absent."""
    folder = footage_folder()
    if folder is None:
        pytest.skip("no real footage: set THNERF_FOOTAGE to a folder with obama/, macron/, grid_s1/, silent/ and wav/")
    return folder
