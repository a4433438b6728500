"""Picture and landmark metrics on arrays: what each number of metrics.json means, exactly.

Pictures are (H,W,3) uint8 RGB. Landmarks are iBUG-68 points (T,68,2) px, a frame of NaN where the detector
found no face; landmark metrics leave out frames where either the truth or the render has none (and report how
many were used), so nothing is ever measured on interpolated points. `clip_starts` are the first frames
of the stretches; nothing temporal crosses one. "None" becomes null in JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from recon.landmarks import interocular, mouth_opening

IMAGE_KEYS = ("psnr_full", "psnr_face", "psnr_mouth", "ssim_full", "ssim_face", "ssim_mouth")
LANDMARK_KEYS = ("lmd_px", "lmd_iod", "mouth_correlation", "jitter_ratio", "av_offset_frames")
KEYS = IMAGE_KEYS + LANDMARK_KEYS
SETTINGS = ("truth", "reconstruct", "audio", "frozen_mouth", "shuffled")

MOUTH = slice(48, 68)
"""iBUG points 49–68, counted from one."""
STEADY = (36, 39, 42, 45, 27, 28, 29, 30)
"""Eye corners and the bridge of the nose, counted from zero: what does not move with speech."""
FACE_MARGIN, MOUTH_MARGIN = 0.10, 0.25
LONGEST_LAG = 10
"""Offsets are looked for up to this many frames either way (0.4 s at 25 fps)."""
_CONSTANT = 1e-6  # a mouth opening (in iod) that varies less than this does not move
_K1, _K2, _WINDOW, _SIGMA = 0.01, 0.03, 11, 1.5

Box = tuple[int, int, int, int]


def landmark_box(points: np.ndarray, margin: float, width: int, height: int) -> Box | None:
    """Bounds of (N,2) px, widened on every side by `margin` of their own width or height: (left, top, right, bottom).

    Whole px, rounded outwards, inside the picture, half-open; None when a point is not finite or nothing is left.
    """
    if not np.isfinite(points).all():
        return None
    low, high = points.min(0), points.max(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    left, top = (int(v) for v in np.maximum(np.floor(low), 0))
    right, bottom = (int(v) for v in np.minimum(np.ceil(high), (width, height)))
    return (left, top, right, bottom) if right > left and bottom > top else None


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio, dB, of uint8 pictures over all channels together; infinite when they are equal."""
    error = np.square(truth.astype(np.float64) - image).mean()
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def ssim_map(truth: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004), (H−10,W−10) float64: Gaussian window 11 × 11, σ 1.5, K 0.01 and 0.03.

    Mean of the three channels; only windows that lie inside the picture. Entry (r, c) has its centre at pixel (r+5, c+5).
    """
    import cv2

    half = _WINDOW // 2
    if min(truth.shape[:2]) < _WINDOW:
        return np.zeros((0, 0))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / _SIGMA) ** 2)
    taps /= taps.sum()
    blur = lambda x: cv2.sepFilter2D(x, cv2.CV_64F, taps, taps)[half:-half, half:-half]  # noqa: E731
    x, y = truth.astype(np.float64), image.astype(np.float64)
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    return (((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean(-1)


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """Mean of `ssim_map`; NaN for pictures smaller than its window."""
    values = ssim_map(truth, image)
    return float(values.mean()) if values.size else math.nan


def image_metrics(truth: np.ndarray, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The six IMAGE_KEYS of one frame, float64. points (68,2): the truth's landmarks, which place the boxes.

    Face box: bounds of the 68 points + 10 %; mouth box: points 49–68 + 25 %. NaN where the truth has no landmarks,
    or where a box is smaller than the SSIM window.
    """
    height, width = truth.shape[:2]
    similarity = ssim_map(truth, image)
    boxes = [(0, 0, width, height), landmark_box(points, FACE_MARGIN, width, height), landmark_box(points[MOUTH], MOUTH_MARGIN, width, height)]
    out = np.full(6, np.nan)
    for i, box in enumerate(boxes):
        if box is None:
            continue
        left, top, right, bottom = box
        out[i] = psnr(truth[top:bottom, left:right], image[top:bottom, left:right])
        # The windows inside the box: the same as cropping first.
        inside = similarity[top : bottom - _WINDOW + 1, left : right - _WINDOW + 1] if min(bottom - top, right - left) >= _WINDOW else similarity[:0]
        out[3 + i] = inside.mean() if inside.size else np.nan
    return out


