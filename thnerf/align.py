"""Align a Track to the field that was learned from it: analysis by synthesis with the subject's own head.

A tracker's model of a face is poorer than the field that is learned from its Track, so the field can say where the tracker was off: every
frame's pose and conditions ψ take a few Gauss–Newton steps that lower the difference between the rendered head and the frame's pixels (Lucas
& Kanade 1981; for radiance fields iNeRF, Yen-Chen et al. 2021), held back by how far a tracker is off. All frames are treated alike, those held
out of training included, as in tracking itself: the field never sees those, and nothing but their own pose and coefficients is learned of them.
"""

from __future__ import annotations

import time
from typing import Callable, Iterable, Sequence

import numpy as np

from recon.model import MorphableModel
from recon.track import Track
from render.progress import progress
from render.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from thnerf.avatar import Avatar
from thnerf.dataset import Condition, head_rays, landmark_boxes
from thnerf.renderer import HeadRenderer

ROTATION, TRANSLATION, CONDITION, BLINK = 0.004, (0.4, 0.4, 1.5), 0.5, 0.1
"""How far a tracker is off: deviation of rotation (rad), of translation (mm, across and along the view), of ψ, and of its blinks: these are tracked well, learned late by the field, and
too quick to be interpolated."""
TORSO, MODE = (0.001, 0.001, 0.001, 0.002), 0.2
"""The same of the torso: shift (image widths), log-scale, angle (rad), and its modes."""
OVERSHOOT = 0.1  # by which coefficients may leave 0 to 1: at their bounds, where most of them are, they could not follow ψ else
PIXELS = 1800  # of the face that are compared, evenly spread
STEPS = 3
OPAQUE = 0.9  # opacity from which a pixel is the head's alone
NEIGHBOURS = 0.15  # weight of a pixel: those around it err alike
FARTHEST = 3.0  # deviations of the prior that one step may go
SPARSEST = 6  # frames between which corrections may still be interpolated: a tracker's errors change within a few


Look = Callable[[np.ndarray], "tuple[np.ndarray, np.ndarray]"]
"""Corrections (n,D) → pictures (n,pixels,3), and which pixels (pixels,) bool are to be compared."""


