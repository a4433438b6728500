"""The head's network as kernels equals the one in torch, and so do all its gradients."""

import numpy as np
import pytest
import torch

from thnerf.dense import BLOCK, LANES, outer, outer_plain
from thnerf.field import HeadField
from thnerf.network import head_radiance, prior_at, prior_plain


def head(channels: int, width: int) -> HeadField:
    torch.manual_seed(width)
    field = HeadField(channels, width, np.random.default_rng(0).normal(0, 3, (8, 8, 8)).astype(np.float32)).eval()
    with torch.no_grad():
        field.last.weight.mul_(5)
    return field


@pytest.mark.parametrize("rows, columns", [(32, 20), (4, 32), (8, 64)])
def test_outer_products_equal_plain_loops(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    a, b, start = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, BLOCK), (columns, BLOCK), (rows, columns, LANES)))
    plain, fast = start.copy(), start.copy()
    outer_plain(a, b, plain)
    outer(a, b, fast)
    assert np.allclose(plain, fast, atol=1e-5)
    assert np.allclose((fast - start).sum(-1), a @ b.T, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, BLOCK, 3000])
@pytest.mark.parametrize("channels, width", [(20, 32), (8, 64)])
def test_kernels_equal_torch_with_all_gradients(count: int, channels: int, width: int) -> None:
    field, generator = head(channels, width), torch.Generator().manual_seed(count)
    x, positions = torch.randn(count, channels, generator=generator), 1.2 * torch.rand(count, 3, generator=generator) - 0.1
    g_density, g_colour = torch.randn(count, generator=generator), torch.randn(count, 3, generator=generator)
    results = []
    for network in (field, lambda f, p: head_radiance(field, f, p)):
        features, at = x.clone().requires_grad_(), positions.clone().requires_grad_()
        density, colour = network(features, at)
        field.zero_grad()
        ((torch.log(density) * g_density).sum() + (colour * g_colour).sum()).backward()
        results.append([density, colour, features.grad, at.grad, *(p.grad for p in field.parameters())])
    for plain, fast in zip(*results):
        assert plain.shape == fast.shape
        assert torch.allclose(plain, fast, rtol=1e-3, atol=1e-4 * max(1.0, float(plain.detach().abs().max()) if plain.numel() else 1.0))


def test_limits_of_the_density_stop_its_gradient() -> None:
    field = head(8, 32)
    with torch.no_grad():
        field.last.bias[0] = 50.0
    features = torch.randn(5, 8, requires_grad=True)
    density, _ = head_radiance(field, features, torch.rand(5, 3))
    density.sum().backward()
    assert torch.allclose(density, torch.full((5,), float(np.exp(8.0)))) and not features.grad.any()


@pytest.mark.parametrize("cells", [2, 9, 64])
def test_prior_of_a_block_equals_the_plain_one(cells: int) -> None:
    rng = np.random.default_rng(cells)
    grid, position = rng.normal(0, 10, (cells,) * 3).astype(np.float32), (1.4 * rng.random((3, BLOCK)) - 0.2).astype(np.float32)
    position[:, 0], position[:, 1], position[:, 2] = 0, 1, 0.5
    plain, fast = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    prior_plain(position, grid, BLOCK, plain)
    prior_at(position, grid, fast)
    assert np.abs(plain - fast).max() < 0.01  # at the upper border it looks 1e-4 of a cell further in
