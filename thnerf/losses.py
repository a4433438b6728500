"""What training minimises, and the PSNR that reports it. Plain torch."""

from __future__ import annotations

import torch


def photometric(rendered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Scalar Huber loss of colours (N,3): squared below 0.1, so that PSNR is what it optimises; linear above, where a pixel is an outlier."""
    return torch.nn.functional.smooth_l1_loss(rendered, truth, beta=0.1)


def matte(opacity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scalar: opacity (N,) against the matte (N,) in [0,1], only where the matte is sure (below 0.05 or above 0.95).

    A matte loses loose hair, so this is a hint of small weight and not a mask.
    """
    outside, inside = target < 0.05, target > 0.95
    return (opacity * outside).mean() + ((1 - opacity) * inside).mean()


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of colours in [0,1]; infinite for 0."""
    return float(-10 * torch.log10(torch.tensor(mean_square, dtype=torch.float64))) if mean_square > 0 else float("inf")
