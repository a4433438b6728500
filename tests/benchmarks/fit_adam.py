"""A landmark fit by Adam in the manner of AD-NeRF's tracker (Guo et al. 2021, after Thies et al. 2016), as a baseline.

Identity and expression coefficients and the pose of every frame are free; the landmarks' mean squared distance with quadratic
priors on the coefficients is minimised in stages: pose first, then everything of a few frames, then all frames with the identity kept.
It is given the same landmarks and face model as ours and, to its advantage, the focal length, so that it need not search for one.
"""

from __future__ import annotations

import time
from typing import Callable

import numpy as np
import torch

from recon.model import MorphableModel
from render.rotations import FRONTAL

Curve = list[tuple[float, float]]
KEYFRAMES = 40
STAGES = ((400, 3e-2), (800, 1e-2), (600, 3e-3))  # steps and rate of the pose stage, of the keyframes and of every pass over all frames


class AdamFit:
    """One fit in progress. points (T,478,2) px of valid frames only, of a picture whose centre is `middle` (2,)."""

    def __init__(self, points: np.ndarray, middle: np.ndarray, focal: float, model: MorphableModel, shapes: int = 60) -> None:
        """Starts in front of the camera, where the outer eye corners are as far apart as seen."""
        tensor = lambda a: torch.tensor(np.asarray(a), dtype=torch.float32)  # noqa: E731
        pick = lambda a: tensor(model.points(np.asarray(a, np.float32), "mediapipe478"))[..., :468, :]  # noqa: E731
        self.mean, self.shapes, self.expressions = pick(model.mean), pick(model.shape_basis[:shapes]), pick(model.expression_basis)
        self.target, self.focal, T = tensor(points[:, :468] - middle), focal, len(points)
        self.iod = (self.target[:, 263] - self.target[:, 33]).norm(dim=-1)
        depth = focal * float((self.mean[263] - self.mean[33]).norm()) / float(self.iod.median())
        self.shape = torch.zeros(len(self.shapes), requires_grad=True)
        self.expression = torch.zeros(T, len(self.expressions), requires_grad=True)
        self.turn = torch.zeros(T, 3, requires_grad=True)  # against the frontal head, axis-angle
        self.place = torch.zeros(T, 3, requires_grad=True)  # of `depth`
        self.start = torch.tensor([0.0, 0.0, depth])
        self.depth, self.frontal = depth, tensor(FRONTAL)

    def project(self, frames: torch.Tensor) -> torch.Tensor:
        """(F,468,2) px about the picture's centre."""
        head = self.mean + torch.tensordot(self.shape, self.shapes, 1) + torch.tensordot(self.expression[frames], self.expressions, 1)
        world = head @ (self.frontal @ rotation(self.turn[frames])).transpose(1, 2) + (self.start + self.depth * self.place[frames])[:, None]
        return self.focal * world[..., :2] / world[..., 2:]

    def loss(self, frames: torch.Tensor) -> torch.Tensor:
        """Mean squared distance in hundredths of the interocular distance, and the priors."""
        residual = (self.project(frames) - self.target[frames]) / (0.01 * self.iod[frames, None, None])
        return (residual**2).sum(-1).mean() + 0.05 * (self.shape**2).mean() * len(self.shape) + 0.5 * (self.expression[frames] ** 2).sum(-1).mean()

    def error(self) -> float:
        """Mean landmark error of all frames in interocular distances."""
        with torch.no_grad():
            frames = torch.arange(len(self.target))
            return float(((self.project(frames) - self.target).norm(dim=-1) / self.iod[:, None]).mean())

    def run(self, seconds: float, measure: Callable[["AdamFit"], float] | None = None, every: int = 25) -> Curve:
        """Fit for at most `seconds`; (s, error) every few steps, measuring not counted. measure: what to record instead of `error`."""
        measure, curve, spent = measure or AdamFit.error, [], 0.0
        T = len(self.target)
        few, all_ = torch.linspace(0, T - 1, min(T, KEYFRAMES)).long(), torch.arange(T)
        pose, rest = [self.turn, self.place], [self.shape, self.expression]
        plan = [(STAGES[0], few, pose), (STAGES[1], few, pose + rest), (STAGES[0], all_, pose)] + [(STAGES[2], all_, pose + rest[1:])] * 50
        for (steps, rate), frames, free in plan:
            optimiser = torch.optim.Adam(free, lr=rate)
            for step in range(steps):
                begun = time.perf_counter()
                optimiser.zero_grad()
                self.loss(frames).backward()
                optimiser.step()
                with torch.no_grad():
                    self.expression.clamp_(0, 1)
                spent += time.perf_counter() - begun
                if step % every == 0 or spent > seconds:
                    curve.append((spent, measure(self)))
                    if spent > seconds:
                        return curve
        return curve


def rotation(axis_angle: torch.Tensor) -> torch.Tensor:
    """(T,3) rad → (T,3,3), differentiable at zero."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3))
