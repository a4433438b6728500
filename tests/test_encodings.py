"""The numba hash encoding equals the readable one, values and gradients; the layout equals tiny-cuda-nn's."""

import numba
import numpy as np
import pytest
import torch

from thnerf.encodings import BlendedTables, HashGridLayout, encode, load_backend, reference

LAYOUTS = [
    HashGridLayout(3, 5, 2, 12, 4, 64),  # dense 4^3 and 8^3, hashed above
    HashGridLayout(3, 1, 2, 9, 8, 8),  # exactly 2^T corners: still dense
    HashGridLayout(2, 6, 2, 10, 8, 256),
    HashGridLayout(2, 3, 2, 8, 5, 13),  # entries rounded up to 8, scales that are not whole
]


def positions(layout: HashGridLayout, seed: int = 0) -> torch.Tensor:
    """Random points, the corners of the box, and points on cell borders of every level."""
    g = torch.Generator().manual_seed(seed)
    inside = torch.rand(400, layout.dimensions, generator=g)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * layout.dimensions)
    borders = [((torch.randint(1, max(2, int(s)), (20, layout.dimensions), generator=g) - 0.5) / float(s)).clamp(0, 1) for s in layout.scales]
    return torch.cat([inside, corners, *borders]).float()


def random_tables(layout: HashGridLayout, count: int) -> torch.Tensor:
    return torch.randn(count, layout.size, generator=torch.Generator().manual_seed(1))


def test_layout_of_levels() -> None:
    layout = HashGridLayout(3, 4, 2, 14, 16, 128)
    assert layout.scales == pytest.approx([15, 31, 63, 127], abs=1e-3)
    assert list(layout.resolutions) == [16, 32, 64, 128]
    assert list(layout.entries) == [4096, 16384, 16384, 16384] and list(layout.hashed) == [False, True, True, True]
    odd = HashGridLayout(2, 2, 2, 10, 5, 7)
    assert list(odd.entries) == [32, 56] and odd.size == (32 + 56) * 2  # 25 → 32, 49 → 56


def test_dense_corner_order_and_hash() -> None:
    layout = HashGridLayout(3, 2, 2, 12, 16, 32)
    corner = torch.tensor([[3, 5, 7]])
    assert int(reference.corner_entry(corner, 0, layout)) == 3 + 16 * 5 + 256 * 7
    h = 3 ^ (5 * 2654435761 & 0xFFFFFFFF) ^ (7 * 805459861 & 0xFFFFFFFF)
    assert int(reference.corner_entry(corner, 1, layout)) == h % 4096


