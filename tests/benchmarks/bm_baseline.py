"""How soon our field is as good as others: held-out PSNR over the seconds of training, of the same rays, losses, torso and background.

python tests/benchmarks/bm_baseline.py SUBJECT [FIELD …] [--minutes 10 | --steps N] [--json FILE]

FIELD (default: ours adnerf): `ours`, the default; `blended`, ours without the warp; `concatenated`, one static hash table and the expression as inputs
of the network, without the warp; `adnerf`, in the manner of AD-NeRF (Guo et al., ICCV 2021): positions in sines and cosines, and
the expression, through 8 layers of 256 with a skip connection. All begin with the same shell and density prior, which helps the last most.
Measuring is not counted as time.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench import parse, write  # noqa: E402

from recon.subject import Subject  # noqa: E402
from thnerf.avatar import TURN, Avatar  # noqa: E402
from thnerf.config import TrainConfig  # noqa: E402
from thnerf.dataset import TrainingSet, landmark_boxes, load_training_set  # noqa: E402
from thnerf.encodings import BlendedTables  # noqa: E402
from thnerf.evaluate import frames_at, held_out  # noqa: E402
from thnerf.field import HeadField  # noqa: E402
from thnerf.trainer import Trainer, new_trainer  # noqa: E402

LOOK = (5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 300, 360, 420, 480, 540, 600)  # seconds of training after which it is measured
REGIONS = ("full", "face", "mouth")


class StaticTables(BlendedTables):
    """One table whatever the condition."""

    def blend(self, conditions: torch.Tensor) -> torch.Tensor:
        return super().blend(conditions[:, :0])

    def step(self, gradients: torch.Tensor | None, conditions: torch.Tensor, *rates: float) -> None:
        if gradients is not None:
            super().step(gradients.sum(0, keepdim=True), conditions[:1, :0], *rates)


class Unwarped(Avatar):
    """Ours without the warp."""

    def blend_warp(self, psi: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(psi), 1)

    def warp(self, positions: torch.Tensor, table: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        return positions


class Concatenated(Unwarped):
    """A static hash grid; the expression joins its features at the entrance of the network, filled up to a multiple of four."""

    def prepare(self, seed: int) -> None:
        """Replace what differs from ours."""
        self.tables = StaticTables(self.layout, 0, seed)
        inputs = self.layout.channels + TURN + self.condition.matrix.shape[1]
        self.fill = -inputs % 4
        self.head = HeadField(inputs + self.fill, self.config.width, self.head.prior.numpy())

    def blend(self, psi: torch.Tensor) -> torch.Tensor:
        self.psi = psi * self.config.condition_scale
        return self.tables.blend(psi)

    def beside(self, features: torch.Tensor, which: torch.Tensor | None) -> torch.Tensor:
        """Features (M,C) with the expressions of their frames."""
        psi = self.psi.expand(len(features), -1) if which is None else self.psi[which.long()]
        return torch.cat([features, psi, features.new_zeros(len(features), self.fill)], 1)

    def encode(self, positions: torch.Tensor, table: torch.Tensor, turn: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        return self.beside(super().encode(positions, table, turn, which), which)


class Frequencies(Concatenated):
    """Sines and cosines of the position, and the expression, into a wide deep network."""

    def prepare(self, seed: int) -> None:
        self.tables, self.fill = StaticTables(self.layout, 0, seed), 0
        self.head = DeepField(3 + 2 * 3 * DeepField.OCTAVES + self.condition.matrix.shape[1], self.head)

    def encode(self, positions: torch.Tensor, table: torch.Tensor, turn: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        angles = ((2 * positions - 1)[:, :, None] * (math.pi * 2.0 ** torch.arange(DeepField.OCTAVES))).flatten(1)
        return self.beside(torch.cat([positions, torch.sin(angles), torch.cos(angles)], 1), which)

    def network(self, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(features, positions)


class DeepField(torch.nn.Module):
    """Eight layers of 256, the inputs again at the fifth; density and colour as ours have them."""

    OCTAVES, WIDTH, LAYERS, SKIP = 10, 256, 8, 4

    def __init__(self, inputs: int, ours: HeadField) -> None:
        super().__init__()
        sizes = [inputs] + [self.WIDTH + (inputs if i == self.SKIP else 0) for i in range(1, self.LAYERS)]
        self.layers = torch.nn.ModuleList([torch.nn.Linear(size, self.WIDTH) for size in sizes])
        self.last = torch.nn.Linear(self.WIDTH, 4)
        self.ours = [ours]  # for its prior; in a list, so that its weights are no part of this
        with torch.no_grad():
            self.last.bias[0] = 1.0

    def forward(self, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            y = features
            for i, layer in enumerate(self.layers):
                y = torch.relu(layer(torch.cat([y, features], 1) if i == self.SKIP else y))
            y = self.last(y)
        y = y.float()
        return torch.exp((y[:, 0] + self.ours[0].prior_at(positions)).clamp(-8, 8)), torch.sigmoid(y[:, 1:])


FIELDS = {"ours": None, "blended": Unwarped, "concatenated": Concatenated, "adnerf": Frequencies}


def begin(name: str, data: TrainingSet, subject: Subject, config: TrainConfig) -> Trainer:
    """A trainer of one of FIELDS."""
    trainer = new_trainer(data, subject.model, config)
    if FIELDS[name] is None:
        return trainer
    avatar = trainer.avatar
    avatar.__class__ = FIELDS[name]
    if isinstance(avatar, Concatenated):
        torch.manual_seed(config.seed)
        avatar.prepare(config.seed)
    if name == "adnerf":
        config = dataclasses.replace(config, network_rate=5e-4)  # that of the paper
    return Trainer(data, avatar, config)


def measure(trainer: Trainer, index: np.ndarray, truth: list[np.ndarray], boxes: tuple[np.ndarray, ...]) -> list[float]:
    """Mean PSNR (dB) of held-out frames: full, face, mouth."""
    scores = []
    for i, real, *regions in zip(index, truth, *boxes):
        error = np.square(trainer.avatar.render(trainer.data.track, int(i), trainer.data.background) - real / 255)
        scores.append([-10 * math.log10(error.mean()), *(-10 * math.log10(error[y0:y1, x0:x1].mean()) for x0, y0, x1, y1 in regions)])
    return np.mean(scores, 0).tolist()


def run(name: str, data: TrainingSet, subject: Subject, options: argparse.Namespace) -> list[dict[str, float]]:
    """Train one field; a row for each look."""
    config = TrainConfig(minutes=options.minutes, steps=options.steps, device="cpu")
    ranges = held_out(subject)
    index = np.concatenate([np.arange(a, b) for a, b in ranges])
    index = index[np.linspace(0, len(index) - 1, min(options.frames, len(index))).astype(int)]
    truth, boxes = list(frames_at(subject.video_path, index)), landmark_boxes(data.track, subject.model, index)
    trainer, rows, seconds = begin(name, data, subject, config), [], 0.0
    looks = [s for s in LOOK if s < 60 * options.minutes] + [60 * options.minutes]
    trainer.advance(0.0)  # what is compiled is compiled now
    while True:
        if options.steps is not None:
            done, look = trainer.steps / options.steps, trainer.steps in (options.steps // 4, options.steps // 2, options.steps)
        else:
            done, look = seconds / (60 * options.minutes), seconds >= looks[len(rows)]
        if look:
            rows.append({"seconds": seconds, "steps": trainer.steps, **dict(zip(REGIONS, measure(trainer, index, truth, boxes)))})
            print(f"{name:13s} {seconds:6.1f} s {trainer.steps:6d} steps   PSNR " + "  ".join(f"{r} {rows[-1][r]:.2f}" for r in REGIONS), flush=True)
        if done >= 1:
            return rows
        start = time.perf_counter()
        trainer.advance(min(done, 1.0))
        seconds += time.perf_counter() - start


def sooner(ours: list[dict[str, float]], other: list[dict[str, float]], region: str) -> float | None:
    """How many times sooner ours reaches the other's last PSNR, between looks on a line; None if it never does."""
    target, before = other[-1][region], None
    for row in ours:
        if row[region] >= target:
            if before is None:
                return other[-1]["seconds"] / row["seconds"]
            part = (target - before[region]) / (row[region] - before[region])
            return other[-1]["seconds"] / (before["seconds"] + part * (row["seconds"] - before["seconds"]))
        before = row
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject")
    parser.add_argument("fields", nargs="*", choices=[*FIELDS, []], default=["ours", "adnerf"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--frames", type=int, default=8, help="held-out frames that are measured")
    options = parse(parser)
    torch.set_flush_denormal(True)
    subject = Subject.open(options.subject)
    data = load_training_set(subject, subject.model, TrainConfig().head.expression_modes, TrainConfig().max_frames)
    curves = {name: run(name, data, subject, options) for name in options.fields}
    ratios = {}
    if {"ours", "adnerf"} <= set(curves):
        ratios = {region: sooner(curves["ours"], curves["adnerf"], region) for region in REGIONS}
        told = {r: "never" if v is None else f"{v:.0f}x sooner" for r, v in ratios.items()}
        print(f"ours reaches the last PSNR of adnerf: {told} (asked 30x)")
    write("baseline", {"curves": curves, "sooner": ratios}, options.json)


if __name__ == "__main__":
    main()
