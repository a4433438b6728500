"""What speech does not determine: head pose, shoulders, gaze, brows and blinks, sampled from the subject's own motion.

Motion is resequenced, not synthesised: stretches of the training footage are played and joined where pose, velocity and
speech activity match and that lead away from where the head has been lately (motion graphs: Kovar, Gleicher & Pighin 2002; video textures:
Schödl et al. 2000), cross-faded over `OVERLAP` seconds; what two poses differ by fades over the whole stretch, lest the head hurry from one to the other. So every
frame lies within the training range, speeds are the subject's, shoulders and gaze move with the head that moved them, and
nothing drifts or loops. Blinks are cut out of the stretches and put back as a renewal process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from recon.track import Track
from render.rotations import from_frontal, relative_to_frontal

OVERLAP = 0.8
"""Cross-fade between stretches, s."""
STRETCH = (1.0, 5.0)
"""Shortest and longest stretch before a join, s."""
SEATED = 0.45
"""Share of what the mean poses of two clips differ by that is left out: whoever sat down anew between them does not move like that while they speak."""
LATELY, RESTLESS = 4.0, 2.0
"""Time constant (s) of where the head has been lately, and how strongly what leads away from there is preferred. Without it head and shoulders
would go on from clip to clip of like poses, for tens of seconds: a slow swing that the footage, whose clips are shorter, does not have."""
_BLINK_BEFORE, _BLINK_AFTER = 0.20, 0.36
_DEFAULT_BLINK = np.array([0.0, 0.25, 0.8, 1.0, 0.75, 0.45, 0.2, 0.05, 0.0])  # closes faster than it opens


def sampled_columns(names: tuple[str, ...]) -> np.ndarray:
    """Indices of the expression coefficients that are sampled with a seed: eyes and brows. All others follow the speech."""
    return np.array([i for i, n in enumerate(names) if n.startswith(("eye", "brow"))], int)


def speech_columns(names: tuple[str, ...]) -> np.ndarray:
    """Indices of the expression coefficients that follow the speech (lips, jaw, cheeks, tongue, nose)."""
    return np.setdiff1d(np.arange(len(names)), sampled_columns(names))


@dataclass(frozen=True)
class Layout:
    """Columns of a state vector: relative rotation 3, translation 3, gaze 4, torso K, eye and brow coefficients."""

    torso: int
    names: tuple[str, ...]

    def pack(self, track: Track) -> np.ndarray:
        """Track → (T, D) float64 states; rotations relative to frontal, so that they may be averaged."""
        columns = sampled_columns(track.expression_names)
        gaze = track.gaze.reshape(len(track), 4)
        parts = relative_to_frontal(track.rotation), track.translation, gaze, track.torso, track.expression[:, columns]
        return np.concatenate(parts, 1, dtype=np.float64)

    def unpack(self, states: np.ndarray) -> dict[str, np.ndarray]:
        """(T, D) states → rotation, translation, gaze, torso and the sampled coefficients `upper`."""
        k = 10 + self.torso
        return {"rotation": from_frontal(states[:, :3]), "translation": states[:, 3:6], "gaze": states[:, 6:10].reshape(-1, 2, 2),
                "torso": states[:, 10:k], "upper": states[:, k:]}

    @property
    def slow(self) -> np.ndarray:
        """State columns of head and shoulders."""
        return np.r_[0:6, 10 : 10 + self.torso]

    @property
    def blinks(self) -> list[int]:
        """State columns of the two eyelids (empty for a model without them)."""
        return [10 + self.torso + i for i, n in enumerate(self.names) if n in ("eyeBlinkLeft", "eyeBlinkRight")]

    @property
    def eyes(self) -> list[int]:
        """State columns that a blink disturbs: gaze and everything about the eyes."""
        return [6, 7, 8, 9] + [10 + self.torso + i for i, n in enumerate(self.names) if n.startswith("eye")]


@dataclass(frozen=True)
class PoseModel:
    """A subject's own motion, ready to be resequenced.

    fps; layout; states (N, D) of the training frames without blinks; runs (R, 2) their contiguous stretches;
    activity (N,) speech activity from 0 to about 1; blink (L, 2) lid movement of one blink at fps;
    interval (2,) mean and standard deviation of the time between blinks, s; low, high (D,) training range.
    """

    fps: float
    layout: Layout
    states: np.ndarray
    runs: np.ndarray
    activity: np.ndarray
    blink: np.ndarray
    interval: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def tensors(self) -> dict[str, np.ndarray]:
        """Everything but the layout, as float32 and int32 arrays to store."""
        arrays = {n: np.asarray(getattr(self, n), np.float32) for n in ("fps", "states", "activity", "blink", "interval", "low", "high")}
        return {**arrays, "runs": self.runs.astype(np.int32)}

    @classmethod
    def from_tensors(cls, layout: Layout, tensors: Mapping[str, np.ndarray]) -> "PoseModel":
        """Inverse of `tensors`. Raises ValueError or KeyError when arrays are missing or inconsistent."""
        parts = {n: np.asarray(tensors[n]) for n in ("states", "runs", "activity", "blink", "interval", "low", "high")}
        model = cls(fps=float(np.ravel(tensors["fps"])[0]), layout=layout, **parts)
        n, width = model.states.shape
        if width != 10 + layout.torso + len(layout.names) or model.activity.shape != (n,) or model.runs.max(initial=0) > n or n == 0:
            raise ValueError("the stored head motion is inconsistent")
        return model

    def sample(self, activity: np.ndarray, seed: int, liveliness: float = 1.0) -> np.ndarray:
        """Speech activity (T,) at fps → (T, D) states without blinks. Same seed, same motion; one pass over any length.

        liveliness: factor on how far head, shoulders and brows move from where they mostly are; they stay within what was seen.
        """
        states = self._resequenced(activity, seed)
        if liveliness == 1.0:
            return states
        moved = np.ones(states.shape[1], bool)
        moved[self.layout.eyes] = False
        middle = np.median(self.states, 0)[moved]
        states[:, moved] = np.clip(middle + liveliness * (states[:, moved] - middle), self.low[moved], self.high[moved])
        return states

    def _resequenced(self, activity: np.ndarray, seed: int) -> np.ndarray:
        """`sample` as the footage has it."""
        rng = np.random.default_rng([seed, 1])
        overlap = max(2, round(OVERLAP * self.fps))
        shortest, longest = (max(2, round(s * self.fps)) for s in STRETCH)
        T, need = len(activity), shortest + 2 * overlap
        left = np.zeros(len(self.states), int)  # frames left in the run, from each frame on
        for a, b in self.runs:
            left[a:b] = np.arange(b - a, 0, -1)
        starts = np.flatnonzero(left >= need)
        if len(starts) == 0:  # hardly any footage: hold the median
            return np.repeat(np.median(self.states, 0)[None], T, 0)
        spread = np.maximum(self.states.std(0), 1e-6)
        importance = np.r_[np.ones(6), np.full(4, 0.3), np.full(self.layout.torso, 0.7), np.full(len(self.layout.names), 0.25)]
        unit = np.sqrt(importance / importance.sum()) / spread
        scaled = (self.states * unit).astype(np.float32)
        weight = (0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap))[:, None]
        middle = np.median(scaled, 0)
        slow = self.layout.slow
        out = np.empty((T, self.states.shape[1]))
        used = np.zeros(len(self.states))
        total = np.cumsum(np.pad(scaled[:, slow] - middle[slow], ((1, 0), (0, 0))), 0, dtype=np.float64)
        leads_to = (total[starts + need] - total[starts]) / need  # on average, from the middle
        lately = np.zeros(len(slow))
        ahead = np.pad(activity, (0, need), mode="edge")
        cost = ((scaled[starts] - middle) ** 2).sum(1)
        source, at, tail = self._choose(rng, starts, cost, ahead[:need], used), 0, None
        while at < T:
            length = min(int(rng.integers(shortest, longest + 1)) + overlap, left[source] - overlap)
            piece = self.states[source : source + length].astype(np.float64)
            if tail is not None:  # what the poses differ by goes slowly, over the whole stretch; the cross-fade joins what is left
                apart = (tail - piece[:overlap])[:, slow].mean(0) * (0.5 + 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length))[:, None]
                piece[:, slow] = np.clip(piece[:, slow] + apart, self.low[slow], self.high[slow])
                piece[:overlap] = weight * piece[:overlap] + (1 - weight) * tail
            n = min(length, T - at)
            out[at : at + n] = piece[:n]
            kept = np.exp(-length / (LATELY * self.fps))
            lately = kept * lately + (1 - kept) * ((piece * unit).mean(0) - middle)[slow]
            used *= np.exp(-length / (20 * self.fps))
            used[max(0, source - overlap) : source + length] += 1
            at += length
            end = source + length
            tail = self.states[end : end + overlap]
            goal = scaled[end : end + overlap]
            cost = sum(((scaled[starts + k] - goal[k]) ** 2).sum(1) for k in range(overlap)) / overlap
            cost += RESTLESS * (leads_to @ lately)
            cost += 4.0 * (np.abs(starts - end) < shortest)  # to play on would end in repeating the footage as it is
            window = np.pad(ahead[at : at + need], (0, max(0, need - len(ahead[at : at + need]))), mode="edge") if at < T else ahead[-need:]
            source = self._choose(rng, starts, cost, window, used)
        return out

    def _choose(self, rng: np.random.Generator, starts: np.ndarray, cost: np.ndarray, window: np.ndarray, used: np.ndarray) -> int:
        """The start with the least mismatch: `cost` + speech activity + recent use + a little chance."""
        steps = np.linspace(0, len(window) - 1, 8).astype(int)
        speech = sum(np.abs(self.activity[starts + k] - window[k]) for k in steps) / len(steps)
        return int(starts[np.argmin(0.7 * cost + 0.5 * speech + 1.5 * np.minimum(used[starts], 2) + 0.4 * rng.gumbel(size=len(starts)))])

    def with_blinks(self, states: np.ndarray, seed: int) -> np.ndarray:
        """Add blinks to (T, D) states: gamma-distributed intervals, amplitudes that vary by a few percent."""
        columns = self.layout.blinks
        states = states.copy()
        if not columns:
            return states
        rng = np.random.default_rng([seed, 2])
        mean, deviation = self.interval
        shape = (mean / max(deviation, 1e-3)) ** 2
        at = rng.uniform(0.3, 1.0) * mean
        while at * self.fps < len(states):
            begin = int(round((at - _BLINK_BEFORE) * self.fps))
            piece = self.blink * rng.uniform(0.88, 1.04)
            a, b = max(begin, 0), min(begin + len(piece), len(states))
            if b > a:
                states[a:b, columns] += piece[a - begin : b - begin]
            at += max(0.5, rng.gamma(shape, mean / shape))
        states[:, columns] = np.clip(states[:, columns], self.low[columns], self.high[columns])
        return states

    def torso_for(self, states: np.ndarray) -> np.ndarray:
        """Shoulders (T, K) for given poses in `states`: a ridge regression on the training frames, kept in their range."""
        k = slice(10, 10 + self.layout.torso)
        mean, spread = self.states[:, :6].mean(0), np.maximum(self.states[:, :6].std(0), 1e-6)
        x, centre = (self.states[:, :6] - mean) / spread, self.states[:, k].mean(0)
        ridge = np.linalg.solve(x.T @ x + 0.05 * len(x) * np.eye(6), x.T @ (self.states[:, k] - centre))
        return np.clip((np.clip(states[:, :6], self.low[:6], self.high[:6]) - mean) / spread @ ridge + centre, self.low[k], self.high[k])


def fit_pose(track: Track, frames: np.ndarray, activity: np.ndarray) -> PoseModel:
    """Learn from the frames (n,) of a track, and no others; activity (T,) is the speech activity of every frame.

    Raises ValueError without frames.
    """
    if len(frames) == 0:
        raise ValueError("no frames to learn head motion from")
    columns = sampled_columns(track.expression_names)
    layout = Layout(track.torso.shape[1], tuple(track.expression_names[i] for i in columns))
    frames = np.sort(frames)
    breaks = np.diff(frames) != 1
    breaks |= np.isin(frames[1:], track.clip_starts)
    edges = np.r_[0, np.flatnonzero(breaks) + 1, len(frames)]
    runs = np.stack([edges[:-1], edges[1:]], 1)
    states = layout.pack(track)[frames]
    low, high = states.min(0), states.max(0)
    slow = layout.slow
    middle = states[:, slow].mean(0)
    for a, b in runs:
        states[a:b, slow] -= SEATED * (states[a:b, slow].mean(0) - middle)
    clean, blink, interval = _split_blinks(states, runs, layout, track.fps)
    active = np.asarray(activity)[frames].astype(np.float32)
    return PoseModel(track.fps, layout, clean.astype(np.float32), runs, active, blink, interval, low, high)


def _split_blinks(states: np.ndarray, runs: np.ndarray, layout: Layout, fps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States without blinks, the shape of a blink (L, 2), and mean and deviation of the interval (s).

    A blink is a peak of both lids more than half way up to their 99.5th percentile. With fewer than two, a default
    shape and an adult's 15 blinks a minute are used (Bentivoglio et al. 1997: 17 at rest).
    """
    before, after = round(_BLINK_BEFORE * fps), round(_BLINK_AFTER * fps)
    lids = layout.blinks
    grid = np.linspace(0, len(_DEFAULT_BLINK) - 1, before + after + 1)
    default = np.interp(grid, np.arange(len(_DEFAULT_BLINK)), _DEFAULT_BLINK)[:, None] * np.full((1, max(len(lids), 1)), 0.8)
    typical = np.array([4.0, 2.4])
    if not lids:
        return states, default, typical
    lid = states[:, lids].mean(1)
    rest, top = np.median(lid), np.percentile(lid, 99.5)
    states = states.copy()
    shapes, gaps = [], []
    if top - rest > 0.15:
        for a, b in runs:
            last = None
            for i in range(a, b):
                around = lid[max(a, i - before) : min(b, i + before + 1)]
                if lid[i] < rest + 0.5 * (top - rest) or lid[i] < around.max() or (last is not None and i - last < before):
                    continue
                if last is not None:
                    gaps.append((i - last) / fps)
                last = i
                x, y = max(a, i - before), min(b - 1, i + after)
                if x == i - before and y == i + after:
                    piece = states[x : y + 1, lids]
                    shapes.append(piece - np.linspace(piece[0], piece[-1], len(piece)))
        for a, b in runs:  # cut them out only after all are measured
            closed = np.convolve(lid[a:b] > rest + 0.3 * (top - rest), np.ones(2 * (before // 2) + 1), "same") > 0
            if closed.any() and not closed.all():
                keep = np.flatnonzero(~closed)
                for c in layout.eyes:
                    states[a:b, c] = np.interp(np.arange(b - a), keep, states[a:b, c][keep])
    count = len(gaps)
    total = len(states) / fps
    blinks = max(len(shapes), count + 1 if count else 0)
    if len(shapes) < 2:
        return states, default, typical
    mean = float(np.clip(total / blinks, 1.0, 12.0))
    deviation = float(np.clip(np.std(gaps), 0.3 * mean, mean)) if count >= 5 else 0.6 * mean
    shape = np.median(shapes, 0)
    return states, np.maximum(shape, 0), np.array([mean, deviation])


def source_states(track: Track, count: int) -> np.ndarray:
    """The footage's own motion for `count` frames: clips cross-faded into one another, then back and forth → (count, D)."""
    layout = Layout(track.torso.shape[1], tuple(track.expression_names[i] for i in sampled_columns(track.expression_names)))
    states = layout.pack(track)
    joined = states[track.clips[0]]
    for clip in track.clips[1:]:
        piece = states[clip]
        n = min(round(OVERLAP * track.fps), len(joined), len(piece))
        weight = (0.5 - 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / n))[:, None]
        joined = np.concatenate([joined[: len(joined) - n], (1 - weight) * joined[len(joined) - n :] + weight * piece[:n], piece[n:]])
    last = len(joined) - 1
    soft = min(4, last)  # turn round at the ends over a few frames instead of between two
    at = np.arange(count)[:, None] + np.arange(-soft, soft + 1)
    at = np.abs((at + last) % max(2 * last, 1) - last).mean(1) if last else np.zeros(count)
    whole = np.minimum(at.astype(int), max(last - 1, 0))
    part = (at - whole)[:, None]
    return joined[whole] * (1 - part) + joined[np.minimum(whole + 1, last)] * part
