"""Facial landmarks: one interface over several detectors, and the distances other stages measure on them.

A detector sees every frame on its own (no tracking state), so the same picture always gives the same
points and nothing lags behind. Points are px of the given frame, pixel centres at +0.5.
"left" and "right" are the subject's.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import sys
import tempfile
import warnings
import weakref
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Protocol, Sequence

import numpy as np

from recon.assets import asset
from render.files import InputError, unreadable

LONGEST_SIDE = 1280  # px; larger frames are reduced before detection, the networks see 256 px anyway

# Outlines in MediaPipe's 478-point topology, each from the subject's right to the left (left to right in the picture).
JAW = (127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356)
OUTER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
INNER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
FACE_OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
             152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
LIDS = {"left": (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
        "right": (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)}
IRIS = {"left": (473, 474, 475, 476, 477), "right": (468, 469, 470, 471, 472)}

_IBUG_FROM_478 = JAW + (
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
    168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91,  # outer lip
    78, 81, 13, 311, 308, 402, 14, 178)  # inner lip
LIP_PAIRS = {478: ((13, 14), (82, 87), (312, 317)), 68: ((62, 66), (61, 67), (63, 65))}
"""Upper and lower inner lip, three pairs at the middle, by number of landmarks."""
_OUTER_CORNERS = {478: (263, 33), 68: (45, 36)}
_LID_PAIRS = {478: (((386, 374), (385, 380), (387, 373)), ((159, 145), (158, 153), (160, 144))),
              68: (((43, 47), (44, 46)), ((37, 41), (38, 40)))}
_EYE_CORNERS = {478: ((263, 362), (33, 133)), 68: ((45, 42), (36, 39))}
SCHEMES = {478: "mediapipe478", 68: "ibug68"}


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one clip. points (T,N,2) float32 px, NaN where invalid; valid (T,) bool; faces_seen (T,) int.

    notes: sentences for the user (several faces, frames without one).
    """

    points: np.ndarray
    valid: np.ndarray
    faces_seen: np.ndarray
    notes: tuple[str, ...] = field(default=())

    @property
    def scheme(self) -> str:
        """Name of the landmark embedding these points belong to: 'mediapipe478' or 'ibug68'."""
        return SCHEMES[self.points.shape[1]]


class Detector(Protocol):
    """Anything that finds the landmarks of one person in a stream of frames."""

    def detect(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """frames: (H,W,3) uint8 RGB each, consumed one at a time."""
        ...


def load_detector(name: str = "mediapipe") -> Detector:
    """'mediapipe', 'face-alignment', 'face-alignment:FOLDER' with its weights, or the path of an .npz with `points` (T,478|68,2) px and `valid` (T,).

    Raises InputError for an unknown name, a missing package, missing weights or a damaged file.
    """
    if name == "mediapipe":
        return MediaPipeDetector(threads=min(4, os.cpu_count() or 1))
    kind, _, folder = str(name).partition(":")
    if kind == "face-alignment":
        return FaceAlignmentDetector(Path(folder) if folder else None)
    if str(name).endswith(".npz"):
        return StoredDetector(Path(name))
    raise InputError(f"unknown detector {name!r}; use mediapipe, face-alignment, face-alignment:FOLDER or the path of an .npz with landmarks")


class MediaPipeDetector:
    """MediaPipe Face Landmarker (Kartynnik et al. 2019; Grishchenko et al. 2020): 478 points with irises, about 140 frames/s and core."""

    def __init__(self, faces: int = 2, threads: int = 1) -> None:
        """faces: how many to look for; the largest is followed. threads: frames of a clip looked at together, each by a network of its own.

        Raises InputError when mediapipe or its weights are missing.
        """
        try:
            with quiet_native_log():
                import mediapipe
                from mediapipe.tasks.python import vision
                from mediapipe.tasks.python.core.base_options import BaseOptions
        except ImportError as error:
            raise InputError(f"the mediapipe detector cannot be imported ({error}); install it with: pip install 'mediapipe>=1.2'") from error
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=asset("face_landmarker.task").read_bytes()),
            running_mode=vision.RunningMode.IMAGE, num_faces=faces)
        self._image = lambda frame: mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame))
        self._threads, self._idle = threads, queue.SimpleQueue[Any]()
        with quiet_native_log():
            for _ in range(threads):
                network = vision.FaceLandmarker.create_from_options(options)
                network.__class__ = without_del(vision.FaceLandmarker)
                weakref.finalize(self, network.close).atexit = False
                network.detect(self._image(np.zeros((64, 64, 3), np.uint8)))  # its graph logs while it starts
                self._idle.put(network)

    def candidates(self, frame: np.ndarray) -> np.ndarray:
        """All faces of one frame (H,W,3) uint8 → (F,478,2) float32 px; F may be 0."""
        height, width = frame.shape[:2]
        network = self._idle.get()
        try:
            found = network.detect(self._image(reduced(frame, LONGEST_SIDE))).face_landmarks
        finally:
            self._idle.put(network)
        points = [[(p.x, p.y) for p in face] for face in found]
        return np.array(points, np.float32).reshape(-1, 478, 2) * np.array([width, height], np.float32)

    def detect(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """The largest face of a clip, frame by frame. Warns when there are several."""
        if self._threads == 1:
            return follow_largest((self.candidates(frame) for frame in frames), 478)
        with ThreadPoolExecutor(self._threads) as pool:
            return follow_largest(_ahead(pool, self.candidates, frames, 2 * self._threads), 478)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[np.ndarray], np.ndarray], frames: Iterable[np.ndarray], depth: int) -> Iterator[np.ndarray]:
    """work(frame) of every frame, in order, at most `depth` of them in the pool at a time."""
    waiting: deque[Future[np.ndarray]] = deque()
    for frame in frames:
        waiting.append(pool.submit(work, frame))
        if len(waiting) == depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def without_del(task: type) -> type:
    """The task class without its __del__, which fails noisily when it runs after the interpreter's threads have ended."""
    return type(task.__name__, (task,), {"__del__": lambda self: None})


