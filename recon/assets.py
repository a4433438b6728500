"""Where the shipped data files are, in a checkout and in an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from render.files import InputError


def asset(name: str) -> Path:
    """Path of a file in assets/. Raises InputError when the installation lacks it."""
    folders = [Path(__file__).resolve().parents[1] / "assets"]
    spec = importlib.util.find_spec("thnerf_assets")
    if spec and spec.submodule_search_locations:
        folders += [Path(p) for p in spec.submodule_search_locations]
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise InputError(f"the data file assets/{name} is missing from this installation; install thnerf again")
