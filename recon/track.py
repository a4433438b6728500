"""The Track: the one thing that passes between stages."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from render.camera import Camera
from render.files import InputError, atomic_path, unreadable
from render.rotations import interpolate

VERSION = 1
FASTEST = 1000.0
LARGEST = {"expression": 100.0, "translation": 1e6}
"""Of a track that is read from a file."""
_PER_FRAME = ("expression", "rotation", "translation", "gaze", "torso", "valid")


@dataclass(frozen=True)
class Track:
    """Head motion of one subject over T frames.

    fps: frames per second. model_id: which MorphableModel the coefficients belong to.
    camera: Camera whose world_to_camera has T entries. shape: (S,) identity coefficients.
    expression: (T,E), named by expression_names. rotation (T,3) axis-angle rad and
    translation (T,3) mm map model → world. gaze: (T,2,2) rad, [left, right] × [yaw, pitch] in the head
    frame, + to the subject's left and up. torso: (T,K) similarity and low-rank motion of the shoulders.
    valid: (T,) bool, False where no face was usable (values there are interpolated).
    clip_starts: first frame of each clip, beginning with 0; nothing temporal crosses one.
    meta: JSON-serialisable notes. Raises ValueError on wrong shapes or values that are not finite.
    """

    fps: float
    model_id: str
    camera: Camera
    shape: np.ndarray
    expression: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    gaze: np.ndarray
    torso: np.ndarray
    valid: np.ndarray
    expression_names: tuple[str, ...]
    clip_starts: tuple[int, ...] = (0,)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - frozen dataclass
        put("fps", float(self.fps))
        put("model_id", str(self.model_id))
        for name in ("shape", "expression", "rotation", "translation", "gaze", "torso"):
            put(name, np.asarray(getattr(self, name), np.float32))
        put("valid", np.asarray(self.valid, bool))
        put("expression_names", tuple(str(n) for n in self.expression_names))
        put("clip_starts", tuple(int(s) for s in self.clip_starts))
        put("meta", dict(self.meta))
        self._check()

    def _check(self) -> None:
        T, E = len(self), len(self.expression_names)
        want = {"expression": (T, E), "rotation": (T, 3), "translation": (T, 3), "gaze": (T, 2, 2), "valid": (T,)}
        for name, shape in want.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"track.{name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.shape.ndim != 1 or self.torso.ndim != 2 or len(self.torso) != T:
            raise ValueError(f"track.shape must be (S,) and track.torso (T,K), got {self.shape.shape} and {self.torso.shape}")
        if len(self.camera) != T:
            raise ValueError(f"track.camera has {len(self.camera)} frames, the track {T}")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"track.fps must be positive, got {self.fps}")
        for name in ("shape", *_PER_FRAME):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"track.{name} contains values that are not finite")
        starts = self.clip_starts
        if T and (not starts or starts[0] != 0 or any(b <= a for a, b in zip(starts, starts[1:])) or starts[-1] >= T):
            raise ValueError(f"track.clip_starts must rise from 0 and stay below {T}, got {starts}")

    def _check_sane(self) -> None:
        """Raise ValueError for what no motion is, and what only a damaged file or a program's slip says."""
        if self.fps > FASTEST:
            raise ValueError(f"{self.fps:g} frames per second, more than {FASTEST:g}")
        for name, most in LARGEST.items():
            if (values := np.abs(getattr(self, name))).size and values.max() > most:
                raise ValueError(f"{name} has values up to {values.max():g}, more than {most:g}")

    def __len__(self) -> int:
        return len(self.rotation)

    @property
    def clips(self) -> list[slice]:
        """Frame range of each clip."""
        ends = self.clip_starts[1:] + (len(self),)
        return [slice(a, b) for a, b in zip(self.clip_starts, ends)]

    def __getitem__(self, frames: slice) -> "Track":
        """A contiguous range of frames (step 1). Raises TypeError for anything but a slice."""
        if not isinstance(frames, slice) or frames.step not in (None, 1):
            raise TypeError("a Track is indexed with a contiguous slice")
        a, b, _ = frames.indices(len(self))
        starts = (0,) + tuple(s - a for s in self.clip_starts if a < s < b)
        parts = {name: getattr(self, name)[a:b] for name in _PER_FRAME}
        return self.replace(camera=self.camera.at(slice(a, b)), clip_starts=starts, **parts)

    def replace(self, **changes: Any) -> "Track":
        """A copy with some fields changed; checked like a new one."""
        return dataclasses.replace(self, **changes)

    def column(self, name: str) -> np.ndarray:
        """One expression coefficient over time, (T,). Raises KeyError for an unknown name."""
        if name not in self.expression_names:
            raise KeyError(f"the track has no expression {name!r}; it has {', '.join(self.expression_names)}")
        return self.expression[:, self.expression_names.index(name)]

    def resample(self, fps: float) -> "Track":
        """The same motion at another frame rate: linear, slerp for rotations, no interpolation across clips.

        Frame i shows time i / fps of its clip, so a resampled clip keeps its duration to within a frame.
        """
        if fps == self.fps:
            return self
        pieces = []
        for clip in self.clips:
            part = self[clip]
            count = max(1, int(round(len(part) * fps / self.fps)))
            source = np.arange(len(part)) / self.fps
            at = np.minimum(np.arange(count) / fps, source[-1])
            lerp = lambda x: np.stack([np.interp(at, source, c) for c in x.reshape(len(x), -1).T], -1).reshape((count,) + x.shape[1:]) if x.size else np.zeros((count,) + x.shape[1:], x.dtype)  # noqa: E731
            nearest = np.clip(np.round(at * self.fps).astype(int), 0, len(part) - 1)
            pieces.append(part.replace(
                fps=fps, camera=part.camera.at(nearest), rotation=interpolate(part.rotation, source, at),
                valid=part.valid[nearest], **{n: lerp(getattr(part, n)) for n in ("expression", "translation", "gaze", "torso")}))
        return concatenate(pieces)

    def save(self, path: str | Path) -> None:
        """Write a versioned .npz without pickle, atomically; keys are the field names and `version`."""
        camera = np.zeros((), [("K", "f8", (3, 3)), ("world_to_camera", "f8", (len(self), 4, 4)), ("width", "i4"), ("height", "i4")])
        camera["K"], camera["world_to_camera"] = self.camera.K, self.camera.world_to_camera
        camera["width"], camera["height"] = self.camera.width, self.camera.height
        arrays = {name: getattr(self, name) for name in ("shape", *_PER_FRAME)}
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez_compressed(
                stream, version=VERSION, fps=self.fps, model_id=self.model_id, camera=camera,
                expression_names=np.array(self.expression_names, dtype=str), clip_starts=np.array(self.clip_starts, np.int64),
                meta=json.dumps(self.meta), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "Track":
        """Read a track file. Raises InputError when it is missing, damaged, or of a newer version."""
        try:
            with np.load(path, allow_pickle=False) as data:
                if "version" not in data.files or int(data["version"]) > VERSION:
                    raise InputError(f"{path} is not a track this version reads; update thnerf or fit it again")
                camera = data["camera"]
                track = cls(
                    fps=float(data["fps"]), model_id=str(data["model_id"]),
                    camera=Camera(camera["K"], camera["world_to_camera"], int(camera["width"]), int(camera["height"])),
                    expression_names=tuple(data["expression_names"].tolist()), clip_starts=tuple(data["clip_starts"].tolist()),
                    meta=json.loads(str(data["meta"])), **{name: data[name] for name in ("shape", *_PER_FRAME)})
            track._check_sane()
            return track
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; make a track with thnerf fit") from None
        except InputError:
            raise
        except Exception as error:  # zipfile, numpy and json each raise their own kinds on damaged files
            raise InputError(f"{path} is not a readable track ({unreadable(error)}); fit or export it again") from None


def concatenate(tracks: Sequence[Track]) -> Track:
    """Join tracks of one subject; each keeps its clip starts. Raises ValueError on mixed models, fps, names or shapes."""
    if not tracks:
        raise ValueError("nothing to concatenate")
    first = tracks[0]
    for other in tracks[1:]:
        if other.model_id != first.model_id:
            raise ValueError(f"tracks of different face models ({first.model_id}, {other.model_id}) cannot be mixed; retarget one of them first")
        if other.fps != first.fps or other.expression_names != first.expression_names or other.torso.shape[1] != first.torso.shape[1]:
            raise ValueError("tracks differ in fps, expression names or torso size; resample or retarget them first")
        if not (np.array_equal(other.shape, first.shape) and np.allclose(other.camera.K, first.camera.K)):
            raise ValueError("tracks differ in identity or camera; they are not of one subject")
    offsets = np.cumsum([0] + [len(t) for t in tracks[:-1]])
    camera = Camera(first.camera.K, np.concatenate([t.camera.world_to_camera for t in tracks]), first.camera.width, first.camera.height)
    starts = tuple(int(o + s) for o, t in zip(offsets, tracks) for s in t.clip_starts)
    return first.replace(camera=camera, clip_starts=starts, **{n: np.concatenate([getattr(t, n) for t in tracks]) for n in _PER_FRAME})
