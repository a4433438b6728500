"""The Track's own file."""

from __future__ import annotations

from pathlib import Path

from recon.track import Track
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write the Track file itself (see `recon.track.Track.save`); it has neither units nor sides to choose."""
    scene.track.save(path)


def read(path: Path, options: ExportOptions) -> Imported:
    """Read a Track. Raises InputError when it is damaged."""
    track = Track.load(path)
    return Imported(track.fps, track.expression_names, track.expression, track.rotation, track.translation, track.gaze, track.camera)
