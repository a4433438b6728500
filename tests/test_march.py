"""Marching meets exactly the occupied cells, and compositing equals its readable version and physics."""

import numpy as np
import pytest
import torch

from render.march import Volume, composite, composite_reference, dilate, march, render_rays

LOWER, UPPER = np.array([-2.0, -1, 0], np.float32), np.array([2.0, 3, 8], np.float32)


def rays(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    origins = rng.normal(0, 1, (count, 3)) + [0, 1, -15]
    return origins.astype(np.float32), (rng.uniform(LOWER, UPPER, (count, 3)) - origins).astype(np.float32)


def test_samples_lie_in_occupied_cells() -> None:
    grid = np.random.default_rng(1).random((8, 8, 8)) < 0.4
    samples = march(*rays(300), Volume(LOWER, UPPER, grid, 0.3), limit=200)
    cell = np.minimum((samples.positions * 8).astype(int), 7)
    assert len(cell) > 500 and grid[tuple(cell.T)].mean() > 0.999
    assert np.array_equal(samples.ray, np.repeat(np.arange(300), np.diff(samples.offsets)))


def test_full_box_is_sampled_once_a_step_along_the_chord() -> None:
    volume = Volume(LOWER, UPPER, np.ones((4, 4, 4), bool), 0.01)
    origins = np.array([[0, 1, -5.0], [9, 9, -5]], np.float32)
    samples = march(origins, np.array([[0, 0, 2.0], [0, 0, 2.0]], np.float32), volume, limit=2000)
    assert abs(samples.offsets[1] - 800) <= 1 and samples.offsets[2] == samples.offsets[1]  # 8 long; the other ray misses
    spacing = np.diff(samples.positions[:, 2] * 8)
    assert np.allclose(spacing, 0.01, atol=1e-4)


def test_composite_equals_reference_with_gradients() -> None:
    rng = np.random.default_rng(2)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 12, 40))])
    M = offsets[-1]
    density = torch.from_numpy((rng.gamma(0.5, 20, M)).astype(np.float32))
    density[::17] = 400.0  # opaque samples: transmittance behind them vanishes
    colour = torch.from_numpy(rng.random((M, 3), dtype=np.float32))
    g = torch.Generator().manual_seed(0)
    gc, gt = torch.randn(40, 3, generator=g), torch.randn(40, generator=g)
    results = []
    for f in (composite_reference, composite):
        s, c = density.clone().requires_grad_(), colour.clone().requires_grad_()
        out, T, w = f(s, c, 0.3, offsets)
        ((out * gc).sum() + (T * gt).sum()).backward()
        results.append((out.detach(), T.detach(), w.detach(), s.grad, c.grad))
    for a, b in zip(*results):
        assert torch.allclose(a, b, atol=2e-5)


def test_homogeneous_medium_follows_beer_lambert() -> None:
    volume = Volume(LOWER, UPPER, np.ones((2, 2, 2), bool), 0.2)
    constant = lambda x: (torch.full((len(x),), 0.2), torch.ones(len(x), 3))  # noqa: E731
    colour, opacity = render_rays(np.array([[0, 1, -5.0]], np.float32), np.array([[0, 0, 1.0]], np.float32), volume, constant)
    assert float(opacity) == pytest.approx(1 - np.exp(-0.2 * 8), abs=0.01)
    assert torch.allclose(colour, opacity[:, None].expand(1, 3), atol=1e-5)


def test_dilate_is_a_diamond_that_does_not_wrap() -> None:
    grid = np.zeros((5, 5, 5), bool)
    grid[0, 2, 2] = True
    grown = dilate(grid, 2)
    assert grown[2, 2, 2] and grown[0, 4, 2] and grown[1, 3, 2] and not grown[4, 2, 2] and not grown[1, 3, 3]
    assert not grid[1, 2, 2]
