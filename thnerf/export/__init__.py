"""Tracks for other programs, and back.

`make_scene` says what a command means, `export_scene` writes it, `import_track` makes a Track of a file. `thnerf.export.formats` lists the formats,
`thnerf.export.space` says which axes and units they have; docs/dcc.md is the user's page.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from recon.track import Track
from render.files import InputError
from thnerf.direction import Direction
from thnerf.export.formats import BAKED, FORMATS, TEXTURED, format_named, format_of
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene, make_scene

__all__ = ["FORMATS", "ExportOptions", "Imported", "Scene", "check_export", "export_scene", "export_track", "format_named", "format_of", "make_scene", "resolve_track"]


def export_scene(scene: Scene, path: str | Path, format: str, options: ExportOptions = ExportOptions()) -> None:
    """Write `scene` to `path`, atomically; formats of several files put the others beside it.

    Raises InputError for an unknown format, or what the format cannot hold.
    """
    _check_ending(Path(path), format)
    format_named(format).load().write(scene, Path(path), options)


def check_export(path: str | Path, format: str, options: ExportOptions) -> None:
    """What can be said before any work: raises InputError for an unknown format or an ending that is not its own, warns of options that it has no use for."""
    _check_ending(Path(path), format)
    for option, where in (("bake", BAKED), ("albedo", TEXTURED)):
        if getattr(options, option) and format not in (*where, "glb", "fbx"):  # those two refuse what they cannot do
            warnings.warn(f"--{option} changes nothing in {format}; it is for {', '.join(where)}", stacklevel=2)


def _check_ending(path: Path, format: str) -> None:
    endings = format_named(format).written
    if path.suffix.lower() not in endings:
        raise InputError(f"{format} is written as {' or '.join(endings)}, not {path.name!r}")


def export_track(track: Track, path: str | Path, format: str, fps: float | None = None) -> None:
    """Write a Track of the default face model, or to a format without a mesh one of any model, resampled to `fps` where given; atomic.

    Raises InputError for an unknown format, an empty track, or a face model that the format cannot hold.
    """
    from recon.model import load_model
    from thnerf.export.options import check_fps

    format_named(format)
    if not len(track):
        raise InputError("the track has no frames, so there is nothing to export; fit the clip again")
    check_fps(fps)
    model = load_model() if track.model_id == load_model().model_id else None
    export_scene(Scene(track if fps is None else track.resample(fps), Path(path).stem, model), path, format, replace(ExportOptions(), fps=fps))


def resolve_track(source: str | Path, audio: str | Path | None = None, run: str = "default", direction: Direction = Direction()) -> Track:
    """The track of `make_scene`, which see."""
    return make_scene(source, audio=audio, run=run, direction=direction).track
