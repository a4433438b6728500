"""Picture, landmark and region metrics on arrays: what each number of metrics.json means, exactly.

Pictures are (H,W,3) uint8 RGB. Landmarks are iBUG-68 points (T,68,2) px, a frame of NaN where the detector
found no face; landmark metrics leave out frames where either the truth or the render has none (and report how
many were used), so nothing is ever measured on interpolated points. `clip_starts` are the first frames
of the stretches; nothing temporal crosses one. "None" becomes null in JSON.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from recon.landmarks import eye_opening, interocular, mouth_opening

IMAGE_KEYS = ("psnr_full", "psnr_face", "psnr_mouth", "ssim_full", "ssim_face", "ssim_mouth")
LANDMARK_KEYS = ("lmd_px", "lmd_iod", "mouth_correlation", "mouth_amplitude", "jitter_ratio", "av_offset_frames")
REGION_KEYS = ("psnr_seam", "eye_correlation", "jitter_background", "jitter_edge", "jitter_outside")
KEYS = IMAGE_KEYS + LANDMARK_KEYS + REGION_KEYS
SETTINGS = ("truth", "reconstruct", "unaligned", "audio", "frozen_mouth", "shuffled")

MOUTH = slice(48, 68)
"""iBUG points 49–68, counted from one."""
STEADY = (36, 39, 42, 45, 27, 28, 29, 30)
"""Eye corners and the bridge of the nose, counted from zero: what does not move with speech."""
JAW = slice(3, 14)
"""iBUG points 4–14, counted from one: the jaw line without its ends at the ears. Under it the neck begins."""
FACE_MARGIN, MOUTH_MARGIN = 0.10, 0.25
SEAM_WIDTH = 10 / 256
"""Half width of the band around the neck line, in image heights: 10 px at 256 px."""
EMPTY_MATTE = 12
"""A pixel is outside of the person where the matte (0 to 255) is at most this (5 %)."""
EDGE_WIDTH = 3 / 256
"""Reach of the person's edge outside of the matte, in image heights: 3 px at 256 px. There footage shows the person's soft outline, its motion and
what the codec makes of it, and a perfect render shows them, too; only further out is it background."""
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


def seam_band(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The pixels around the neck line of a picture, (H,W) bool: those whose centre lies within SEAM_WIDTH of it.

    points (68,2) px. The neck line is the polyline through iBUG points 4–14 (the underside of the jaw), where the head ends over neck and
    collar; both sides count, and a pixel counts once. All False when one of these points is not finite.
    """
    line = points[JAW].astype(np.float64)
    band = np.zeros((height, width), bool)
    if not np.isfinite(line).all():
        return band
    reach = SEAM_WIDTH * height
    left, top = np.clip(np.floor(line.min(0) - reach), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(line.max(0) + reach), 0, (width, height)).astype(int)
    centre = np.stack(np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5), -1)
    for a, b in zip(line, line[1:]):
        along = b - a
        part = np.clip((centre - a) @ along / max(along @ along, 1e-12), 0, 1)
        band[top:bottom, left:right] |= np.linalg.norm(centre - a - part[..., None] * along, axis=-1) <= reach
    return band


def psnr_seam(truth: np.ndarray, image: np.ndarray, points: np.ndarray) -> float:
    """PSNR (dB) of uint8 pictures in `seam_band` of the truth's landmarks, wherever the render puts its own jaw; NaN without a band."""
    band = seam_band(points, truth.shape[1], truth.shape[0])
    return psnr(truth[band], image[band]) if band.any() else math.nan


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


def mouth_amplitude(truth: np.ndarray, render: np.ndarray) -> float | None:
    """Standard deviation of the mouth opening (as in `mouth_correlation`) over all frames, render over truth; 1 moves as widely as the footage.

    None where no frame has landmarks in both, or the truth's mouth stands still.
    """
    kept = both_found(truth, render)
    real, made = (mouth_opening(p[kept].astype(np.float64)).std() if kept.any() else 0.0 for p in (truth, render))
    return float(made / real) if real > _CONSTANT else None