def test_constant_table_encodes_to_the_constant() -> None:
    layout = LAYOUTS[0]
    out = encode(positions(layout), torch.full((layout.size,), 0.7), layout)
    assert torch.allclose(out, torch.full_like(out, 0.7), atol=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["vectors", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda l: f"{l.dimensions}d{l.levels}")
def test_numba_equals_reference_with_gradients(layout: HashGridLayout, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr("thnerf.encodings.numba_backend._fits", lambda tables: False)
    x, which = positions(layout), None
    which = torch.arange(len(x)) % 3
    seed = torch.randn(len(x), layout.channels, generator=torch.Generator().manual_seed(2))
    results = []
    for backend in ("reference", "numba"):
        p, t = x.clone().requires_grad_(), random_tables(layout, 3).requires_grad_()
        out = encode(p, t, layout, which, backend)
        (out * seed).sum().backward()
        results.append((out.detach(), t.grad, p.grad))
    for a, b in zip(*results):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_position_gradient_is_the_slope() -> None:
    layout = HashGridLayout(3, 3, 2, 12, 4, 20)
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float32) * 0.9 + 0.05
    table = random_tables(layout, 1)
    p = x.clone().requires_grad_()
    encode(p, table, layout).sum().backward()
    step = 2e-4
    for axis in range(3):
        e = torch.zeros(3)
        e[axis] = step
        cells = lambda q: torch.stack([torch.floor(q * float(s) + 0.5) for s in layout.scales])  # noqa: E731
        same = (cells(x - e) == cells(x + e)).all(-1).all(0)
        slope = (encode(x + e, table, layout) - encode(x - e, table, layout)).sum(-1) / (2 * step)
        assert same.sum() > 30
        assert torch.allclose(slope[same], p.grad[same, axis], atol=0.1, rtol=0.02)


def test_blend_is_linear_and_backends_step_alike() -> None:
    layout = HashGridLayout(3, 3, 2, 10, 4, 32)
    psi = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    pair = [BlendedTables(layout, 3, seed=3, backend=name) for name in ("reference", "numba")]
    g = torch.Generator().manual_seed(6)
    for step in range(4):
        gradient = torch.randn(2, layout.size, generator=g) * (torch.rand(2, layout.size, generator=g) < 0.3)
        for tables in pair:
            tables.step(gradient, psi, 1e-2, 3e-3)
    a, b = (t.tables for t in pair)
    assert a[:, 1:].abs().max() > 1e-3 and torch.allclose(a, b, atol=1e-6)
    blended = [t.blend(psi) for t in pair]
    assert torch.allclose(blended[0], blended[1], atol=1e-6)
    direct = a[:, 0] + psi[1] @ a[:, 1:].T
    assert torch.allclose(blended[1][1], direct, atol=1e-6)


def test_untouched_entries_keep_their_value_and_moments() -> None:
    layout = HashGridLayout(2, 2, 2, 8, 4, 16)
    tables = BlendedTables(layout, 1)
    before = tables.tables.clone()
    gradient = torch.zeros(1, layout.size)
    gradient[0, 10] = 1.0
    tables.step(gradient, torch.tensor([[2.0]]), 1e-2, 1e-2)
    moved = (tables.tables != before).any(1)
    assert moved[10] and moved.sum() == 1


def test_state_round_trip_keeps_the_next_step() -> None:
    layout = HashGridLayout(2, 2, 2, 8, 4, 16)
    one, two = BlendedTables(layout, 2, seed=1), BlendedTables(layout, 2, seed=9)
    gradient, psi = torch.randn(1, layout.size), torch.tensor([[0.5, -1.0]])
    one.step(gradient, psi, 1e-2, 1e-2)
    two.load({k: v.clone() for k, v in one.state().items()})
    for t in (one, two):
        t.step(gradient * 0.5, psi, 1e-2, 1e-2)
    assert torch.equal(one.tables, two.tables)
    with pytest.raises(ValueError, match="shape"):
        BlendedTables(layout, 3).load(one.state())


def test_unknown_backend_names_the_known() -> None:
    with pytest.raises(ValueError, match="numba"):
        load_backend("cudnn")
    assert np.isfinite(HashGridLayout(3, 1).growth)


def test_look_ups_of_half_precision_equal_those_of_float() -> None:
    """Pairs of float16 at any level, and the warp's three components in one word against two levels of the same grid."""
    from thnerf.encodings.numba_blocks import look_up
    from thnerf.encodings.numba_vectors import look_up_three

    @numba.njit
    def three(x, scale, points, words, out):
        r = np.int32(points)
        for at in range(0, x.shape[1], 16):
            look_up_three(x[0], x[1], x[2], at, np.int32(0), scale, r, np.int32(r * r), np.int32(len(words)), words, out[0], out[1], out[2])

    x = np.random.default_rng(0).random((3, 64)).astype(np.float32)
    x[:, :2] = 0, 1
    for layout in (HashGridLayout(3, 2, 2, 12, 8, 64), HashGridLayout(3, 2, 2, 15, 32, 32)):
        table = random_tables(layout, 1)[0].half()
        words = table.numpy().view(np.uint32)
        features = np.empty((4, 64), np.float32)
        for level in range(2):
            look_up(True, layout.hashed[level], 64, *x, np.int32(layout.offsets[level]), layout.scales[level], layout.resolutions[level], layout.entries[level],
                    words, features[2 * level], features[2 * level + 1])
        exact = encode(torch.from_numpy(x.T.copy()), table.float(), layout, backend="reference").T.numpy()
        assert np.abs(features - exact).max() < 1e-5 * np.abs(exact).max()
    both = table.reshape(2, -1, 2)
    packed = torch.stack([both[0, :, 0], both[0, :, 1], both[1, :, 0], torch.zeros(len(both[0])).half()], 1).reshape(-1).numpy().view(np.uint64)
    out = np.empty((3, 64), np.float32)
    three(x, layout.scales[0], layout.resolutions[0], packed, out)
    assert np.abs(out - exact[:3]).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("size, conditions", [(70000, 5), (64, 1), (24, 0)])
def test_tables_of_half_precision_blend_to_the_same(size: int, conditions: int) -> None:
    from thnerf.encodings.half import HalfTables

    tables = torch.randn(size, conditions + 1, generator=torch.Generator().manual_seed(size)).half().float()
    psi = np.random.default_rng(1).normal(size=conditions).astype(np.float32)
    exact = tables.numpy() @ np.concatenate([[1], psi])
    found = HalfTables(tables).blend(psi)
    assert found.dtype == np.uint16 and np.abs(found.view(np.float16) - exact).max() <= 1e-3 * np.abs(exact).max()