class FaceAlignmentDetector:
    """face-alignment's 2D FAN (Bulat & Tzimiropoulos 2017): 68 points, about 1 frame/s on a CPU."""

    WEIGHTS = ("s3fd-619a316812.pth", "2DFAN4-cd938726ad.zip")

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where the weights lie; PyTorch's own, which TORCH_HOME moves, where it is not named.

        Raises InputError when the package or its weights are missing; nothing is downloaded.
        """
        home = folder or Path(os.environ.get("TORCH_HOME", Path.home() / ".cache" / "torch")) / "hub" / "checkpoints"
        try:
            import face_alignment
        except ImportError as error:
            raise InputError("the face-alignment detector is not installed; install it with: pip install 'thnerf[face-alignment]'") from error
        missing = [name for name in self.WEIGHTS if not (home / name).exists()]
        if missing:
            raise InputError(f"face-alignment needs its weights {' and '.join(missing)} in {home}; put them there, name their folder with --detector face-alignment:FOLDER, or use --detector mediapipe")
        with _torch_hub(home, self.WEIGHTS) if folder else contextlib.nullcontext():
            self._network = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D, device="cpu", flip_input=False, compile=False,
                face_detector_kwargs={"path_to_detector": str(home / self.WEIGHTS[0])})

    def detect(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """The largest face of a clip, frame by frame."""
        return follow_largest((self.candidates(frame) for frame in frames), 68)

    def candidates(self, frame: np.ndarray) -> np.ndarray:
        """All faces of one frame (H,W,3) uint8 → (F,68,2) float32 px; F may be 0."""
        small = reduced(frame, LONGEST_SIDE)
        found = self._network.get_landmarks(small)
        points = np.asarray([] if found is None else found, np.float32).reshape(-1, 68, 2)
        return (points + 0.5) * np.float32(frame.shape[1] / small.shape[1])


@contextlib.contextmanager
def _torch_hub(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """While this is entered, PyTorch finds the files `names` of `folder` where it keeps downloads: packages that load weights ask it alone for the place."""
    import torch

    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        place = Path(hub) / "checkpoints"
        place.mkdir()
        for name in names:
            try:
                (place / name).symlink_to((folder / name).resolve())
            except OSError:  # a system that allows no links
                shutil.copyfile(folder / name, place / name)
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


class StoredDetector:
    """Landmarks found by any other program, read from an .npz: `points` (T,478|68,2) px and optionally `valid` (T,)."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file is missing, damaged or of another shape."""
        try:
            with np.load(path, allow_pickle=False) as data:
                points = np.asarray(data["points"], np.float32)
                valid = np.asarray(data["valid"], bool) if "valid" in data.files else np.isfinite(points).all((1, 2))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; give an .npz with landmarks or use --detector mediapipe") from None
        except Exception as error:  # numpy and zipfile each raise their own kinds on damaged files
            raise InputError(f"{path} is not a readable landmark file ({unreadable(error)}); it needs `points` (T,478,2) and `valid` (T,)") from None
        if points.ndim != 3 or points.shape[1] not in SCHEMES or points.shape[2] < 2 or valid.shape != points.shape[:1]:
            raise InputError(f"{path} needs points of shape (T,478,2) or (T,68,2) and valid (T,), got {points.shape} and {valid.shape}")
        self.path, self.points, self.valid, self._next = path, points[..., :2], valid & np.isfinite(points[..., :2]).all((1, 2)), 0

    def detect(self, frames: Iterable[np.ndarray]) -> Landmarks:
        """The next stored frames, as many as `frames` has; several clips take theirs in turn. Raises InputError when they run out."""
        count = sum(1 for _ in frames)
        start, self._next = self._next, self._next + count
        if self._next > len(self.points):
            raise InputError(f"{self.path} holds {len(self.points)} frames, the video has more; detect again on this video")
        valid = self.valid[start : self._next]
        return Landmarks(np.where(valid[:, None, None], self.points[start : self._next], np.nan), valid, valid.astype(int))


