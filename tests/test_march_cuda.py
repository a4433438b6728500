"""The marchings for CUDA equal the CPU's: Triton (in its interpreter without a GPU) and nerfacc's volume rendering."""

import importlib.util
import os

import numpy as np
import pytest
import torch

from render.files import InputError
from render.march import Volume, composite_reference
from render.marching import load_marching
from test_march import LOWER, UPPER, rays

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are decorated


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed (pip install {package})")


@needs("triton")
@pytest.mark.parametrize("limit", [200, 7])
def test_triton_marches_as_numba_does(limit: int) -> None:
    grid = np.random.default_rng(1).random((8, 8, 8)) < 0.4
    volume, jitter = Volume(LOWER, UPPER, grid, 0.3), np.random.default_rng(2).random(300, dtype=np.float32)
    a = load_marching("numba").march(*rays(300), volume, jitter, limit)
    b = load_marching("triton", DEVICE).march(*rays(300), volume, jitter, limit)
    counts = np.diff(a.offsets), np.diff(b.offsets.cpu())
    same = counts[0] == counts[1]  # a sample on a cell border may fall either way
    assert len(a.positions) > 500 and same.mean() > 0.97 and counts[1].max() <= limit
    rows = [torch.from_numpy(np.repeat(same, c)) for c in counts]
    assert torch.allclose(a.positions[rows[0]], b.positions.cpu()[rows[1]], atol=2e-4)
    assert torch.equal(a.ray[rows[0]], b.ray.cpu()[rows[1]])


@needs("triton")
def test_triton_misses_what_the_rays_miss() -> None:
    volume = Volume(LOWER, UPPER, np.ones((4, 4, 4), bool), 0.01)
    origins = np.array([[0, 1, -5.0], [9, 9, -5]], np.float32)
    samples = load_marching("triton", DEVICE).march(origins, np.array([[0, 0, 2.0], [0, 0, 2.0]], np.float32), volume, limit=2000)
    assert abs(int(samples.offsets[1]) - 800) <= 1 and samples.offsets[2] == samples.offsets[1]


@pytest.mark.parametrize("name", [pytest.param("triton", marks=needs("triton")), pytest.param("nerfacc", marks=needs("nerfacc"))])
def test_composite_equals_reference_with_gradients(name: str) -> None:
    rng = np.random.default_rng(2)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(rng.integers(0, 12, 300))])).int()
    M = int(offsets[-1])
    density, colour = torch.from_numpy(rng.gamma(0.5, 20, M).astype(np.float32)), torch.from_numpy(rng.random((M, 3), dtype=np.float32))
    density[::17] = 400.0  # opaque samples: transmittance behind them vanishes
    g = torch.Generator().manual_seed(0)
    gc, gt = torch.randn(300, 3, generator=g), torch.randn(300, generator=g)
    results = []
    for f, device in ((composite_reference, "cpu"), (load_marching(name, DEVICE).composite, DEVICE)):
        s, c = density.to(device).requires_grad_(), colour.to(device).requires_grad_()
        out, T, w = f(s, c, 0.3, offsets.to(device) if f is not composite_reference else offsets.numpy())
        ((out * gc.to(device)).sum() + (T * gt.to(device)).sum()).backward()
        results.append([a.detach().cpu() for a in (out, T, w, s.grad, c.grad)])
    for a, b in zip(*results):
        assert torch.allclose(a, b, atol=2e-5)


def test_unknown_and_absent_marchings_say_so() -> None:
    with pytest.raises(InputError, match="numba"):
        load_marching("optix")
    for name in ("triton", "nerfacc"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(InputError, match="pip install"):
                load_marching(name)
    if importlib.util.find_spec("nerfacc") is not None:
        with pytest.raises(InputError, match="CUDA only"):
            load_marching("nerfacc", "cpu").march(*rays(3), Volume(LOWER, UPPER, np.ones((4, 4, 4), bool), 0.1))
