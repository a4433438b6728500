"""A small temporal network from speech features to mouth modes, and its training on a minute of speech.

Shapes: features come at four per video frame, (4 T, bands); targets are (T, K) linear modes of expression.
Output i is centred on the middle of frame i's features, 4 i + 2. It sees the features 4 i − `left` to 4 i + 3 + `right` and no others,
since no convolution is padded: `window` gives the same frames wherever a chunk begins, and a frame can be said as soon as
`right` features beyond its own four are there.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SPEED, PITCH = 0.1, 1.0  # augmentation: log speed, and shift in mel bands
_CHUNK = 512


class LipNet(nn.Module):
    """Two strided convolutions to the frame rate, then residual dilated ones (as in WaveNet, van den Oord et al. 2016).

    (B, bands, 4 T + left + right) → (B, outputs, T), `left` and `right` being the context in features. ahead: frames of the future
    that the dilated convolutions see, as many as of the past by default. Float32, differentiable.
    """

    def __init__(self, bands: int, outputs: int, hidden: int = 96, layers: int = 3, dropout: float = 0.3, ahead: int | None = None) -> None:
        super().__init__()
        self.first = nn.Conv1d(bands, hidden, 5, stride=2)
        self.second = nn.Conv1d(hidden, hidden, 5, stride=2)
        self.dilated = nn.ModuleList([nn.Conv1d(hidden, hidden, 3, dilation=2**i) for i in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(hidden) for _ in range(layers)])
        self.out = nn.Conv1d(hidden, outputs, 1)
        self.channels, self.dropout = nn.Dropout1d(dropout), nn.Dropout(dropout)
        reach, self.ahead = 2**layers - 1, []
        left_over = reach if ahead is None else min(ahead, reach)
        for i in range(layers):
            self.ahead.append(min(2**i, left_over))
            left_over -= self.ahead[-1]
        self.left, self.right = 4 * (2 * reach - sum(self.ahead)) + 4, 4 * sum(self.ahead) + 5

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer reads: (B, bands, 4 T + left + right) → (B, hidden, T)."""
        x = self.channels(F.gelu(self.first(x)))
        x = self.channels(F.gelu(self.second(x)))
        for convolution, norm, ahead in zip(self.dilated, self.norms, self.ahead):
            d = convolution.dilation[0]
            step = norm(convolution(x).transpose(1, 2)).transpose(1, 2)
            x = x[:, :, 2 * d - ahead : x.shape[2] - ahead] + self.dropout(F.gelu(step))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(x))

    @torch.no_grad()
    def window(self, features: np.ndarray) -> np.ndarray:
        """Standardised features (4 n + left + right, bands) → (n, outputs): frames of a stretch whose surroundings are given.

        Row 0 is feature 4 i − left of the first frame i, so `predict` of the whole sound says the same of these frames.
        """
        self.eval()
        return self(torch.from_numpy(np.ascontiguousarray(features.T, np.float32))[None])[0].T.numpy()

    @torch.no_grad()
    def predict(self, features: np.ndarray, frames: int) -> np.ndarray:
        """Standardised features (≥ 4 frames rows, bands) → (frames, outputs), chunk by chunk; the ends are repeated outwards."""
        padded = np.pad(features[: 4 * frames + self.right], ((self.left, 0), (0, 0)), mode="edge")
        padded = np.pad(padded, ((0, max(0, 4 * frames + self.left + self.right - len(padded))), (0, 0)), mode="edge")
        parts = []
        for a in range(0, frames, _CHUNK):
            n = min(_CHUNK, frames - a)
            parts.append(self.window(padded[4 * a : 4 * (a + n) + self.left + self.right]))
        return np.concatenate(parts) if parts else np.zeros((0, self.out.out_channels), np.float32)


@dataclass
class Stretch:
    """A contiguous piece of footage: features (4 T + any, bands) standardised, targets (T, K), mask (T,) 0 where to ignore, pause (T,).

    rests (T, P), which training carries along: how far a mouth of each `thnerf.mouth.PATIENCE` is at rest.
    """

    features: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    pause: np.ndarray
    rests: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def cut(self, a: int, b: int) -> "Stretch":
        """Frames a to b."""
        rests = None if self.rests is None else self.rests[a:b]
        return Stretch(self.features[4 * a : 4 * b + 1], self.targets[a:b], self.mask[a:b], self.pause[a:b], rests)


