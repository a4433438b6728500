"""The shoulders: one image, moved by the torso coefficients of the track, behind the head and in front of the background.

Shoulders do not follow the head, so they have a track of their own; head pose only shades the neck a little. A pixel is
carried to where it lies on the resting torso (an affine field per coefficient, and a small smooth rest), a 2D hash
encoding is looked up there, and a small network gives colour and opacity.
"""

from __future__ import annotations

import math
from typing import Callable

import torch

FREQUENCIES = 4
MARGIN = 0.06  # of the canonical image on each side, so that what enters the crop from outside has a place
REACH = 0.1


class TorsoField(torch.nn.Module):
    """channels of the 2D encoding; torso and pose features a frame; hidden width; coefficient_scale (K,) of the torso features.

    The affine fields begin as the similarity that the first four coefficients mean: shift x, shift y (image widths),
    log-scale and angle about the image centre.
    """

    def __init__(self, channels: int, torso_features: int, pose_features: int, width: int, coefficient_scale: torch.Tensor) -> None:
        super().__init__()
        conditions = torso_features + pose_features
        self.affine = torch.nn.Parameter(torch.zeros(torso_features, 2, 3))
        known = torch.zeros(4, 2, 3)  # canonical − observed, to first order, as a matrix on (u − ½, v − ½, 1)
        known[0, 0, 2] = known[1, 1, 2] = -1
        known[2, 0, 0] = known[2, 1, 1] = -1
        known[3, 0, 1], known[3, 1, 0] = 1, -1
        with torch.no_grad():
            n = min(4, torso_features)
            self.affine[:n] = known[:n] * coefficient_scale[:n, None, None]
        self.warp_first = torch.nn.Linear(4 * FREQUENCIES + conditions, width)
        self.warp_last = torch.nn.Linear(width, 2)
        self.first = torch.nn.Linear(channels + conditions, width)
        self.last = torch.nn.Linear(width, 4)
        with torch.no_grad():
            self.warp_last.weight.mul_(0.01)
            self.warp_last.bias.zero_()

    def placement(self) -> list[torch.nn.Parameter]:
        """The parameters that say where a pixel lies on the resting torso."""
        return [self.affine, *self.warp_first.parameters(), *self.warp_last.parameters()]

    def canonical(self, uv: torch.Tensor, torso: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Image positions (N,2) in [0,1] with the features of their frame (N,K), (N,P) → positions on the resting torso (N,2) in [0,1]."""
        angles = uv[:, :, None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=uv.device))
        waves = torch.cat([torch.sin(angles), torch.cos(angles)], -1).flatten(1)
        centred = torch.cat([uv - 0.5, torch.ones(len(uv), 1, device=uv.device)], 1)
        moved = torch.einsum("nk,nkd->nd", torso, torch.einsum("kdc,nc->nkd", self.affine, centred)) if torso.shape[1] else 0
        rest = REACH * self.warp_last(torch.relu(self.warp_first(torch.cat([waves, torso, pose], 1))))
        return (MARGIN + (1 - 2 * MARGIN) * (uv + moved + rest)).clamp(0, 1)

    def forward(self, uv: torch.Tensor, torso: torch.Tensor, pose: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour (N,3) and opacity (N,) at image positions uv (N,2); `encode` maps canonical positions to features."""
        features = encode(self.canonical(uv, torso, pose))
        y = torch.sigmoid(self.last(torch.relu(self.first(torch.cat([features, torso, pose], 1)))))
        return y[:, :3], y[:, 3]