def follow_largest(candidates: Iterable[np.ndarray], points: int) -> Landmarks:
    """Choose one person through a clip: candidates yields (F,N,2) px a frame.

    Faces are chained to the nearest of earlier frames; the chain with the largest summed size wins. Chains
    that never share a frame with it are the same person coming back; one that does is somebody else.
    """
    chains: list[dict[str, Any]] = []
    seen: list[int] = []
    for index, faces in enumerate(candidates):
        seen.append(len(faces))
        free = list(range(len(chains)))
        for face in sorted(faces, key=_size, reverse=True):
            centre, size = face.mean(0), _size(face)
            near = [c for c in free if np.linalg.norm(chains[c]["centre"] - centre) < 0.6 * max(size, chains[c]["size"])]
            if near:
                best = min(near, key=lambda c: float(np.linalg.norm(chains[c]["centre"] - centre)))
                free.remove(best)
                chain = chains[best]
            else:
                chain = {"frames": {}, "total": 0.0}
                chains.append(chain)
            chain.update(centre=centre, size=size, total=chain["total"] + size)
            chain["frames"][index] = face
    out = np.full((len(seen), points, 2), np.nan, np.float32)
    valid = np.zeros(len(seen), bool)
    for chain in sorted(chains, key=lambda c: c["total"], reverse=True):
        frames = np.fromiter(chain["frames"], int)
        if not valid[frames].any():
            out[frames], valid[frames] = np.stack(list(chain["frames"].values())), True
    return Landmarks(out, valid, np.array(seen, int), _notes(np.array(seen), valid))


def _notes(seen: np.ndarray, valid: np.ndarray) -> tuple[str, ...]:
    notes = []
    if (several := int((seen > 1).sum())) > 0.05 * len(seen):
        notes.append(f"{several} of {len(seen)} frames show more than one face; the largest is followed, crop the clip to one person if that is the wrong one")
        warnings.warn(notes[-1], stacklevel=3)
    if valid.any() and not valid.all():
        notes.append(f"{int((~valid).sum())} of {len(valid)} frames show no usable face; they are bridged and left out of training")
    return tuple(notes)


def _size(face: np.ndarray) -> float:
    return float(np.ptp(face, axis=0).max())


def reduced(frame: np.ndarray, longest: int) -> np.ndarray:
    """(H,W,3) uint8, shrunk by area averaging so that no side exceeds `longest` px."""
    height, width = frame.shape[:2]
    if max(height, width) <= longest:
        return frame
    import cv2

    scale = longest / max(height, width)
    return cv2.resize(frame, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def quiet_native_log() -> Iterator[None]:
    """Send what native libraries write on stderr while they start (their own logging, no errors) to nowhere."""
    try:
        saved = os.dup(2)
    except OSError:  # no stderr at all, nothing to silence
        yield
        return
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def ibug68(points: np.ndarray) -> np.ndarray:
    """(…,478,2) → the 68 points of the iBUG scheme (…,68,2), zero-based as its points 1–68. 68 points pass through."""
    points = np.asarray(points)
    return points if points.shape[-2] == 68 else points[..., _IBUG_FROM_478, :]


def outer_eye_corners(points: np.ndarray) -> np.ndarray:
    """(…,478|68,2) → (…,2,2) px: [left, right] × [x, y]."""
    points = np.asarray(points)
    return points[..., _OUTER_CORNERS[points.shape[-2]], :]


def interocular(points: np.ndarray) -> np.ndarray:
    """(…,478|68,2) → (…,) px, the distance of the outer eye corners (iod)."""
    corners = outer_eye_corners(points)
    return np.linalg.norm(corners[..., 0, :] - corners[..., 1, :], axis=-1)


def inner_lip_gap(points: np.ndarray) -> np.ndarray:
    """(…,478|68,2) → (…,) px, distance between upper and lower inner lip, the mean of three pairs at the middle."""
    points = np.asarray(points)
    upper, lower = np.array(LIP_PAIRS[points.shape[-2]]).T
    return np.linalg.norm(points[..., upper, :] - points[..., lower, :], axis=-1).mean(-1)


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """(…,478|68,2) → (…,) inner-lip gap in units of the interocular distance."""
    return inner_lip_gap(points) / interocular(points)


def eye_opening(points: np.ndarray) -> np.ndarray:
    """(…,478|68,2) → (…,2) [left, right], lid gap over eye width: about 0.3 open, below 0.1 closed."""
    points = np.asarray(points)
    pairs, corners = np.array(_LID_PAIRS[points.shape[-2]]), np.array(_EYE_CORNERS[points.shape[-2]])
    gap = np.linalg.norm(points[..., pairs[..., 0], :] - points[..., pairs[..., 1], :], axis=-1).mean(-1)
    width = np.linalg.norm(points[..., corners[:, 0], :] - points[..., corners[:, 1], :], axis=-1)
    return gap / width
