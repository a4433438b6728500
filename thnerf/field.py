"""The head: a radiance field in the space of the face model (mm), where a moving head stands still.

Colour and density come from a small network behind a hash encoding. The encoding itself is handed in: with tables
blended by expression (`encodings.BlendedTables`) this module need not know about expressions at all.
Where to look and what starts out opaque comes from the tracked mesh (`thnerf.shell`).
"""

from __future__ import annotations

import numpy as np
import torch

UNIT_MM = 100.0  # densities are per this length


class HeadField(torch.nn.Module):
    """Encoded positions → density and colour: two hidden layers of ReLU, sigmoid colours, exponential density."""

    def __init__(self, channels: int, width: int, prior: np.ndarray) -> None:
        super().__init__()
        self.first = torch.nn.Linear(channels, width)
        self.second = torch.nn.Linear(width, width)
        self.last = torch.nn.Linear(width, 4)
        with torch.no_grad():
            self.last.bias[0] = 1.0
        self.register_buffer("prior", torch.from_numpy(np.ascontiguousarray(prior, np.float32)))

    def forward(self, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features (M,C), positions (M,3) in the unit cube → density (M,) per UNIT_MM, colour (M,3) in [0,1]."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.training):
            y = self.last(torch.relu(self.second(torch.relu(self.first(features)))))
        y = y.float()
        return torch.exp((y[:, 0] + self.prior_at(positions)).clamp(-8, 8)), torch.sigmoid(y[:, 1:])

    def prior_at(self, positions: torch.Tensor) -> torch.Tensor:
        """Log-density prior (M,) at unit positions (M,3), trilinear between cell centres, without gradient."""
        with torch.no_grad():
            grid = (positions.flip(-1) * 2 - 1).view(1, 1, 1, -1, 3)  # grid_sample's x is the last axis of the volume
            return torch.nn.functional.grid_sample(self.prior[None, None], grid, padding_mode="border", align_corners=False).view(-1)


class PoseCorrection(torch.nn.Module):
    """A small rigid correction of the tracked head pose, linear in features of the frame, so that unseen frames have one too.

    Head-space points move as x + w × x + d, with w (rad) and d (UNIT_MM) linear in (features, 1); zero at first.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(features + 1, 6))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features (B,C) → (B,6): w, d."""
        return torch.cat([features, torch.ones(len(features), 1, device=features.device)], 1) @ self.weight

    @torch.no_grad()
    def apply_to_rays(self, features: np.ndarray, origins: np.ndarray, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correct ray origins (B,3) mm and the matrices (B,3,3) that turn camera directions into head space."""
        delta = self.forward(torch.from_numpy(features).to(self.weight.device)).cpu().numpy().astype(np.float64)
        moved = origins + np.cross(delta[:, :3], origins) + delta[:, 3:] * UNIT_MM
        turned = matrices + np.cross(delta[:, None, :3], matrices.swapaxes(1, 2)).swapaxes(1, 2)
        return moved.astype(np.float32), turned.astype(np.float32)

    def attach(self, features: torch.Tensor, positions: torch.Tensor, which: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Unit positions (M,3) already corrected, with the gradient of the correction attached; their values stay as they are."""
        delta = self.forward(features)
        delta = (delta - delta.detach())[which.long()]
        points = lower + positions * (upper - lower)
        shift = torch.cross(delta[:, :3], points, dim=-1) + delta[:, 3:] * UNIT_MM
        return positions + shift / (upper - lower)
