"""The subject folder: what fit writes, train adds to, and render and evaluate read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recon.model import DEFAULT_MODEL, MorphableModel, load_model
from recon.track import Track
from render.files import InputError, read_json, write_json


@dataclass(frozen=True)
class Subject:
    """A fitted subject. `Subject.open` checks that the folder is whole; paths are properties.

    subject.json: {version, clips: [{source, start, end}], crop: {x, y, side, size} in source px,
    split: {train: [[start, end], …], test: [[start, end], …]} (half-open frame ranges), consent, has_audio}.
    It is written last, so a folder without it was never finished.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "Subject":
        """Raises InputError when the folder is missing, unfinished or damaged; the message names the command to run."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a subject folder; make one with: thnerf fit CLIP --out {path}")
        subject = cls(path)
        if not subject.json_path.exists():
            raise InputError(f"{path} is not a finished subject (its fit was interrupted or it is another folder); run thnerf fit again with --out {path}")
        for needed in (subject.video_path, subject.matte_path, subject.background_path, subject.track_path):
            if not needed.exists() or needed.stat().st_size == 0:
                raise InputError(f"{needed} is missing or empty; run thnerf fit again with --out {path}")
        split = subject.info.get("split") if isinstance(subject.info, dict) else None
        if not isinstance(split, dict) or not split.get("train"):
            raise InputError(f"{subject.json_path} has no train/test split; run thnerf fit again with --out {path}")
        return subject

    json_path = property(lambda self: self.path / "subject.json")
    video_path = property(lambda self: self.path / "video.mp4")
    audio_path = property(lambda self: self.path / "audio.wav")
    matte_path = property(lambda self: self.path / "matte.mp4")
    background_path = property(lambda self: self.path / "background.png")
    track_path = property(lambda self: self.path / "track.npz")
    landmarks_path = property(lambda self: self.path / "landmarks.npz")
    fit_path = property(lambda self: self.path / "fit.json")

    @cached_property
    def info(self) -> dict[str, Any]:
        """The content of subject.json."""
        return read_json(self.json_path)

    @cached_property
    def track(self) -> Track:
        """The fitted track, all clips."""
        return Track.load(self.track_path)

    def aligned(self, run_dir: Path) -> Track:
        """The track as a training run has aligned it to its field; as it was fitted where the run has not, or has been trained before the present fit.

        Raises InputError when its file is damaged.
        """
        path = aligned_path(run_dir)
        if not path.exists():
            return self.track
        try:
            track = Track.load(path)
        except InputError:
            raise InputError(f"{path} is damaged; delete {run_dir} and train again") from None
        return track if track.meta.get("fit") == self.fingerprint and len(track) == len(self.track) else self.track

    @cached_property
    def model(self) -> MorphableModel:
        """The face model that the track's coefficients belong to. Raises InputError when its file has gone or is another model."""
        model = load_model(self.info.get("config", {}).get("model", DEFAULT_MODEL))
        if model.model_id != self.track.model_id:
            raise InputError(f"{self.track_path} belongs to the face model {self.track.model_id}, not {model.model_id}; run thnerf fit again")
        return model

    @property
    def fingerprint(self) -> str:
        """Of the footage and settings behind this fit; a run belongs to the fit it was trained on."""
        return str(self.info.get("fingerprint", ""))

    @property
    def has_audio(self) -> bool:
        """Whether the footage had sound (audio.wav then covers all frames, clip after clip)."""
        return bool(self.info.get("has_audio")) and self.audio_path.exists()

    def frames(self, part: str) -> np.ndarray:
        """Sorted frame indices of 'train' or 'test'; invalid frames are left out of 'train' only."""
        ranges = self.info["split"].get(part, [])
        index = np.concatenate([np.arange(a, b) for a, b in ranges]) if ranges else np.zeros(0, int)
        return index[self.track.valid[index]] if part == "train" else index

    def run(self, name: str = "default") -> Path:
        """Folder of one training run (may not exist yet). Raises InputError for a name that is a path."""
        if not name or Path(name).name != name or name in (".", ".."):
            raise InputError(f"--run takes a plain name, not {name!r}")
        return self.path / "runs" / name


def aligned_path(run_dir: Path) -> Path:
    """Where a training run keeps the track that it has aligned to its field."""
    return run_dir / "track.npz"


def make_split(clip_starts: tuple[int, ...], frames: int) -> dict[str, list[list[int]]]:
    """Frame ranges held out for good: of one clip the last 1/11 of its frames, of several clips whole clips from the end, nearest to 1/11.

    Returns {'train': [[start, end], …], 'test': [[start, end], …]}, half-open. With fewer than 11 frames everything is train.
    """
    target = frames / 11
    if len(clip_starts) == 1:
        cut = frames - int(round(target)) if frames >= 11 else frames
    else:
        candidates = np.array(clip_starts[1:])
        cut = int(candidates[np.argmin(np.abs(frames - candidates - target))])
    bounds = [*clip_starts, frames]
    clip = [[a, b] for a, b in zip(bounds, bounds[1:])]
    train = [[a, min(b, cut)] for a, b in clip if a < cut]
    test = [[max(a, cut), b] for a, b in clip if b > cut]
    return {"train": train, "test": test}


def write_subject(path: Path, info: dict[str, Any]) -> None:
    """Write subject.json, the mark that a subject folder is finished."""
    write_json(path / "subject.json", {"version": 1, **info})
