"""How each training frame was exposed: an affine change of colour per channel that lies over the whole picture, plate and person alike.

A camera that sets exposure and white balance by itself changes all of a picture, which no part of a scene explains. As in Urban Radiance Fields (Rematas et
al. 2022) a frame therefore sees colours c as (1 + gain) c + offset. The code of a frame has two parts: one is measured before training
where the frame shows the still background (every frame by itself, so flicker counts, too), the other is learned of all pixels and changes slowly.
Neutral (0) is the mean of the training frames; whatever is rendered has that one.
"""

from __future__ import annotations

from typing import Iterable, Iterator

import numpy as np
import torch

CELLS = 32  # cells along the shorter side of the picture whose means are compared
GAIN, OFFSET = 0.1, 0.03
"""Deviations expected of gain and offset: where the background has one brightness only, they say which of the two it was."""
NEIGHBOURS = 0.05  # weight of a cell: those around it err alike
NOISE = 0.002  # of the mean of a cell, at least: compression
ANOTHER = 0.25  # difference of colours that no exposure is asked to explain in `match`
CLIPPED = 0.98  # colours above it may have been cut off
KNOT_SECONDS = 1.0  # between the knots of the learned part
ROUNDS = 4


def cell_means(picture: np.ndarray) -> np.ndarray:
    """Means (h,w) or (h,w,3) float32 of square cells of a picture (H,W) or (H,W,3); CELLS along its shorter side."""
    import cv2

    height, width = picture.shape[:2]
    side = min(height, width) / CELLS
    return cv2.resize(picture.astype(np.float32), (round(width / side), round(height / side)), interpolation=cv2.INTER_AREA)


def measure(pictures: Iterable[np.ndarray], mattes: Iterable[np.ndarray], background: np.ndarray) -> np.ndarray:
    """Codes (T,2,3) float32 [gain, offset] of pictures (H,W,3) in 0 to 255 by their background, where mattes (H,W) in 0 to 255 and all about them are 0.

    Their `cell_means` will do as well. background (H,W,3) float32 in [0,1], the plate. Ridge regression of cells' means, with the errors
    weighted as by Geman & McClure: what moves behind the person is an outlier, and where little of the background is seen the code stays near 0.
    """
    import cv2

    plate = cell_means(background).reshape(-1, 3).T
    codes = []
    for picture, matte in zip(pictures, mattes):
        seen = cell_means(picture).reshape(-1, 3).T / 255
        free = cv2.dilate(cell_means(matte), np.ones((3, 3), np.uint8)).ravel() < 1
        codes.append(_regress(plate, seen, free & (seen < CLIPPED) & (plate < CLIPPED)))
    return np.array(codes, np.float32).reshape(-1, 2, 3)


