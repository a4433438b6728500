"""Tracks for other programs: Live Link Face CSV, JSON, npz.

`resolve_track` says which track a command means, `export_track` writes it. A format is one function
``write(track, path)``; add it to `WRITERS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from recon.track import Track
from render.files import InputError
from thnerf.export.livelink import write_livelink
from thnerf.export.plain import write_json_track, write_npz

WRITERS: dict[str, Callable[[Track, str | Path], None]] = {"livelink": write_livelink, "json": write_json_track, "npz": write_npz}


def export_track(track: Track, path: str | Path, format: str, fps: float | None = None) -> None:
    """Write `track` to `path` as 'livelink', 'json' or 'npz', resampled to `fps` where given; atomic.

    Raises InputError for an unknown format, an empty track, or a face model that the format cannot hold.
    """
    if format not in WRITERS:
        raise InputError(f"cannot export to {format!r}; choose one of {', '.join(WRITERS)}")
    if not len(track):
        raise InputError("the track has no frames, so there is nothing to export; fit the clip again")
    if fps is not None and not fps > 0:
        raise InputError(f"the frame rate must be positive, not {fps}")
    WRITERS[format](track if fps is None else track.resample(fps), path)


def resolve_track(source: str | Path, audio: str | Path | None = None, run: str = "default", seed: int = 0, pose: Any = "audio") -> Track:
    """The track that a command line means: a subject folder's own, a Track .npz, or with `audio` a subject's predicted one.

    run, seed and pose ('audio', 'source', 'still' or a Track) matter with `audio` only. Raises InputError when `source`
    is neither, when `audio` comes with a bare Track, or when the run holds no speech network.
    """
    from recon.subject import Subject

    source = Path(source)
    if not source.is_dir():
        if audio is not None:
            raise InputError(f"--audio needs a trained subject folder to speak through, and {source} is none; give the folder instead")
        if not source.exists():
            raise InputError(f"{source} does not exist; give a subject folder or a Track .npz")
        return Track.load(source)
    subject = Subject.open(source)
    if audio is None:
        return subject.track
    from thnerf.audio import RATE, load_audio
    from thnerf.motion import predict_track

    return predict_track(subject, subject.run(run), load_audio(audio, RATE), RATE, seed=seed, pose=pose)