class Aligner:
    """Aligns frames of `track` to the avatar's field. fitted (n,): the training frames, whose coefficients say what changes together. background (H,W,3) float32 in [0,1]."""

    def __init__(self, avatar: Avatar, track: Track, fitted: np.ndarray, background: np.ndarray) -> None:
        self.avatar, self.track = avatar, track
        self.renderer = HeadRenderer(avatar, background)
        self.plate = _halved(background)
        self.psi, self.torso = avatar.condition.expression(track), avatar.condition.torso(track)
        self.lift = _lift(avatar.condition, track, fitted)
        modes, blinks = avatar.condition.modes, self.psi.shape[1] - avatar.condition.modes - 2
        self.deviation = np.array([ROTATION] * 3 + [*TRANSLATION] + [CONDITION] * modes + [BLINK] * blinks + [CONDITION] * 2)
        known = min(len(TORSO), self.torso.shape[1])
        self.torso_deviation = np.array([*TORSO[:known]] + [MODE] * (self.torso.shape[1] - known)) / avatar.condition.torso_scale

    def solve(self, index: int, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        """What one frame of the track is off by (6+K+T,): a turn (rad) and a shift (mm) of the head, ψ, and the features of the torso.

        picture (H,W,3) uint8; box of the face, px.
        """
        x0, y0, x1, y1 = box
        every = spacing(box)
        truth = picture[y0:y1:every, x0:x1:every].astype(np.float32) / 255
        to_part = np.array([[1 / every, 0, 0.5 - (x0 + 0.5) / every], [0, 1 / every, 0.5 - (y0 + 0.5) / every], [0, 0, 1]])  # pixel centres fall on pixel centres
        head = _descend(lambda deltas: self._heads(index, deltas, to_part @ self.track.camera.K, truth), truth, self.deviation)
        return np.concatenate([head, self._solve_torso(index, picture, head)])

    def _heads(self, index: int, deltas: np.ndarray, K: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A frame's head over its true picture (h,w,3). The K last of several corrections move one condition each."""
        n, count = len(deltas), self.psi.shape[1]
        which = np.maximum(np.arange(n) - (n - 1 - count), 0) if n > 1 else np.zeros(1, int)
        colour, opacity, _ = self._render(index, deltas, which, K, truth.shape[1], truth.shape[0])
        return (colour + (1 - opacity[..., None]) * truth).reshape(n, -1, 3), opacity[0].ravel() > OPAQUE

    def _render(self, index: int, deltas: np.ndarray, which: np.ndarray, K: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Colour (n,h,w,3) and opacity (n,h,w) of a frame's head under corrections (n,6+K), and their pose features (n,6)."""
        n, avatar, renderer, part = len(deltas), self.avatar, self.renderer, self.track[index : index + 1]
        still = {name: np.repeat(getattr(part, name), n, 0) for name in ("expression", "gaze", "torso", "valid")}
        moved = part.replace(rotation=_turned(part.rotation, deltas[:, :3]), translation=part.translation + deltas[:, 3:6], camera=part.camera.at(np.zeros(n, int)), **still)
        psi, pose = (self.psi[index] + deltas[:, 6:]).astype(np.float32), avatar.condition.pose(moved)
        rays = avatar.correction.apply_to_rays(avatar.pose_features(pose, psi), *head_rays(moved, np.arange(n)))
        blended = renderer.blended(psi[0], np.diag(deltas[-psi.shape[1] :, 6:]) if n > 1 else None)
        return *renderer.heads(blended, which, pose, *rays, K, width, height), pose

    def _solve_torso(self, index: int, picture: np.ndarray, head: np.ndarray) -> np.ndarray:
        """What the features of the torso are off by (T,), seen at half the size beside the head that has its correction (6+K,)."""
        truth, camera = _halved(picture.astype(np.float32) / 255), self.track.camera
        height, width = truth.shape[:2]
        row = int(np.ceil(self.avatar.row * height))
        if row >= height or not len(self.torso_deviation):
            return np.zeros(len(self.torso_deviation))
        colour, opacity, pose = self._render(index, head[None], np.zeros(1, int), camera.resized(width, height).K, width, height)
        colour, light = colour[0, row:], 1 - opacity[0, row:, :, None]

        def look(deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            out = np.empty((len(deltas), *colour.shape), np.float32)
            for k, delta in enumerate(deltas):
                shade, cover = self.renderer.shoulders(width, height, row, pose, (self.torso[index] + delta).astype(np.float32)[None])
                behind = self.plate[row:] + (shade[row:] - self.plate[row:]) * cover[row:, :, None]
                out[k] = colour + light * behind
            return out.reshape(len(deltas), -1, 3), light.ravel() > OPAQUE

        return _descend(look, truth[row:], self.torso_deviation)

    def corrected(self, deltas: np.ndarray) -> Track:
        """The track with corrections (T,6+K+T) applied; coefficients may leave 0 to 1 by OVERSHOOT."""
        track = self.track
        E, head = len(track.expression_names), len(self.deviation)
        change = deltas[:, 6:head] @ self.lift.T
        low, high = np.minimum(track.expression, -OVERSHOOT), np.maximum(track.expression, 1 + OVERSHOOT)
        return track.replace(rotation=_turned(track.rotation, deltas[:, :3]), translation=track.translation + deltas[:, 3:6], expression=np.clip(track.expression + change[:, :E], low, high),
                             gaze=track.gaze + change[:, E:].reshape(-1, 2, 2), torso=track.torso + deltas[:, head:] * self.avatar.condition.torso_scale, meta={**track.meta, "aligned": True})


def _descend(look: Look, truth: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The correction (D,) that brings a picture nearest to the truth (h,w,3): Gauss–Newton from 0 with the slopes found there, errors weighted as by Geman & McClure, and
    corrections by their deviations (D,)."""
    reach, delta = 0.5 * deviation, np.zeros(len(deviation))
    first, own = look(np.concatenate([delta[None], np.diag(reach)]))
    if not own.any():
        return delta
    now, slopes = first[0], ((first[1:] - first[0]) / reach[:, None, None].astype(np.float32)).reshape(len(deviation), -1)
    goal, prior = truth.reshape(-1, 3), np.diag(deviation**-2)
    for _ in range(STEPS):
        difference = goal - now
        square = np.square(difference).mean(1)
        spread = 1.4826 * np.median(np.sqrt(square[own])) + 2e-3
        weight = np.repeat(own * NEIGHBOURS / spread**2 / (1 + square / (2 * spread) ** 2) ** 2, 3)
        weighted = slopes * weight
        step = np.linalg.solve(weighted @ slopes.T + prior, weighted @ difference.ravel() - prior @ delta)
        tried = delta + np.clip(step, -FARTHEST * deviation, FARTHEST * deviation)
        then = look(tried[None])[0][0]
        if not weight @ np.square(goal - then).ravel() + tried @ prior @ tried < weight @ np.square(difference).ravel() + delta @ prior @ delta:
            break
        delta, now = tried, then
    return delta


def spacing(box: np.ndarray) -> int:
    """How many px apart the pixels are that are compared in the box (x0, y0, x1, y1) of a face."""
    x0, y0, x1, y1 = box
    return max(1, round(np.sqrt((x1 - x0) * (y1 - y0) / PIXELS)))


def _halved(picture: np.ndarray) -> np.ndarray:
    """A picture (H,W,3) float32 at half its size: means of 2 × 2 pixels."""
    import cv2

    return cv2.resize(picture, (picture.shape[1] // 2, picture.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _turned(rotation: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Rotations (T,3) turned further by (T,3), axis-angle."""
    return matrix_to_axis_angle(axis_angle_to_matrix(turn) @ axis_angle_to_matrix(rotation.astype(np.float64)))


def _lift(condition: Condition, track: Track, fitted: np.ndarray) -> np.ndarray:
    """The likeliest change of coefficients and gaze for a change of ψ (E+4,K), by what changes together in the fitted frames."""
    x = np.concatenate([track.expression, track.gaze.reshape(len(track), 4)], 1)[fitted].astype(np.float64)
    spread = np.cov(x.T, bias=True) + 1e-6 * np.eye(x.shape[1])
    matrix = condition.matrix.astype(np.float64)
    return spread @ matrix @ np.linalg.pinv(matrix.T @ spread @ matrix)


def align(avatar: Avatar, track: Track, model: MorphableModel, fitted: np.ndarray, background: np.ndarray, pictures: Callable[[np.ndarray], Iterable[np.ndarray]],
          ranges: Sequence[Sequence[int]] | None = None, seconds: float | None = None, stop: Callable[[], bool] = lambda: False) -> Track | None:
    """The track aligned to the avatar's field (on the CPU); None when `stop` asked to, or time is too short.

    pictures: (n,) frame numbers, rising → their pictures (H,W,3) uint8. ranges: first frames and ends (default: the clips) within which the corrections of frames that are left out,
    or not valid, are interpolated; a range without a valid frame stays as it is. seconds: what it may take; None: every second frame is aligned.
    """
    begun = time.monotonic()
    left = lambda: np.inf if seconds is None else seconds - (time.monotonic() - begun)  # noqa: E731
    ranges = [(clip.start, clip.stop) for clip in track.clips] if ranges is None else sorted((int(a), int(b)) for a, b in ranges)
    valid = np.flatnonzero(track.valid)
    if len(valid) == 0 or left() <= 0:
        return None
    aligner = Aligner(avatar, track, fitted, background)
    boxes = landmark_boxes(track, model, valid)[0]
    every = 2
    if seconds is not None:
        few, taken = valid[: min(len(valid), 6)], []
        for index, picture in zip(few, pictures(few)):
            if stop():
                return None
            start = time.monotonic()
            aligner.solve(int(index), picture, boxes[np.searchsorted(valid, index)])
            taken.append(time.monotonic() - start)
        every = max(1, int(np.ceil(np.median(taken) * len(valid) / max(left(), 1e-3))))
    if every > SPARSEST:
        return None
    parts = [(a, b, valid[(valid >= a) & (valid < b)]) for a, b in ranges]
    parts = [(a, b, part[np.r_[0 : len(part) - 1 : every, len(part) - 1]]) for a, b, part in parts if len(part)]
    chosen = np.concatenate([part for _, _, part in parts])
    deltas = np.full((len(track), len(aligner.deviation) + len(aligner.torso_deviation)), np.nan)
    with progress(None, "align", total=len(chosen)) as bar:
        for index, picture in zip(chosen, pictures(chosen)):
            if stop() or left() < -0.5 * (seconds or 0):  # a machine that has become much slower
                return None
            deltas[index] = aligner.solve(int(index), picture, boxes[np.searchsorted(valid, index)])
            bar.update()
    for a, b, part in parts:
        deltas[a:b] = np.stack([np.interp(np.arange(a, b), part, column) for column in deltas[part].T], 1)
    # What all frames are off by is the field's own frame of reference.
    return aligner.corrected(np.nan_to_num(deltas - np.nanmean(deltas[fitted], 0)))
