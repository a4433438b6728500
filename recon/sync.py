"""Is the sound in time with the lips? Measured from the footage itself.

At every candidate lag the mouth's shapes and velocities are predicted from the sound's spectrum around each frame, and
the lag with the best predictions wins. Two linear predictors vote: one learnt from other speakers
(`assets/sync_prior.npz`, works on 3 s) and that one adapted to this speaker by ridge regression towards it, scored on
blocks it was not adapted on. A narrow window of sound (±40 ms) keeps neighbouring lags apart; velocities and several
mel bands do what energy alone cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Sequence

import numpy as np

from recon.assets import asset
from recon.landmarks import ibug68, interocular, mouth_opening

RATE = 16000  # Hz, at which the spectrum is taken
LONGEST = 1.0  # s, of the search either way
JUDGED = 0.5  # confidence from which an offset is reported
CONTEXT = (-0.04, 0.0, 0.04)  # s around a frame's middle at which the spectrum is looked at
BANDS = 20
_HOP, _WINDOW, _FFT = 160, 400, 512  # samples
_DRIFT = 0.48  # s; slower changes of the mouth are expression and pose, not speech
_SHORTEST = 1.6  # s of mouth and sound
_FOLDS, _PRIOR_WEIGHT = 5, 0.3
_FALSE = 5.5  # height of the peak, in deviations of the other lags, that another person's sound can just reach on 3 s
_PAIRS = ((48, 54), (51, 57), (8, 30), (60, 64))  # iBUG points: mouth width, height, jaw drop, inner width


@dataclass(frozen=True)
class Sync:
    """How the sound lies to the picture.

    offset: frames by which the sound is late (negative: early), None where the confidence is below JUDGED.
    confidence: in [0,1]; 0.5 is what the sound of somebody else can just reach in 3 s. lags (L,) frames and score (L,): the curve
    behind it, the two predictors' mean correlations with the mouth added.
    """

    offset: float | None
    confidence: float
    lags: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    score: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def shift(self) -> int:
        """Whole frames to take out of the sound's start; 0 within the measurement's own error of a frame or where nothing is known."""
        return 0 if self.offset is None or abs(self.offset) < 1.5 else int(round(self.offset))


def measure_sync(points: np.ndarray, valid: np.ndarray, sound: np.ndarray, fps: float, ranges: Sequence[tuple[int, int]]) -> Sync:
    """One offset for all given stretches of a speaker.

    points (T,478|68,2) px, valid (T,) bool, sound (S,) at RATE whose sample 0 belongs to frame 0; ranges: half-open
    frame stretches to look at (clips, or their training part), never joined. Within one frame on clips of 10 s and more.
    """
    lags = np.arange(-round(LONGEST * fps), round(LONGEST * fps) + 1)
    stretches = []
    for start, end in ranges:
        piece = sound[round(start / fps * RATE) : round(end / fps * RATE)]
        if end - start >= _SHORTEST * fps and valid[start:end].mean() > 0.7 and len(piece) >= _SHORTEST * RATE and np.abs(piece).max() > 1e-4:
            stretches.append((mouth_motion(points[start:end], valid[start:end], fps), log_mel(piece)))
    if not stretches:
        return Sync(None, 0.0)
    target = np.concatenate([motion for motion, _ in stretches])
    score = np.array([_agreement(np.concatenate([heard(mel, len(motion), fps, lag) for motion, mel in stretches]), target, prior()) for lag in lags])
    best = int(np.argmax(score))
    away = np.abs(lags - lags[best]) > 0.16 * fps
    height = (score[best] - score[away].mean()) / (score[away].std() + 0.02)
    confidence = float(1 / (1 + np.exp(-(height - _FALSE) / 0.8)))
    return Sync(round(_peak(lags, score, best), 2) if confidence >= JUDGED else None, round(confidence, 3), lags, score)


def mouth_motion(points: np.ndarray, valid: np.ndarray, fps: float) -> np.ndarray:
    """(T,478|68,2) px → (T,10): opening, widths, height and jaw drop over the interocular distance, without slow drift, and
    their velocities; each of zero mean and unit deviation. Frames that are not valid are bridged."""
    from scipy.ndimage import gaussian_filter1d

    face = ibug68(points)
    distance = np.stack([np.linalg.norm(face[:, a] - face[:, b], axis=-1) for a, b in _PAIRS], 1) / interocular(points)[:, None]
    shape = np.concatenate([mouth_opening(points)[:, None], distance], 1)
    seen = np.flatnonzero(valid & np.isfinite(shape).all(1))
    shape = np.stack([np.interp(np.arange(len(shape)), seen, column[seen]) for column in shape.T], 1)
    shape -= gaussian_filter1d(shape, _DRIFT * fps, axis=0, mode="nearest")
    motion = np.concatenate([shape, np.gradient(shape, axis=0)], 1)
    return (motion - motion.mean(0)) / (motion.std(0) + 1e-9)


def log_mel(sound: np.ndarray) -> np.ndarray:
    """(S,) at RATE → (N,BANDS) log energies, row j centred on sample 160·j; each band of zero mean and unit deviation."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(np.asarray(sound, np.float32), _WINDOW // 2), _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW).astype(np.float32), _FFT)) ** 2 @ _filters().T
    level = np.log(power / (np.quantile(power.sum(1), 0.9) + 1e-12) + 1e-4)
    return (level - level.mean(0)) / (level.std(0) + 1e-9)


