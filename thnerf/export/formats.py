"""The formats by name, each one module with ``write(scene, path, options)`` and, where it can be read back, ``read(path, options) -> Imported``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from render.files import InputError


@dataclass(frozen=True)
class Format:
    """module: below `thnerf.export`. suffixes: file names that mean it, the first one is its own. two_way: whether it can be imported."""

    module: str
    suffixes: tuple[str, ...]
    two_way: bool
    about: str

    @property
    def written(self) -> tuple[str, ...]:
        """The endings that can be written; packages of several files are only read."""
        return tuple(s for s in self.suffixes if s not in (".usdz", ".gltf"))

    def load(self) -> ModuleType:
        """The module with `write` and, for two-way formats, `read`."""
        return importlib.import_module(f"thnerf.export.{self.module}")


FORMATS: dict[str, Format] = {
    "livelink": Format("livelink", (".csv",), True, "Live Link Face CSV"),
    "json": Format("json_track", (".json",), True, "everything, spelt out"),
    "csv": Format("csv_track", (".csv",), True, "raw coefficients of any face model"),
    "a2f": Format("a2f", (".json",), True, "Audio2Face JSON"),
    "a2f-csv": Format("a2f_csv", (".csv",), True, "Audio2Face CSV"),
    "maya": Format("maya", (".ma",), False, "Maya scene: mesh, blend shapes, curves, camera, sound"),
    "anim": Format("maya_anim", (".anim",), True, "Maya animation curves"),
    "chan": Format("houdini_chan", (".chan",), True, "head motion for Nuke, Houdini, Blender"),
    "clip": Format("houdini_clip", (".clip",), True, "Houdini channels"),
    "bvh": Format("bvh", (".bvh",), True, "head and eyes as a skeleton"),
    "usd": Format("usd", (".usd", ".usdc", ".usda", ".usdz"), True, "USD: textured head, UsdSkel blend shapes and joints, camera, sound"),
    "glb": Format("gltf", (".glb", ".gltf"), True, "glTF: textured head, morph targets, skeleton, camera"),
    "fbx": Format("fbx", (".fbx",), False, "FBX, through Blender where it is installed"),
    "npz": Format("npz", (".npz",), True, "a Track"),
}
"""What `thnerf export --to` and `thnerf import` know."""
BAKED, TEXTURED = ("usd",), ("maya", "usd", "glb", "fbx")
"""Formats with vertices over time, and with a picture of the skin."""


def format_named(name: str) -> Format:
    """Raises InputError for an unknown name."""
    if name not in FORMATS:
        raise InputError(f"cannot export to {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(path: Path) -> str:
    """The name of the two-way format that a file has, by its ending and, for CSV and JSON, its first words. Raises InputError."""
    candidates = [name for name, form in FORMATS.items() if form.two_way and path.suffix.lower() in form.suffixes]
    if not candidates:
        written = [form for form in FORMATS.values() if path.suffix.lower() in form.suffixes]
        if written:
            raise InputError(f"{path.name} is of a kind that is written but not read ({written[0].about}); docs/dcc.md says which of its program's formats come back")
        known = sorted({s for form in FORMATS.values() if form.two_way for s in form.suffixes})
        raise InputError(f"{path.name} has no ending that says what it is; these can be imported: {', '.join(known)}")
    if len(candidates) == 1:
        return candidates[0]
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    return _by_words(head, candidates)


def _by_words(head: str, candidates: list[str]) -> str:
    """Which of several formats with one ending a file begins like; the one that expects no words where it is like none of the others."""
    words = {name: getattr(FORMATS[name].load(), "WORDS", ()) for name in candidates}
    for name, expected in words.items():
        if expected and all(word.lower() in head.lower() for word in expected):
            return name
    return next((name for name, expected in words.items() if not expected), candidates[0])