def mean_of_frames(values: np.ndarray) -> float | None:
    """Mean over frames, NaN left out; None when nothing is left or a frame is infinite (PSNR of equal pictures)."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) and np.isfinite(kept).all() else None


def both_found(truth: np.ndarray, render: np.ndarray) -> np.ndarray:
    """(T,) bool: frames in which the detector found a face in both pictures."""
    return np.isfinite(truth).all((1, 2)) & np.isfinite(render).all((1, 2))


def landmark_distance(truth: np.ndarray, render: np.ndarray) -> tuple[float | None, float | None]:
    """LMD in px and in interocular distances (the truth's, frame by frame).

    Mean over frames and points 49–68 of the distance after subtracting each picture's lip centroid; None without frames.
    """
    kept = both_found(truth, render)
    if not kept.any():
        return None, None
    centred = [p[kept][:, MOUTH] - p[kept][:, MOUTH].mean(1, keepdims=True) for p in (truth.astype(np.float64), render.astype(np.float64))]
    distance = np.linalg.norm(centred[0] - centred[1], axis=-1).mean(1)
    return float(distance.mean()), float((distance / interocular(truth[kept])).mean())


def pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    """Correlation coefficient; None when either hardly varies or there are fewer than three values."""
    if len(a) < 3 or a.std() < _CONSTANT or b.std() < _CONSTANT:
        return None
    return float(np.clip(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()), -1, 1))


def mouth_correlation(truth: np.ndarray, render: np.ndarray) -> float | None:
    """Pearson correlation of the mouth openings (inner-lip gap / interocular distance, each picture's own) over all frames.

    0 where either is constant; None where no frame has landmarks in both.
    """
    kept = both_found(truth, render)
    if not kept.any():
        return None
    return pearson(mouth_opening(truth[kept].astype(np.float64)), mouth_opening(render[kept].astype(np.float64))) or 0.0


def jitter_ratio(truth: np.ndarray, render: np.ndarray, clip_starts: Sequence[int] = (0,)) -> float | None:
    """RMS second difference in time of the eye corners and nose bridge, render over truth; 1 is as steady as the footage.

    Only triples of consecutive frames of one stretch, all with landmarks in both. None without such a triple or when the truth stands still.
    """
    kept = both_found(truth, render)
    sums = np.zeros(2)
    for piece in pieces(len(truth), clip_starts):
        use = kept[piece]
        triples = use[2:] & use[1:-1] & use[:-2]
        for i, points in enumerate((truth, render)):
            p = points[piece][:, STEADY].astype(np.float64)
            sums[i] += np.square((p[2:] - 2 * p[1:-1] + p[:-2])[triples]).sum()
    return float(math.sqrt(sums[1] / sums[0])) if sums[0] > 0 else None


def av_offset(truth: np.ndarray, render: np.ndarray, clip_starts: Sequence[int] = (0,), longest: int = LONGEST_LAG) -> int | None:
    """The lag in frames, at most `longest` either way, at which the rendered mouth opening correlates best with the real one.

    Positive: the picture is late. Pairs are formed within stretches and pooled; the smaller lag wins a tie. None where
    either opening is constant, or correlates positively at no lag. Measured against the real picture, not the sound: real mouths
    follow sound energy too loosely (0.2–0.6) to place a frame.
    """
    kept = both_found(truth, render)
    opening = np.full((2, len(truth)), np.nan)
    for i, points in enumerate((truth, render)):
        opening[i, kept] = mouth_opening(points[kept].astype(np.float64))
    best: tuple[float, int] | None = None
    for lag in sorted(range(-longest, longest + 1), key=abs):
        pairs = []
        for piece in pieces(len(truth), clip_starts):
            real, made = opening[0, piece], opening[1, piece]
            count = len(real) - abs(lag)
            # The overlap must keep three quarters of a stretch, or few pairs would make a chance peak.
            if 4 * count >= max(12, 3 * len(real)):
                pairs.append(np.stack([real[max(0, -lag) :][:count], made[max(0, lag) :][:count]]))
        if not pairs:
            continue
        joined = np.concatenate(pairs, 1)
        joined = joined[:, np.isfinite(joined).all(0)]
        value = pearson(*joined)
        if value is not None and value > 0 and (best is None or value > best[0] + 1e-9):
            best = (value, lag)
    return None if best is None else best[1]


def pieces(frames: int, clip_starts: Sequence[int]) -> list[slice]:
    """The stretches that begin at `clip_starts`, covering `frames`."""
    starts = [*clip_starts, frames]
    return [slice(a, b) for a, b in zip(starts, starts[1:])]


@dataclass
class Measurement:
    """Collects one setting frame by frame; memory per frame is a few hundred bytes of numbers, no picture."""

    images: list[np.ndarray] = field(default_factory=list)
    truth: list[np.ndarray] = field(default_factory=list)
    render: list[np.ndarray] = field(default_factory=list)

    def add(self, truth: np.ndarray, image: np.ndarray, truth_points: np.ndarray, points: np.ndarray) -> None:
        """One frame: both pictures (H,W,3) uint8, both landmarks (68,2) px or NaN."""
        self.images.append(image_metrics(truth, image, truth_points))
        self.truth.append(truth_points)
        self.render.append(points)

    def result(self, clip_starts: Sequence[int] = (0,)) -> dict[str, float | int | None]:
        """The block of metrics.json: KEYS, then `landmark_frames` (face found in both) and `box_frames` (in the truth)."""
        images, truth, render = np.array(self.images), np.array(self.truth), np.array(self.render)
        out: dict[str, float | int | None] = {key: mean_of_frames(images[:, i]) for i, key in enumerate(IMAGE_KEYS)}
        out["lmd_px"], out["lmd_iod"] = landmark_distance(truth, render)
        out["mouth_correlation"] = mouth_correlation(truth, render)
        out["jitter_ratio"] = jitter_ratio(truth, render, clip_starts)
        out["av_offset_frames"] = av_offset(truth, render, clip_starts)
        out["landmark_frames"] = int(both_found(truth, render).sum())
        out["box_frames"] = int(np.isfinite(truth).all((1, 2)).sum())
        return out

    def openings(self) -> tuple[np.ndarray, np.ndarray]:
        """Mouth opening of truth and render, (T,) each, NaN without landmarks."""
        return mouth_opening(np.array(self.truth, np.float64)), mouth_opening(np.array(self.render, np.float64))


def format_table(result: dict[str, Any]) -> str:
    """The metrics of `thnerf.evaluate.evaluate` as a table in text; – where a value is null."""
    names = ("PSNR", "face", "mouth", "SSIM", "face", "mouth", "LMD px", "LMD iod", "mouth r", "jitter", "offset")
    digits = (2, 2, 2, 4, 4, 4, 2, 4, 3, 2, 0)
    lines = [f"{'held-out frames: ' + str(result['frames']):<22}" + "".join(f"{n:>9}" for n in names)]
    for setting in SETTINGS:
        block = result.get(setting)
        if block is None:
            lines.append(f"{setting:<22}{result.get('notes', {}).get(setting, 'not measured')}")
            continue
        cells = ["–" if block.get(key) is None else f"{block[key]:.{d}f}" for key, d in zip(KEYS, digits)]
        lines.append(f"{setting:<22}" + "".join(f"{c:>9}" for c in cells))
    if "run" in result.get("notes", {}):
        lines.append(f"warning: {result['notes']['run']}")
    return "\n".join(lines)
