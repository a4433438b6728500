"""Pixels correct what landmarks get wrong, light does not disturb them, and hidden points do not count."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from recon import photometric
from recon.config import FitConfig
from recon.contrast import contrast, look, visible
from recon.model import load_model
from recon.photometric import Poses, Refiner, sample_surface
from recon.quadratic import project, robust_weights
from recon.problem import ROBUST, make_problem
from recon.solve import solve, solve_identity
from recon.track import Track
from render.camera import Camera
from render.raster import interpolate, rasterise
from render.rotations import angle_between, axis_angle_to_matrix, from_head_angles, matrix_to_axis_angle

SIZE, FRAMES = 160, 10


@pytest.fixture(scope="module")
def scene():
    """A painted head that turns and smiles, its exact landmarks, and the truth."""
    model, rng = load_model(), np.random.default_rng(0)
    swing = np.sin(np.linspace(0, 2 * np.pi, FRAMES, endpoint=False))
    expression = np.zeros((FRAMES, len(model.expression_names)), np.float32)
    for name in ("mouthSmileLeft", "mouthSmileRight"):
        expression[:, model.index(name)] = 0.35 - 0.35 * swing[::-1]
    angles = np.stack([0.35 * swing, 0.12 * np.roll(swing, 3), 0.05 * swing], -1)
    middle = model.mean[model.regions["face"]].mean(0)
    rotation = from_head_angles(angles)
    translation = np.array([0, 0, 600.0]) - axis_angle_to_matrix(rotation) @ middle
    track = Track(fps=25, model_id=model.model_id, camera=Camera.simple(2.5 * SIZE, SIZE, SIZE, FRAMES), shape=np.zeros(len(model.shape_basis)), expression=expression,
                  rotation=rotation, translation=translation, gaze=np.zeros((FRAMES, 2, 2)), torso=np.zeros((FRAMES, 0)), valid=np.ones(FRAMES, bool),
                  expression_names=model.expression_names)
    # blotches of some mm that are smooth over the surface
    waves, phase = rng.normal(0, 0.35, (24, 3)), rng.uniform(0, 6.3, 24)
    colour = 120 + 14 * np.sin(model.mean @ waves.T + phase).reshape(len(model.mean), 3, 8).sum(-1)
    pictures, points = [], []
    for k in range(FRAMES):
        world = model.vertices(track.shape, expression[k]) @ axis_angle_to_matrix(rotation[k]).T + translation[k]
        fragments = rasterise(world, model.faces, track.camera, k)
        pictures.append(np.clip(interpolate(fragments, model.faces, colour, 60.0), 0, 255).astype(np.uint8))
        points.append(track.camera.project(model.points(world, "mediapipe478")[None].repeat(FRAMES, 0))[k])
    return model.without_response(), track, np.array(pictures), np.array(points)


def refiner_of(scene, expected=None):
    model, track, _, points = scene
    config = FitConfig(focal=2.5 * SIZE, keyframes=FRAMES)
    problem = make_problem(points, track.valid, SIZE, SIZE, model, config)
    identity = solve_identity(problem, config, rounds=6)
    low, high = np.repeat(problem.lower[None], FRAMES, 0), np.repeat(problem.upper[None], FRAMES, 0)
    return Refiner(problem, identity, model, low, high, expected)


def true_poses(track):
    return Poses(np.arange(FRAMES), axis_angle_to_matrix(track.rotation), track.translation.copy(), track.expression.astype(float))


def test_frames_find_back_to_textures(scene):
    track, refiner = scene[1], refiner_of(scene)
    refiner.neutral = scene[0].mean.astype(np.float32)
    refiner.rest = refiner._pick(refiner.neutral)
    true = true_poses(track)
    textures = {}
    for blur, _ in photometric.LATER:
        views = refiner._views(scene[2], true, blur)
        textures[blur], _ = refiner.texture(views, true, refiner._sights(views, true))
    turned = axis_angle_to_matrix(np.deg2rad([[1.0, -1.5, 0.5]])) @ true.R
    kept = true.t + (true.R - turned) @ refiner.rest.mean(0)
    found = refiner.follow(Poses(true.frames, turned, kept, true.e), scene[2], textures)
    before, after = (np.degrees(angle_between(matrix_to_axis_angle(R), track.rotation)).mean() for R in (turned, found.R))
    assert after < 0.4 * before


def test_a_frame_that_gets_lost_keeps_its_landmarks(scene, monkeypatch):
    refiner, true = refiner_of(scene), true_poses(scene[1])
    monkeypatch.setattr(refiner, "step", lambda views, texture, sights, poses: Poses(poses.frames, axis_angle_to_matrix(np.array([[0, 0.5, 0]])) @ poses.R, poses.t, poses.e))
    textures = {blur: None for blur, _ in photometric.LATER}
    found = refiner.follow(true, scene[2], textures)
    assert np.allclose(found.R, true.R) and np.allclose(found.t, true.t)


def test_expressions_are_drawn_to_what_is_known_of_them(scene):
    true = true_poses(scene[1])
    smiles = [scene[0].index(f"mouthSmile{side}") for side in ("Left", "Right")]
    known = np.full(true.e.shape, np.nan)
    known[:, smiles] = true.e[:, smiles]
    nothing, something = (np.abs(refiner_of(scene, expected).learn(true, scene[2])[0].e - true.e)[:, smiles].mean() for expected in (None, known))
    assert something < 0.8 * nothing


def test_the_whole_fit_is_closer_with_pixels_where_landmarks_err_alike(scene):
    model, track, pictures, points = scene
    wrong = points + 0.02 * np.abs(points - points.mean(1, keepdims=True)) * np.sign(track.rotation[:, 1:2, None])
    said = {}
    config = FitConfig(corrector=False, focal=2.5 * SIZE, keyframes=FRAMES, pose_smoothing=0, expression_smoothing=0)
    with_pixels = solve(wrong, track.valid, (0,), 25, SIZE, SIZE, model, config, said, pictures=lambda: pictures)
    before, after = said["photometric"]
    assert after < before
    assert (with_pixels.expression >= 0).all() and (with_pixels.expression <= 1).all()
    assert (with_pixels.column("mouthClose") <= with_pixels.column("jawOpen") + 1e-6).all()
    off = {}
    alone = solve(wrong, track.valid, (0,), 25, SIZE, SIZE, model, replace(config, photometric=False), off, pictures=lambda: pictures)
    assert off["photometric"] is None
    plain = solve(wrong, track.valid, (0,), 25, SIZE, SIZE, model, config)
    assert np.array_equal(alone.rotation, plain.rotation) and np.array_equal(alone.expression, plain.expression)


def test_contrast_ignores_gain_and_soft_light():
    rng = np.random.default_rng(1)
    picture = np.clip(120 + 60 * cv2.GaussianBlur(rng.normal(size=(96, 96, 3)), (0, 0), 1.5) * 4, 40, 200)
    ramp = np.linspace(0.7, 1.2, 96)[None, :, None]
    plain, lit = contrast(picture, 1.0), contrast(picture * ramp, 1.0)
    inner = (slice(10, -10), slice(10, -10))
    assert np.corrcoef(plain[inner][..., 0, 0].ravel(), lit[inner][..., 0, 0].ravel())[0, 1] > 0.99


def test_look_ups_are_bilinear_and_slopes_are_their_differences():
    rows, columns = np.mgrid[:20, :30]
    picture = np.repeat((100 + 2.0 * columns + 30 * np.sin(rows / 3))[..., None], 3, 2)
    feature = contrast(picture, 1.0)
    out, moved = np.empty((1, 2, 3), np.float32), np.empty((1, 2, 3), np.float32)
    at = np.array([[12.5, 9.5]])
    look(feature, at, out)
    assert np.allclose(out[0], feature[9, 12], atol=1e-6)  # pixel centres lie at +0.5
    look(feature, at + [0, 1.0], moved)
    back = np.empty_like(out)
    look(feature, at - [0, 1.0], back)
    assert np.allclose(out[0, :, 2], (moved - back)[0, :, 0] / 2, atol=1e-5)


def test_what_lies_behind_the_mesh_is_hidden():
    camera = np.array([[-10.0, -10, 100], [10, -10, 100], [0, 10, 100]])
    px = camera[:, :2] / camera[:, 2:] * 500
    for order in ([0, 1, 2], [0, 2, 1]):  # seen from the front in one of them
        points = np.array([[0, -2.0, 99], [0, -2.0, 120], [30, 0, 120]])
        shown = np.empty(3, np.float32)
        visible(camera, px, np.array([order], np.int32), points, points[:, :2] / points[:, 2:] * 500, 2.0, shown)
        if shown[1] == 0:
            assert shown.tolist() == [1, 0, 1]
            break
    else:
        raise AssertionError("nothing was hidden")


def test_points_lie_on_skin_and_are_always_the_same():
    model = load_model()
    faces, weights, density = sample_surface(model)
    again, _, _ = sample_surface(model)
    assert np.array_equal(faces, again) and np.allclose(weights.sum(1), 1) and (weights >= 0).all()
    assert model.regions["face"][model.faces[faces]].all() and not model.regions["mouth_inside"][model.faces[faces]].any()


def test_steps_equal_finite_differences(scene):
    """The gradient of one frame's weighted squares by pose and expression, pixels and landmarks alike."""
    refiner, true = refiner_of(scene), true_poses(scene[1])
    poses = Poses(true.frames[:1], true.R[:1], true.t[:1], true.e[:1] + 0.2)
    heads, M, v = refiner._landmarks(poses)
    problem = refiner.problem

    def cost(e, R, t):
        _, seen = project(problem.place(refiner.identity.head, e, R), R, t, refiner.identity.focal)
        r = (problem.picture[:1] - seen) / problem.unit
        return r, robust_weights(r, ROBUST)

    r0, w0 = cost(poses.e, poses.R, poses.t)
    column = problem.names.index("jawOpen")
    step = np.zeros_like(poses.e)
    step[0, column] = 1e-4
    r1, _ = cost(poses.e + step, poses.R, poses.t)
    numeric = -(photometric.TRUST * problem.base * w0 * (r0 * (r1 - r0) / 1e-4).sum(-1)).sum()
    analytic = (v[0] * refiner.basis[len(refiner.rest):, :, column]).sum()
    assert np.isclose(numeric, analytic, rtol=0.02, atol=1e-2)