@lru_cache
def _filters() -> np.ndarray:
    """(BANDS, FFT/2+1): triangles evenly spaced on the mel scale of Stevens et al. 1937 in O'Shaughnessy's form, 80 to 7600 Hz."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([80, 7600]) / 700)), BANDS + 2)
    edge, frequency = 700 * (10 ** (mel / 2595) - 1), np.fft.rfftfreq(_FFT, 1 / RATE)
    rise = (frequency - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    fall = (edge[2:, None] - frequency) / (edge[2:] - edge[1:-1])[:, None]
    return np.clip(np.minimum(rise, fall), 0, None)


def heard(mel: np.ndarray, frames: int, fps: float, lag: float) -> np.ndarray:
    """(frames, 3·BANDS): the spectrum (N,BANDS) around the middle of each frame, `lag` frames later in the sound; its ends are held."""
    middle = (np.arange(frames) + 0.5 + lag) / fps
    rows = []
    for offset in CONTEXT:
        at = np.clip((middle + offset) * RATE / _HOP, 0, len(mel) - 1)
        low = at.astype(int)
        share = (at - low)[:, None]
        rows.append(mel[low] * (1 - share) + mel[np.minimum(low + 1, len(mel) - 1)] * share)
    return np.concatenate(rows, 1)


@lru_cache
def prior() -> np.ndarray:
    """(3·BANDS, 10): predicts `mouth_motion` from `heard`, learnt from GRID speakers by assets/build_sync_prior.py."""
    with np.load(asset("sync_prior.npz"), allow_pickle=False) as data:
        return data["weights"].astype(np.float64)


def ridge(x: np.ndarray, y: np.ndarray, weight: float, towards: np.ndarray | float = 0.0) -> np.ndarray:
    """argmin_w |x w − y|² + weight·n·|w − towards|² for x (n,k) and y (n,m) → (k,m)."""
    penalty = weight * len(x)
    return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y + penalty * towards)


def _agreement(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> float:
    """Mean correlation with the mouth y (n,10) of what other speakers' weights and the adapted ones predict from x, added."""
    count = len(y)
    block = np.arange(count) * _FOLDS * (4 if count > 400 else 1) // count % _FOLDS
    adapted = np.empty_like(y)
    for fold in range(_FOLDS):
        rest = block != fold
        adapted[~rest] = x[~rest] @ ridge(x[rest], y[rest], _PRIOR_WEIGHT, known)
    return _correlation(x @ known, y) + _correlation(adapted, y)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the columns of their Pearson correlations, negative ones counted as none."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.clip((a * b).sum(0) / (np.sqrt((a**2).sum(0) * (b**2).sum(0)) + 1e-9), 0, None).mean())


def _peak(lags: np.ndarray, score: np.ndarray, best: int) -> float:
    """The lag of the maximum, between frames by the parabola through its neighbours."""
    if not 0 < best < len(lags) - 1:
        return float(lags[best])
    before, here, after = score[best - 1 : best + 2]
    return float(lags[best] + 0.5 * (before - after) / min(before - 2 * here + after, -1e-9))
