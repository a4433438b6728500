"""Losses vanish at the truth, and the matte only speaks where it is sure."""

import math

import pytest
import torch

from thnerf import losses


def test_photometric_is_half_the_square_over_beta_near_the_truth() -> None:
    truth = torch.rand(50, 3)
    assert losses.photometric(truth, truth) == 0
    assert float(losses.photometric(truth + 0.05, truth)) == pytest.approx(0.5 * 0.05**2 / 0.1, rel=1e-3)
    far, farther = losses.photometric(truth + 0.5, truth), losses.photometric(truth + 1.0, truth)
    assert float(farther - far) == pytest.approx(0.5, rel=1e-3)  # linear


def test_structure_sees_lost_contrast_and_not_a_little_light() -> None:
    torch.manual_seed(0)
    truth = 0.5 + 0.02 * torch.randn(4, 12, 12, 3)
    smooth = truth.mean((1, 2), keepdim=True).expand_as(truth)
    lighter = truth + 0.02
    assert float(losses.structure(truth, truth)) == pytest.approx(0, abs=1e-4)
    assert losses.photometric(smooth, truth) < 1.1 * losses.photometric(lighter, truth)  # alike to a squared error
    assert losses.structure(smooth, truth) > 5 * losses.structure(lighter, truth)


def test_matte_pulls_opacity_the_right_way_and_ignores_the_border() -> None:
    opacity = torch.full((3,), 0.4, requires_grad=True)
    losses.matte(opacity, torch.tensor([0.0, 0.5, 1.0])).backward()
    assert opacity.grad[0] > 0 and opacity.grad[1] == 0 and opacity.grad[2] < 0


def test_psnr() -> None:
    assert losses.psnr(0.01) == pytest.approx(20) and math.isinf(losses.psnr(0.0))
