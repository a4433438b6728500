"""The torso begins by following its coefficients, and can be trained to an image that they move."""

import torch

from thnerf.config import TorsoConfig
from thnerf.encodings import BlendedTables, HashGridLayout
from thnerf.torso import MARGIN, TorsoField


def make(features: int = 4) -> TorsoField:
    torch.manual_seed(0)
    return TorsoField(12, features, 6, 16, torch.tensor([0.02, 0.01, 0.05, 0.03, 1.0])[:features])


def test_shift_and_scale_are_undone_from_the_start() -> None:
    torso = make()
    with torch.no_grad():
        torso.warp_last.weight.zero_()
    rest = torch.rand(30, 2) * 0.4 + 0.3
    pose = torch.zeros(30, 6)
    zero = torch.zeros(30, 4)
    shifted = zero.clone()
    shifted[:, 0], shifted[:, 1] = 1.5, -1.0  # in standard deviations: 0.03 right, 0.01 up
    a = torso.canonical(rest, zero, pose)
    assert torch.allclose(a, MARGIN + (1 - 2 * MARGIN) * rest, atol=1e-6)
    assert torch.allclose(torso.canonical(rest + torch.tensor([0.03, -0.01]), shifted, pose), a, atol=1e-6)
    scaled, turned = zero.clone(), zero.clone()
    scaled[:, 2], turned[:, 3] = 0.2, 0.3  # log-scale 0.01, angle 0.009
    assert torch.allclose(torso.canonical(0.5 + (rest - 0.5) * 1.01, scaled, pose), a, atol=1e-4)
    x, y = (rest - 0.5).unbind(-1)
    assert torch.allclose(torso.canonical(0.5 + torch.stack([x - 0.009 * y, y + 0.009 * x], -1), turned, pose), a, atol=1e-4)


def test_works_without_coefficients() -> None:
    rgb, alpha = make(0)(torch.rand(5, 2), torch.zeros(5, 0), torch.zeros(5, 6), lambda uv: torch.zeros(len(uv), 12))
    assert rgb.shape == (5, 3) and alpha.shape == (5,) and torch.isfinite(rgb).all()


def test_learns_a_moving_pattern_and_renders_it_at_an_unseen_shift() -> None:
    torso, layout = make(), HashGridLayout(2, 6, 2, 12, 4, 48)
    tables = BlendedTables(layout, 0)
    optimizer = torch.optim.Adam(torso.parameters(), lr=3e-3)
    none = torch.zeros(1, 0)

    def truth(uv: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        x = uv - shift
        return torch.stack([0.5 + 0.4 * torch.sin(14 * x[:, 0]), 0.5 + 0.4 * torch.sin(11 * x[:, 1]), (x[:, 0] > 0.5).float()], -1)

    def render(uv: torch.Tensor, coefficients: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return torso(uv, coefficients, torch.zeros(len(uv), 6), lambda p: tables.backend.encode(p, table, layout, None))[0]

    g = torch.Generator().manual_seed(0)
    for _ in range(250):
        uv, c = torch.rand(2000, 2, generator=g), torch.zeros(2000, 4)
        c[:, :2] = torch.randn(1, 2, generator=g).clamp(-2, 2)
        table = tables.blend(none)
        loss = (render(uv, c, table) - truth(uv, c[:, :2] * torch.tensor([0.02, 0.01]))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tables.step(table.grad, none, 1e-2, 0.0)
    uv, c = torch.rand(4000, 2, generator=g), torch.zeros(4000, 4)
    c[:, :2] = torch.tensor([1.2, -0.7])
    with torch.no_grad():
        image = render(uv, c, tables.blend(none))
    moved, still = truth(uv, torch.tensor([0.024, -0.007])), truth(uv, torch.zeros(2))
    assert (image - moved).square().mean() < 0.3 * (image - still).square().mean()


def test_larger_pictures_get_a_finer_grid() -> None:
    plain = TorsoConfig()
    assert plain.for_picture(256) == plain == plain.for_picture(200)
    large = plain.for_picture(512)
    assert large.finest_resolution == 2 * plain.finest_resolution and large.log2_entries == plain.log2_entries + 2
