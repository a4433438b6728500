"""Where a head ends in the picture tells how wide its cheeks and jaw are, and nothing is said where something else lies behind it."""

import numpy as np
import pytest

from recon.config import FitConfig
from recon.model import load_model
from recon.photometric import Poses
from recon.problem import make_problem
from recon.silhouette import Outline, edge_offsets
from recon.solve import solve_identity
from recon.surface import similarity
from render.camera import Camera
from render.raster import rasterise
from render.rotations import axis_angle_to_matrix, from_head_angles

SIZE, FOCAL, FINE = 256, 640.0, 4


def coverage(vertices, R, t):
    """Matte (SIZE,SIZE) uint8 of a mesh, anti-aliased."""
    camera = Camera.simple(FINE * FOCAL, FINE * SIZE, FINE * SIZE)
    mask = rasterise((vertices @ R.T + t).astype(np.float32), load_model().faces, camera).mask
    return np.round(255 * mask.reshape(SIZE, FINE, SIZE, FINE).mean((1, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def turning():
    """A head with a face of its own that looks around: shape, poses, mattes and the true landmarks (T,478,2) px."""
    model, T = load_model(), 9
    shape = np.clip(np.random.default_rng(5).normal(0, 1, 40), -2, 2)
    R = axis_angle_to_matrix(from_head_angles(np.stack([np.linspace(-0.6, 0.6, T), 0.25 * np.cos(np.arange(T)), np.zeros(T)], 1)))
    t, e = np.tile([0, 0, 1000.0], (T, 1)), np.zeros((T, 52))
    vertices = model.vertices(shape, e[0]).astype(float)
    mattes = np.stack([coverage(vertices, R[i], t[i]) for i in range(T)])
    camera = model.points(vertices, "mediapipe478").astype(float) @ R.swapaxes(1, 2) + t[:, None]
    return model, shape, Poses(np.arange(T), R, t, e), mattes, FOCAL * camera[..., :2] / camera[..., 2:] + SIZE / 2


def test_an_edge_is_found_between_the_pixels():
    y, x = np.mgrid[0:80, 0:80] + 0.5
    matte = (255 * np.clip(20.3 - np.hypot(x - 40, y - 40) + 0.5, 0, 1)).astype(np.uint8)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    outward = np.stack([np.cos(angle), np.sin(angle)], 1)
    for radius in (17.5, 20.3, 23.0):
        offset, found = edge_offsets(matte, 40 + radius * outward, outward, 4.0)
        assert found.all() and np.abs(offset - (20.3 - radius)).max() < 0.12
    assert not edge_offsets(matte, 40 + 12 * outward, outward, 4.0)[1].any()  # too far away
    assert not edge_offsets(matte, 40 + 20 * outward, -outward, 4.0)[1].any()  # it begins there
    assert not edge_offsets(np.full((80, 80), 255, np.uint8), 40 + 20 * outward, outward, 4.0)[1].any()


def test_the_true_head_lies_on_its_outline_and_slopes_tell_by_how_much_another_does_not(turning):
    model, shape, poses, mattes, points = turning
    problem = make_problem(points, np.ones(len(points), bool), SIZE, SIZE, model.without_response(), FitConfig(shape_components=40))
    rows = lambda shape, t: Outline(model, lambda: mattes, poses.frames).rows(problem, shape, FOCAL, poses.R, t, poses.e)  # noqa: E731
    exact, aside, larger = rows(shape, poses.t), rows(shape, poses.t + [1.5, 0, 0]), rows(shape + 0.8 * np.eye(40)[0], poses.t)
    used = exact.weight > 0
    px = exact.residual[used] * problem.unit
    assert used.sum(1).min() > 10 and np.abs(np.median(px)) < 0.15 and np.percentile(np.abs(px), 90) < 0.8
    both = used & (aside.weight > 0)  # the same edges of the mesh
    assert np.corrcoef((exact.residual - aside.residual)[both], exact.pose[..., 3][both])[0, 1] > 0.9
    expected, found = np.median((exact.residual - 0.8 * exact.shape[..., 0])[used]), np.median(larger.residual[larger.weight > 0])
    assert abs(expected) > 0.3 and found == pytest.approx(expected, rel=0.5)


def test_it_brings_the_sides_of_the_face_nearer_where_landmarks_do_not_see_them(turning):
    model, shape, poses, mattes, points = turning
    inner = np.abs(model.points(model.mean, "mediapipe478")[:, 0]) < 40  # as if nothing were seen on the cheeks
    noisy = points + np.random.default_rng(2).normal(0, 0.6, points.shape)
    problem = make_problem(noisy, np.ones(len(points), bool), SIZE, SIZE, model.without_response(), FitConfig(shape_components=40, focal=FOCAL), withheld=np.flatnonzero(~inner))
    sides = model.regions["face"] & (np.abs(model.mean[:, 0]) > 50)
    truth, errors = model.vertices(shape, np.zeros(52)).astype(float), []
    for outline in (None, Outline(model, lambda: mattes, poses.frames)):
        found = solve_identity(problem, FitConfig(shape_components=40, focal=FOCAL), outline=outline)
        vertices = model.vertices(found.shape, np.zeros(52)).astype(float)
        scale, R, t = similarity(vertices[model.regions["face"]], truth[model.regions["face"]])
        errors.append(np.linalg.norm(scale * vertices @ R.T + t - truth, axis=1)[sides].mean())
    assert errors[1] < 0.9 * errors[0], errors