def hold_out(stretches: Sequence[Stretch], member: int, members: int, share: float) -> tuple[list[Stretch], list[Stretch]]:
    """Split into training and validation: member m leaves out `share` of the frames around (m + ½) / members of the whole.

    Where either would have no two frames in a row, both are the whole.
    """
    total = sum(map(len, stretches))
    low = int(total * ((member + 0.5) / members - share / 2))
    high = low + max(1, int(total * share))
    train, validation, start = [], [], 0
    for s in stretches:
        a, b = (int(np.clip(x - start, 0, len(s))) for x in (low, high))
        train += [s.cut(*r) for r in ((0, a), (b, len(s))) if r[1] - r[0] >= 2]
        validation += [s.cut(a, b)] if b - a >= 2 else []
        start += len(s)
    return (train, validation) if train and validation else (list(stretches), list(stretches))


class Batches:
    """Random windows of stretches, played 10 % faster or slower, at other levels, pitches and noise, with parts of the spectrum
    masked (SpecAugment: Park et al. 2019), so that twenty seconds of speech are not learnt by heart."""

    def __init__(self, stretches: Sequence[Stretch], net: LipNet, window: int, seed: int, noise: float, pitched: bool = True) -> None:
        """pitched: the features are bands of a spectrum, so that another pitch shifts them."""
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.window, self.left, self.right, self.noise, self.pitched = window, net.left, net.right, noise, pitched
        before, after = int(1.2 * self.left) + 8, int(1.2 * (4 * window + self.right)) + 8
        padded = [np.pad(s.features[: 4 * len(s)], ((before, after), (0, 0)), mode="edge") for s in stretches]
        self.features = np.concatenate(padded).astype(np.float32)
        frames = math.ceil(1.2 * window) + 4
        pad = lambda x: np.pad(x, ((0, frames),) + ((0, 0),) * (x.ndim - 1))  # noqa: E731 - padded frames have mask 0
        self.targets = np.concatenate([pad(s.targets) for s in stretches]).astype(np.float32)
        self.mask = np.concatenate([pad(s.mask.astype(np.float32)) for s in stretches])
        lengths = np.array([len(s) for s in stretches])
        self.feature_start = np.cumsum([0, *(4 * lengths[:-1] + before + after)]) + before
        self.frame_start = np.cumsum([0, *(lengths[:-1] + frames)])
        self.room = np.maximum(lengths - window, 0)
        self.chance = (self.room + 1) / (self.room + 1).sum()

    def draw(self, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features (B, bands, 4 W + context), targets (B, W, K), mask (B, W)."""
        which = self.rng.choice(len(self.room), size, p=self.chance)
        start = self.rng.uniform(0, self.room[which] + 1e-9)
        speed = np.exp(self.rng.uniform(-SPEED, SPEED, size))
        frame = start[:, None] + speed[:, None] * np.arange(self.window)
        # the middle of output i lies at feature 2 of its frame, so time is stretched about that point
        steps = np.arange(-self.left, 4 * self.window + self.right) - 2
        feature = 4 * start[:, None] + 2 + speed[:, None] * steps
        x = torch.from_numpy(_between(self.features, self.feature_start[which][:, None] + feature)).transpose(1, 2).contiguous()
        y = torch.from_numpy(_between(self.targets, self.frame_start[which][:, None] + frame))
        m = torch.from_numpy(_between(self.mask[:, None], self.frame_start[which][:, None] + frame)[..., 0])
        return self._disturb(x), y, (m > 0.99).float()

    def _disturb(self, x: torch.Tensor) -> torch.Tensor:
        size, bands, length = x.shape
        draw = lambda *shape: torch.randn(*shape, generator=self.generator)  # noqa: E731
        shift = self.rng.uniform(-PITCH, PITCH, size) * self.pitched  # pitch and vocal tract, in bands
        place = torch.from_numpy(np.clip(np.arange(bands)[None] + shift[:, None], 0, bands - 1.001).astype(np.float32))
        low = place.long()[:, :, None].expand(-1, -1, length)
        part = (place - place.floor())[:, :, None]
        x = x.gather(1, low) * (1 - part) + x.gather(1, low + 1) * part
        x = x + 0.3 * draw(size, 1, 1) + 0.3 * draw(size, 1, 1) * torch.linspace(-1, 1, bands)[None, :, None]
        x = x + self.noise * draw(size, bands, length)
        for item in x:
            f, t = self.rng.integers(0, bands), self.rng.integers(0, length)
            item[f : f + self.rng.integers(0, bands // 6 + 1)] = 0
            item[:, t : t + self.rng.integers(0, 16)] = 0
        return x


def _between(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear interpolation of (N, C) rows at fractional positions (…,) → (…, C) float32."""
    whole = np.clip(np.floor(at).astype(int), 0, len(rows) - 2)
    part = (at - whole)[..., None].astype(np.float32)
    return rows[whole] * (1 - part) + rows[whole + 1] * part


def objective(out: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor, opening: torch.Tensor) -> torch.Tensor:
    """Weighted squared error of modes (B, W, K), of their velocities, and of the mouth opening, a linear function `opening` (K,)."""
    error = (out - target) * mask[..., None]
    every = torch.cat([error * weights.sqrt(), (error @ opening)[..., None]], -1)
    velocity = every[:, 1:] - every[:, :-1]
    return (every.square().sum() + velocity.square().sum()) / mask.sum().clamp(min=1)


def fit_member(train: Sequence[Stretch], validation: Sequence[Stretch], weights: np.ndarray, opening: np.ndarray, settings: dict,
               seed: int, seconds: float, on_step: Callable[[float], None], start: LipNet | None = None) -> tuple[LipNet, list[np.ndarray], int]:
    """Train one network → (network with its best averaged weights, predictions on the validation stretches, steps done).

    AdamW with a cosine schedule that follows steps or time, whichever is further; exponential averages of the weights; the
    average that does best on the validation stretches is kept. on_step receives the fraction done. start: a network of the same shape up to
    its last layer, to go on from; the last layer begins as a ridge regression.
    """
    torch.manual_seed(seed)
    net = LipNet(train[0].features.shape[1], len(weights), settings["hidden"], settings["layers"], settings["dropout"], settings["ahead"])
    if start is not None:
        begin_from(net, start, train)
    batches = Batches(train, net, settings["window"], seed, settings["noise"], bool(settings["pitched"]))
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings["rate"], weight_decay=settings["weight_decay"])
    average = [p.detach().clone() for p in net.parameters()]
    w, g = torch.from_numpy(weights).float(), torch.from_numpy(opening).float()
    best, best_loss, begin, step, done, looked = None, math.inf, time.perf_counter(), 0, 0.0, 0.0 if start is not None else 0.5
    while done < 1:
        if done >= looked and start is not None and step == 0:
            best, best_loss, looked = [p.detach().clone() for p in average], validation_loss(net, validation, w, g), 0.2
        done = max(step / settings["steps"], (time.perf_counter() - begin) / max(seconds, 1e-3))
        optimiser.param_groups[0]["lr"] = settings["rate"] * min(1, (step + 1) / 30) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1))) + 1e-6
        x, y, m = batches.draw(settings["batch"])
        net.train()
        loss = objective(net(x).transpose(1, 2), y, m, w, g)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for a, p in zip(average, net.parameters()):
                a.lerp_(p, 1 - min(0.99, step / (step + 9)))
        on_step(min(done, 1))
        if done >= looked or done >= 1:
            looked = done + 0.1
            current = [p.detach().clone() for p in net.parameters()]
            assign(net, average)
            score = validation_loss(net, validation, w, g)
            if score < best_loss:
                best, best_loss = [p.clone() for p in average], score
            assign(net, current)
    assign(net, best if best is not None else average)
    net.eval()
    return net, [net.predict(s.features, len(s)) for s in validation], step


