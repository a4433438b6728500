"""The shell, the prior and the warp follow the mesh; the pose correction is a rigid motion with the gradient of one."""

import numpy as np
import torch

from render.march import march
from thnerf.avatar import Avatar
from thnerf.config import FieldConfig, TorsoConfig
from thnerf.dataset import Condition
from thnerf.field import UNIT_MM, HeadField, PoseCorrection, mesh_warp
from thnerf.shell import FADE, PRIOR, head_volume
from synthetic import NAMES, RADII, toy_model


def toy_volume():
    model = toy_model()
    opened = model.vertices(np.zeros(1), np.eye(len(NAMES))[:1])
    meshes = np.concatenate([model.mean[None], opened])
    jaws = model.points(meshes, "ibug68")[:, :17]
    return (*head_volume(meshes, model.faces, jaws, 25.0, 64, 4.5), meshes)


def cells(volume, points: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.floor(volume.unit(points) * 64).astype(int).T)


def test_shell_holds_the_visible_surface_of_every_expression() -> None:
    volume, _, meshes = toy_volume()
    for vertices in meshes:
        chin = toy_model().points(vertices, "ibug68")[8]
        front = vertices[(vertices[:, 2] > chin[2]) & (vertices[:, 1] > chin[1])]
        assert volume.occupancy[cells(volume, front)].all()
    assert not volume.occupancy[cells(volume, np.array([[0.0, 0, -20]]))].any()  # the unseen inside
    assert not volume.occupancy[cells(volume, np.array([[0.0, -95, -10]]))].any()  # the neck
    assert 0.01 < volume.occupancy.mean() < 0.4


def test_prior_is_opaque_inside_and_clear_in_front() -> None:
    volume, prior, _ = toy_volume()
    inside, outside = np.array([[0.0, 0, RADII[2] - 15], [30, 20, 60]]), np.array([[0.0, 0, RADII[2] + 12], [90, 60, 70]])
    assert (prior[cells(volume, inside)] > 1).all() and (prior[cells(volume, outside)] < -1).all()


def test_untrained_head_is_opaque_at_the_surface_and_has_no_fog_in_front() -> None:
    volume, prior, _ = toy_volume()
    field = HeadField(4, 16, prior).eval()
    origins = np.array([[0.0, 0, 900]], np.float32)
    samples = march(origins, np.array([[0, 0, -1.0]], np.float32), volume)
    density, colour = field(torch.zeros(len(samples.positions), 4), torch.from_numpy(samples.positions))
    z = volume.lower[2] + samples.positions[:, 2] * (volume.upper - volume.lower)[2]
    light = np.exp(-np.cumsum(density.detach().numpy()) * volume.optical_step)
    assert light[z > RADII[2] + 8].min() > 0.7 and light[-1] < 0.2
    assert ((colour >= 0) & (colour <= 1)).all()


def test_density_is_gone_at_the_border_of_the_shell_and_untouched_at_the_surface() -> None:
    volume, prior, meshes = toy_volume()
    x, y = np.nonzero(volume.occupancy.any(2))
    nearest = 63 - volume.occupancy[x, y, ::-1].argmax(1)  # towards the camera; the far side of the shell is hidden
    assert np.quantile(prior[x, y, nearest], 0.99) < -FADE / 2 and prior[x, y, nearest].max() < -PRIOR
    points = meshes[0][(meshes[0][:, 2] > 30) & (np.abs(meshes[0][:, 1]) < 50)]  # clear of where the shell ends under the jaw
    assert np.abs(prior[cells(volume, points)]).max() <= PRIOR


def test_the_shell_grows_where_the_mattes_show_hair_and_ends_where_they_show_none() -> None:
    volume, _, _ = toy_volume()
    model = toy_model()
    jaws = model.points(model.mean[None], "ibug68")[:, :17]
    build = lambda person: head_volume(model.mean[None], model.faces, jaws, 25.0, 64, 4.5, person)[0].occupancy  # noqa: E731
    everywhere, nowhere = build(lambda x: np.ones(len(x))), build(lambda x: np.zeros(len(x)))
    assert everywhere.sum() > 1.2 * volume.occupancy.sum() and not nowhere.any()
    left = build(lambda x: (x[:, 0] < 0).astype(float))
    assert left[:30].sum() > 5 * left[36:].sum()