def eye_correlation(truth: np.ndarray, render: np.ndarray) -> float | None:
    """Pearson correlation of the eye openings (lid gap / eye width, mean of both eyes, each picture's own) over all frames.

    Neither smoothed nor shifted, so the detector's own noise on the truth lowers it, most where nobody blinks. Pitch of the head narrows both
    alike and raises it: read it beside `shuffled`. 0 where either is constant; None where no frame has landmarks in both.
    """
    kept = both_found(truth, render)
    if not kept.any():
        return None
    a, b = (eye_opening(p[kept].astype(np.float64)).mean(1) for p in (truth, render))
    known = np.isfinite(a) & np.isfinite(b)
    return pearson(a[known], b[known]) or 0.0


def second_differences(recent: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """How much three frames in a row (truth, image (H,W,3), matte (H,W), all uint8) tremble outside of the person, (4,): sums for truth and image
    in the background, then at the person's edge.

    Sum of squared second differences in time over the pixels that the truth's matte calls empty (≤ EMPTY_MATTE) in all three: the edge are
    those within EDGE_WIDTH (at least 1 px) of any pixel that is not, the background the others. NaN where there is no such pixel.
    """
    import cv2

    empty = np.logical_and.reduce([matte <= EMPTY_MATTE for _, _, matte in recent])
    out = np.full(4, np.nan)
    if not empty.any():
        return out
    # The transform measures from centre to centre; a picture without a person is all background.
    reach = max(1.0, EDGE_WIDTH * len(empty))
    clear = empty if empty.all() else cv2.distanceTransform(empty.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > reach
    for k, region in enumerate((clear, empty & ~clear)):
        if region.any():
            series = ([np.asarray(f[i])[region].astype(np.float32) for f in recent] for i in (0, 1))
            out[2 * k : 2 * k + 2] = [np.square(c - 2 * b + a).sum(dtype=np.float64) for a, b, c in series]
    return out


def jitter_background(sums: np.ndarray, clip_starts: Sequence[int] = (0,)) -> float | None:
    """Temporal jitter of a region, render over truth: root of the ratio of two `second_differences` (T,2), row i being frames i−2 to i.

    1 is as restless as the footage, whose sensor and codec noise is never still; 0 is a still picture. Triples do not cross a clip start.
    None without a triple, or when the truth stands perfectly still.
    """
    inside = np.zeros(len(sums), bool)
    for piece in pieces(len(sums), clip_starts):
        inside[piece.start + 2 : piece.stop] = True
    kept = sums[inside & np.isfinite(sums).all(1)].sum(0) if len(sums) else np.zeros(2)
    return float(math.sqrt(kept[1] / kept[0])) if kept[0] > 0 else None


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
    """The lag in frames, at most `longest` either way, at which the rendered mouth opening correlates best with the real one (`best_lag`).

    Positive: the picture is late. Measured against the real picture, not the sound: real mouths follow sound energy too loosely (0.2–0.6)
    to place a frame.
    """
    kept = both_found(truth, render)
    opening = np.full((2, len(truth)), np.nan)
    for i, points in enumerate((truth, render)):
        opening[i, kept] = mouth_opening(points[kept].astype(np.float64))
    return best_lag(opening[0], opening[1], clip_starts, longest)


def best_lag(truth: np.ndarray, other: np.ndarray, clip_starts: Sequence[int] = (0,), longest: int = LONGEST_LAG) -> int | None:
    """The lag in frames at which `other` (T,) correlates best with `truth` (T,), NaN where unknown; positive: `other` is late.

    Pairs are formed within stretches and pooled; the smaller lag wins a tie. None where either is constant, or they correlate
    positively at no lag.
    """
    best: tuple[float, int] | None = None
    for lag in sorted(range(-longest, longest + 1), key=abs):
        pairs = []
        for piece in pieces(len(truth), clip_starts):
            real, made = truth[piece], other[piece]
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
    """Collects one setting frame by frame; memory per frame is a few hundred bytes of numbers, no picture but the last three."""

    images: list[np.ndarray] = field(default_factory=list)
    truth: list[np.ndarray] = field(default_factory=list)
    render: list[np.ndarray] = field(default_factory=list)
    seams: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    trembling: list[np.ndarray] = field(default_factory=list)
    recent: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=lambda: deque(maxlen=3))

    def add(self, truth: np.ndarray, image: np.ndarray, truth_points: np.ndarray, points: np.ndarray, matte: np.ndarray | None = None,
            lpips: float | None = None) -> None:
        """One frame: both pictures (H,W,3) uint8, both landmarks (68,2) px or NaN, the truth's person matte (H,W) uint8 where there is one, LPIPS of the
        face box where it is measured (NaN in a frame that has none)."""
        self.images.append(image_metrics(truth, image, truth_points))
        self.truth.append(truth_points)
        self.render.append(points)
        self.seams.append(psnr_seam(truth, image, truth_points))
        if lpips is not None:
            self.lpips.append(lpips)
        if matte is not None:
            self.recent.append((truth, image, matte))
            self.trembling.append(second_differences(self.recent) if len(self.recent) == 3 else np.full(4, np.nan))

    def result(self, clip_starts: Sequence[int] = (0,)) -> dict[str, float | int | None]:
        """The block of metrics.json: KEYS, then `landmark_frames` (face found in both) and `box_frames` (in the truth), and `lpips` where it is measured."""
        images, truth, render = np.array(self.images), np.array(self.truth), np.array(self.render)
        out: dict[str, float | int | None] = {key: mean_of_frames(images[:, i]) for i, key in enumerate(IMAGE_KEYS)}
        out["lmd_px"], out["lmd_iod"] = landmark_distance(truth, render)
        out["mouth_correlation"] = mouth_correlation(truth, render)
        out["mouth_amplitude"] = mouth_amplitude(truth, render)
        out["jitter_ratio"] = jitter_ratio(truth, render, clip_starts)
        out["av_offset_frames"] = av_offset(truth, render, clip_starts)
        out["psnr_seam"] = mean_of_frames(np.array(self.seams))
        out["eye_correlation"] = eye_correlation(truth, render)
        trembling = np.array(self.trembling).reshape(-1, 2, 2)
        out["jitter_background"], out["jitter_edge"] = (jitter_background(trembling[:, k], clip_starts) for k in range(2))
        out["jitter_outside"] = jitter_background(np.where(np.isnan(trembling).all(1), np.nan, np.nansum(trembling, 1)), clip_starts)
        out["landmark_frames"] = int(both_found(truth, render).sum())
        out["box_frames"] = int(np.isfinite(truth).all((1, 2)).sum())
        if self.lpips:
            out["lpips"] = mean_of_frames(np.array(self.lpips))
        return out

    def openings(self) -> tuple[np.ndarray, np.ndarray]:
        """Mouth opening of truth and render, (T,) each, NaN without landmarks."""
        return mouth_opening(np.array(self.truth, np.float64)), mouth_opening(np.array(self.render, np.float64))


def format_table(result: dict[str, Any]) -> str:
    """The metrics of `thnerf.evaluate.evaluate` as a table in text; – where a value is null. LPIPS has a column where it was measured."""
    names = ("PSNR", "face", "mouth", "SSIM", "face", "mouth", "LMD px", "LMD iod", "mouth r", "mouth σ", "jitter", "offset", "seam", "eye r",
             "bg jit", "edge", "outside")
    digits, keys = (2, 2, 2, 4, 4, 4, 2, 4, 3, 2, 2, 0, 2, 3, 2, 2, 2), KEYS
    if any("lpips" in (result.get(setting) or {}) for setting in SETTINGS):
        names, digits, keys = (*names, "LPIPS"), (*digits, 4), (*keys, "lpips")
    lines = [f"{'held-out frames: ' + str(result['frames']):<22}" + "".join(f"{n:>9}" for n in names)]
    for setting in SETTINGS:
        block = result.get(setting)
        if block is None:
            lines.append(f"{setting:<22}{result.get('notes', {}).get(setting, 'not measured')}")
            continue
        cells = ["–" if block.get(key) is None else f"{block[key]:.{d}f}" for key, d in zip(keys, digits)]
        lines.append(f"{setting:<22}" + "".join(f"{c:>9}" for c in cells))
    if "lpips" in result.get("notes", {}):
        lines.append(f"LPIPS (lower is better): {result['notes']['lpips']}")
    if "run" in result.get("notes", {}):
        lines.append(f"warning: {result['notes']['run']}")
    return "\n".join(lines)