@torch.no_grad()
def begin_from(net: LipNet, start: LipNet, train: Sequence[Stretch], weight: float = 0.03) -> None:
    """Give `net` the layers of `start`, and a last one that is the ridge regression of the targets on what it reads. Changes `net`."""
    net.load_state_dict({**net.state_dict(), **{k: v for k, v in start.state_dict().items() if not k.startswith("out.")}})
    net.eval()
    rows, targets = [], []
    for s in train:
        padded = np.pad(s.features[: 4 * len(s)], ((net.left, net.right), (0, 0)), mode="edge")
        hidden = net.hidden(torch.from_numpy(np.ascontiguousarray(padded.T, np.float32))[None])[0].T.double()
        use = torch.from_numpy(s.mask > 0)
        rows.append(hidden[use])
        targets.append(torch.from_numpy(np.asarray(s.targets, np.float64))[use])
    x, y = torch.cat(rows), torch.cat(targets)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    penalty = weight * len(x) * x.square().mean() + 1e-6
    solved = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - y_mean))
    net.out.weight.copy_(solved.T[:, :, None].float())
    net.out.bias.copy_((y_mean - x_mean @ solved).float())


def validation_loss(net: LipNet, validation: Sequence[Stretch], weights: torch.Tensor, opening: torch.Tensor) -> float:
    """Mean objective on whole stretches."""
    total, count = 0.0, 0.0
    for s in validation:
        out, m = torch.from_numpy(net.predict(s.features, len(s)))[None], torch.from_numpy(s.mask.astype(np.float32))[None]
        total += float(objective(out, torch.from_numpy(s.targets.astype(np.float32))[None], m, weights, opening)) * float(m.sum())
        count += float(m.sum())
    return total / max(count, 1.0)


@torch.no_grad()
def assign(net: LipNet, values: Sequence[torch.Tensor]) -> None:
    """Set the parameters of `net`, in their order."""
    for p, v in zip(net.parameters(), values):
        p.copy_(v)