def match(drawn: np.ndarray, footage: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The code (2,3) under which `drawn` (H,W,3) float32 in [0,1] looks as `footage` does along the soft rim of a mask (H,W) in [0,1]; 0 where the mask has no rim.

    Where both differ by more than ANOTHER they show different things, from which nothing follows.
    """
    x, y = (cell_means(p).reshape(-1, 3).T for p in (drawn, footage))
    rim = (cell_means(mask * (1 - mask)).ravel() > 0.03) & (np.abs(y - x).max(0) < ANOTHER)
    return _regress(x, y, rim & (x < CLIPPED) & (y < CLIPPED)).astype(np.float32)


def _regress(plate: np.ndarray, seen: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[gain, offset] (2,3) of colours plate (3,n) → seen (3,n), where `used` (3,n) bool."""
    code, difference = np.zeros((2, 3)), seen - plate
    for k in range(3):
        x, y = plate[k, used[k]].astype(np.float64), difference[k, used[k]].astype(np.float64)
        if len(x) == 0:
            continue
        basis, rest = np.stack([x, np.ones_like(x)]), y - np.median(y)
        for _ in range(ROUNDS):
            square = np.square(rest)
            spread = 1.4826 * np.sqrt(np.median(square)) + NOISE
            weighted = basis * (NEIGHBOURS / spread**2 / (1 + square / (2 * spread) ** 2) ** 2)
            code[:, k] = np.linalg.solve(weighted @ basis.T + np.diag([GAIN**-2, OFFSET**-2]), weighted @ y)
            rest = y - code[:, k] @ basis
    return code


class Exposure(torch.nn.Module):
    """The codes of the training frames. measured (N,2,3) against the background plate; frame numbers index (N,) rising; clip_starts of their track; fps.

    mean (2,3) is their mean: what the plate, a median, differs by from the mean exposure, which is neutral. The learned part is linear between knots that
    lie about KNOT_SECONDS apart, and every clip has its own; over all frames its mean is 0.
    """

    def __init__(self, measured: np.ndarray, index: np.ndarray, clip_starts: tuple[int, ...], fps: float) -> None:
        super().__init__()
        self.index = np.asarray(index)
        lower, share, count = _knots(self.index, clip_starts, fps)
        self.knots = torch.nn.Parameter(torch.zeros(count, 2, 3))
        self.mean = np.asarray(measured, np.float32).mean(0)
        self.register_buffer("measured", torch.from_numpy(np.asarray(measured, np.float32) - self.mean))
        self.register_buffer("lower", torch.from_numpy(lower))
        self.register_buffer("share", torch.from_numpy(share.astype(np.float32)))
        weight = np.bincount(lower, 1 - share, count) + np.bincount(lower + 1, share, count + 1)[:count]
        self.register_buffer("weight", torch.from_numpy((weight / len(share)).astype(np.float32)))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Codes (B,2,3) of frames (B,), positions in the training set."""
        low, share = self.lower[frames], self.share[frames, None, None]
        high = torch.where(share[:, 0, 0] > 0, low + 1, low)
        mean = (self.weight[:, None, None] * self.knots).sum(0)
        return self.measured[frames] + (1 - share) * self.knots[low] + share * self.knots[high] - mean

    def expose(self, colour: torch.Tensor, frames: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Neutral colours (R,3) as the frames (B,) have them; which (R,): of which frame a colour is. What is too bright for a picture is cut off."""
        code = self(frames).index_select(0, which.long())
        return ((1 + code[:, 0]) * colour + code[:, 1]).clamp(max=1)

    @torch.no_grad()
    def code(self, frame: int) -> np.ndarray:
        """The code (2,3) of one frame, a position in the training set."""
        return self(torch.tensor([frame], device=self.lower.device))[0].cpu().numpy()

    def neutral(self, index: np.ndarray, pictures: Iterable[np.ndarray], mattes: Iterable[np.ndarray], background: np.ndarray) -> Iterator[np.ndarray]:
        """Pictures (H,W,3) uint8 of the frames numbered `index` with their exposure taken out, float32 in 0 to 255. background (H,W,3): the plate with neutral exposure.

        A frame that is not trained on has no code: its background alone is measured.
        """
        for number, picture, matte in zip(index, pictures, mattes):
            at = int(np.searchsorted(self.index, number))
            known = at < len(self.index) and self.index[at] == number
            yield neutral(picture, self.code(at) if known else measure([picture], [matte], background)[0])

    def penalty(self, frames: torch.Tensor) -> torch.Tensor:
        """Scalar: the mean square of the learned part of frames (B,), in the deviations expected."""
        return ((self(frames) - self.measured[frames]) / torch.tensor([[[GAIN], [OFFSET]]], device=self.knots.device)).square().mean()


def exposed(picture: np.ndarray, code: np.ndarray) -> np.ndarray:
    """A neutral picture (…,3) float32 in [0,1] under a code (2,3)."""
    return ((1 + code[0]) * picture + code[1]).clip(0, 1)


def neutral(picture: np.ndarray, code: np.ndarray) -> np.ndarray:
    """A picture (…,3) in [0,255] as it had been with neutral exposure, float32: the inverse of a code (2,3)."""
    return ((picture.astype(np.float32) - 255 * code[1]) / np.maximum(1 + code[0], 0.1)).astype(np.float32)


def _knots(index: np.ndarray, clip_starts: tuple[int, ...], fps: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The knot (N,) at or before each frame, how far (N,) in [0,1) it is towards the next, and how many there are. No frame lies between two clips' knots."""
    lower, share, count = np.zeros(len(index), int), np.zeros(len(index)), 0
    clip = np.searchsorted(clip_starts, index, "right")
    for c in np.unique(clip):
        own = np.flatnonzero(clip == c)
        length = max(int(index[own[-1]] - index[own[0]]), 1)
        pieces = max(1, round(length / fps / KNOT_SECONDS))
        at = (index[own] - index[own[0]]) / length * pieces
        lower[own] = count + at.astype(int)
        share[own] = at - at.astype(int)
        count += pieces + 1
    return lower, share, count
