"""Dubbing: the original footage, frame by frame and at its own times, with a new mouth.

Head, eyes, shoulders and everything else stay as they were filmed; inside a soft mask over the lower face the subject is drawn with the head
pose of that very moment and a mouth that says the new words. The mask covers the lower face as it was and as it will be, so that no old chin
shows below a new one; outside it every pixel is the footage's. The drawn skin takes on the footage's colour along the rim of the mask.

The video is exactly as long as the footage: sound that is longer is cut (with a note), after sound that is shorter the mouth rests.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from recon.model import MorphableModel
from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import axis_angle_to_matrix, interpolate
from render.video import frame_times, timed_frames
from thnerf.direction import Direction, direct
from thnerf.fullframe import Clip, PastedRenderer, source_clips
from thnerf.manner import Manner, mouth_columns
from thnerf.performance import Speech, spoken
from thnerf.synthesis import Renderer

GROW, SOFT = 0.05, 0.09
"""How far the mask goes beyond the lower face, and the width of its soft edge inside that, in face widths."""
FADE = 0.2
"""Seconds over which the new mouth comes and goes around frames without a usable face."""
_NOSE = {"mediapipe478": 2, "ibug68": 33}  # the landmark below the nose
_EDGE = 0.82  # of the half width of the face; beyond it the cheek's outline would be redrawn


def at_times(track: Track, times: np.ndarray) -> Track:
    """One clip at any times (N,) s from its first frame: linear, slerp for rotations, held at its ends."""
    own = np.arange(len(track)) / track.fps
    at = np.clip(times, 0, own[-1])
    nearest = np.clip(np.round(at * track.fps).astype(int), 0, len(track) - 1)

    def lerp(x: np.ndarray) -> np.ndarray:
        columns = [np.interp(at, own, c) for c in x.reshape(len(x), -1).T]
        return np.stack(columns, -1).reshape((len(at),) + x.shape[1:]) if columns else np.zeros((len(at),) + x.shape[1:])

    parts = {n: lerp(getattr(track, n)) for n in ("expression", "translation", "gaze", "torso")}
    return track.replace(camera=track.camera.at(nearest), rotation=interpolate(track.rotation, own, at), valid=track.valid[nearest], clip_starts=(0,), **parts)


def dubbed(subject: Subject, run_dir: Path, speech: Speech, direction: Direction, device: str = "auto") -> tuple["DubRenderer", Track, np.ndarray]:
    """Renderer and track (whole frames, as many as the footage has) of the subject's longest clip with a new mouth, and the times (N,) s of its frames.

    Raises InputError when the footage has gone, or the face model is not at hand; warns when the sound is longer than the footage.
    """
    from thnerf.audio import RATE
    from thnerf.trainer import load_renderer

    clips = source_clips(subject, "--dub")
    clip = max(clips, key=lambda c: c.end - c.start)
    if len(clips) > 1:
        warnings.warn(f"the subject has {len(clips)} clips; the longest, {clip.path.name}, is dubbed", stacklevel=2)
    times = frame_times(clip.path)
    length, sound = times[-1] + 1 / clip.fps, len(speech.understood) / RATE
    if sound > length + 1 / clip.fps:
        warnings.warn(f"the sound lasts {sound:.1f} s and the footage {length:.1f} s: the last {sound - length:.1f} s are not spoken", stacklevel=2)
    source = at_times(subject.aligned(run_dir)[clip.start : clip.end], times)
    base = subject.track.fps
    frames = int(np.ceil(length * base)) + 1
    padded = np.pad(speech.understood[: round(frames / base * RATE)], (0, max(0, round(frames / base * RATE) - len(speech.understood))))
    said = at_times(spoken(subject, run_dir, padded, direction, "still"), times)
    x, mouth = source.expression.astype(np.float64), mouth_columns(source.expression_names)
    x[:, mouth] = said.expression[:, mouth]
    x = Manner.of(subject.track, subject.model).bounded(x)
    motion = direct(source.replace(expression=x, fps=clip.fps, meta={"origin": "dub"}), direction, subject.track, subject.model)
    renderer = DubRenderer(load_renderer(run_dir, subject, device), motion, source, clip, subject.model, (frame for _, frame in timed_frames(clip.path)))
    return renderer, motion.replace(camera=renderer.whole), times


class DubRenderer(PastedRenderer):
    """A Renderer of whole frames: those of `sources`, with the lower face drawn by `renderer`.

    track (T): the new motion, in the fitted camera. before (T): that of the footage, frame by frame.
    """

    def __init__(self, renderer: Renderer, track: Track, before: Track, clip: Clip, model: MorphableModel, sources: Iterator[np.ndarray]) -> None:
        """Raises InputError when the face model has no landmarks around the mouth."""
        super().__init__(renderer, track, [clip], np.zeros(len(track), int), sources)
        self.clip, self.amount = clip, presence(before.valid, clip.fps)
        outline = lower_face(model, [before, track], clip.side)
        # One region for all frames: what is drawn, and how its background is cut, then is the same throughout.
        room = GROW * np.ptp(outline[..., 0], axis=1).max() + 2
        low = np.clip(np.floor(outline.min((0, 1)) - room), 0, clip.side - 8).astype(int)
        high = np.clip(np.ceil(outline.max((0, 1)) + room), low + 8, clip.side).astype(int)
        self.box, self.outline = (int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])), outline - low
        width, height = clip.width - clip.width % 2, clip.height - clip.height % 2
        shift = np.array([[1.0, 0, clip.x], [0, 1, clip.y], [0, 0, 1]])
        self.whole = Camera(shift @ track.camera.resized(clip.side, clip.side).K, track.camera.world_to_camera, width, height)

    def region(self, index: int) -> tuple[int, int, int, int]:
        """The lower face in all frames."""
        return self.box

    def paste(self, window: np.ndarray, drawn: np.ndarray, index: int) -> None:
        """Blend `drawn` into `window` under the mask of frame `index`, in place."""
        mask = soft_hull(self.outline[index], *self.box[2:]) * self.amount[index]
        rim = mask * (1 - mask)
        if rim.sum() > 1:
            drawn = drawn + (rim[..., None] * (window - drawn)).sum((0, 1)) / rim.sum()
        inside = mask > 0
        window[inside] += mask[inside][:, None] * (np.clip(drawn[inside], 0, 1) - window[inside])


def presence(valid: np.ndarray, fps: float) -> np.ndarray:
    """(T,) bool → (T,) weights: 0 where there is no usable face, rising to 1 over FADE s beside it."""
    reach = max(1, round(FADE * fps))
    away = np.full(len(valid), reach)
    for i in np.flatnonzero(~valid):
        a, b = max(0, i - reach), min(len(valid), i + reach + 1)
        away[a:b] = np.minimum(away[a:b], np.abs(np.arange(a, b) - i))
    t = away / reach
    return t * t * (3 - 2 * t)


def lower_face(model: MorphableModel, tracks: list[Track], side: int) -> np.ndarray:
    """Landmarks of the lower face in crop px, (T,N,2): from below the nose to the chin, of every track's expression, one after another.

    Raises InputError when the face model has none of the known landmark schemes.
    """
    scheme = next((s for s in _NOSE if s in model.landmarks), None)
    if scheme is None:
        raise InputError(f"--dub needs landmarks on the face model, and {model.model_id} has none; fit the subject with the default model")
    mean = model.points(model.mean, scheme)
    half = np.ptp(mean[:, 0]) / 2
    chosen = np.flatnonzero((mean[:, 1] <= mean[_NOSE[scheme], 1]) & (np.abs(mean[:, 0]) < _EDGE * half) & (mean[:, 2] > mean[:, 2].min() + 0.2 * np.ptp(mean[:, 2])))
    basis = model.points(model.expression_basis, scheme)[:, chosen]
    found = []
    for track in tracks:
        neutral = (mean + np.tensordot(track.shape, model.points(model.shape_basis[: len(track.shape)], scheme), 1))[chosen]
        points = neutral + np.tensordot(track.expression, basis, 1)
        world = np.einsum("tij,tnj->tni", axis_angle_to_matrix(track.rotation), points) + track.translation[:, None]
        found.append(track.camera.resized(side, side).project(world))
    return np.concatenate(found, 1)


def soft_hull(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The convex hull of points (N,2) px, grown and softened: (height,width) float32 in [0,1], exactly 0 outside."""
    import cv2

    across = float(np.ptp(points[:, 0]))
    filled = np.zeros((height, width), np.uint8)
    hull = cv2.convexHull(points.astype(np.float32))
    cv2.fillConvexPoly(filled, np.round(hull).astype(np.int32), 1)
    grow = max(1, round(GROW * across))
    filled = cv2.dilate(filled, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1)))
    filled[:, [0, -1]] = 0
    filled[[0, -1]] = 0
    t = np.clip(cv2.distanceTransform(filled, cv2.DIST_L2, 3) / max(1.0, SOFT * across + grow), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)
