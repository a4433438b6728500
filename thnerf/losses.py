"""What training minimises, and the PSNR that reports it. Plain torch."""

from __future__ import annotations

import torch


def photometric(rendered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Scalar Huber loss of colours (N,3): squared below 0.1, so that PSNR is what it optimises; linear above, where a pixel is an outlier."""
    return torch.nn.functional.smooth_l1_loss(rendered, truth, beta=0.1)


def structure(rendered: torch.Tensor, truth: torch.Tensor, window: int = 7) -> torch.Tensor:
    """Scalar: 1 − SSIM (Wang et al. 2004, uniform window) of square pieces of pictures (P,S,S,3) in [0,1], at full and at half size.

    The perceptual term: it weighs what a squared error hardly sees, faint contrast in smooth skin, and asks for no pretrained network.
    """
    x, y, loss = rendered.permute(0, 3, 1, 2), truth.permute(0, 3, 1, 2), rendered.new_zeros(())
    for scale in (0, 1):
        if scale:
            x, y, window = torch.nn.functional.avg_pool2d(x, 2), torch.nn.functional.avg_pool2d(y, 2), window // 2 + 1
        mean = lambda z: torch.nn.functional.avg_pool2d(z, window, 1)  # noqa: E731
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        loss = loss + 0.5 * (1 - ((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))).mean())
    return loss


def matte(opacity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Scalar: opacity (N,) against the matte (N,) in [0,1], only where the matte is sure (below 0.05 or above 0.95).

    A matte loses loose hair, so this is a hint of small weight and not a mask.
    """
    outside, inside = target < 0.05, target > 0.95
    return (opacity * outside).mean() + ((1 - opacity) * inside).mean()


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of colours in [0,1]; infinite for 0."""
    return float(-10 * torch.log10(torch.tensor(mean_square, dtype=torch.float64))) if mean_square > 0 else float("inf")