def test_pose_correction_moves_rays_like_points() -> None:
    torch.manual_seed(0)
    correction = PoseCorrection(3)
    with torch.no_grad():
        correction.weight.copy_(torch.randn(4, 6) * 1e-3)
    features = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    origins, matrices = np.array([[0.0, 10, 800], [5, 0, 700]]), np.stack([np.eye(3)] * 2)
    moved, turned = correction.apply_to_rays(features, origins, matrices)
    delta = correction(torch.from_numpy(features)).detach().numpy()
    for i in range(2):
        direction, t = np.array([0.1, -0.2, -1.0]), 650.0
        point = origins[i] + t * direction
        expected = point + np.cross(delta[i, :3], point) + delta[i, 3:] * UNIT_MM
        assert np.allclose(moved[i] + t * (turned[i] @ direction), expected, atol=1e-2)


def test_attached_gradient_is_that_of_the_motion() -> None:
    lower, upper = torch.tensor([-100.0, -120, -90]), torch.tensor([100.0, 150, 80])
    correction, features = PoseCorrection(2), torch.tensor([[0.5, -1.0], [2.0, 0.3]])
    positions, which = torch.rand(40, 3), torch.arange(40) % 2
    target = torch.rand(40, 3)
    attached = correction.attach(features, positions, which, lower, upper)
    assert torch.allclose(attached, positions)
    (attached * target).sum().backward()
    weight = torch.zeros(3, 6, dtype=torch.float64)
    weight[1, 4] = weight[2, 0] = 1e-4  # a finite motion along two of the parameters
    delta = (torch.cat([features, torch.ones(2, 1)], 1).double() @ weight)[which]
    points = (lower + positions * (upper - lower)).double()
    moved = points + torch.cross(delta[:, :3], points, dim=-1) + delta[:, 3:] * UNIT_MM
    change = (((moved - points) / (upper - lower).double()) * target.double()).sum()
    assert torch.allclose((correction.weight.grad.double() * weight).sum(), change, rtol=1e-3)


def test_warp_carries_a_moved_mesh_back_to_the_resting_one() -> None:
    volume, prior, _ = toy_volume()
    model, rng = toy_model(), np.random.default_rng(0)
    psi = np.concatenate([rng.normal(size=(40, len(NAMES))), rng.normal(size=(40, 2))], 1).astype(np.float32)  # gaze moves no mesh
    meshes = model.vertices(np.zeros(1), 0.3 * psi[:, : len(NAMES)])
    displacement = mesh_warp(meshes, psi, len(NAMES), volume, 32)
    assert displacement.shape == (32**3, 3, len(NAMES) + 2) and not displacement[:, :, len(NAMES) :].any()
    K = len(NAMES) + 2
    condition = Condition(np.eye(K), np.zeros(K), np.zeros(6), np.ones(6), np.zeros(4), np.ones(4))
    avatar = Avatar(FieldConfig(), TorsoConfig(), condition, volume, prior, 0.5)
    avatar.set_warp(displacement)
    some = np.zeros((1, K), np.float32)
    some[0, : len(NAMES)] = 0.5
    moved = model.vertices(np.zeros(1), 0.3 * some[:, : len(NAMES)])[0]
    seen = (moved[:, 2] > 10) & ((volume.unit(moved) > 0.05) & (volume.unit(moved) < 0.95)).all(1)
    rest, moved = volume.unit(model.mean)[seen], volume.unit(moved)[seen].astype(np.float32)
    back = avatar.warp(torch.from_numpy(moved), avatar.blend_warp(torch.from_numpy(some)).detach()).numpy()
    before, after = (np.linalg.norm((x - rest) * (volume.upper - volume.lower), axis=1) for x in (moved, back))
    assert before.max() > 1 and after[before > 0.5].mean() < 0.4 * before[before > 0.5].mean()
    still = avatar.warp(torch.from_numpy(moved), avatar.blend_warp(torch.zeros(1, K)).detach()).numpy()
    assert np.allclose(still, moved, atol=1e-6)
