"""Rotations and cameras: group laws, round trips, conventions."""

import numpy as np
import pytest

from render.camera import Camera
from render.rotations import (FRONTAL, angle_between, axis_angle_to_matrix, from_frontal, from_head_angles, head_angles, interpolate,
                              matrix_to_axis_angle, relative_to_frontal)

RNG = np.random.default_rng(1)
VECTORS = np.concatenate([RNG.normal(size=(50, 3)), np.zeros((1, 3)), 1e-9 * np.eye(3), np.pi * np.eye(3)])


def test_matrices_are_rotations_and_the_chart_is_inverted():
    m = axis_angle_to_matrix(VECTORS)
    assert np.allclose(m @ np.swapaxes(m, -1, -2), np.eye(3), atol=1e-12) and np.allclose(np.linalg.det(m), 1)
    assert np.allclose(axis_angle_to_matrix(matrix_to_axis_angle(m)), m, atol=1e-9)


def test_inverse_and_composition():
    a, b = RNG.normal(size=(2, 20, 3))
    assert np.allclose(axis_angle_to_matrix(-a), np.swapaxes(axis_angle_to_matrix(a), -1, -2))
    c = matrix_to_axis_angle(axis_angle_to_matrix(a) @ axis_angle_to_matrix(b))
    assert np.allclose(angle_between(a, c), np.minimum(np.linalg.norm(b, axis=-1), 2 * np.pi - np.linalg.norm(b, axis=-1)), atol=1e-7)


def test_head_angles_round_trip_and_signs():
    angles = RNG.uniform(-0.8, 0.8, (40, 3))
    assert np.allclose(head_angles(from_head_angles(angles)), angles, atol=1e-9)
    nose, crown = np.array([0, 0, 1.0]), np.array([0, 1.0, 0])
    turn = lambda yaw, pitch, roll: axis_angle_to_matrix(from_head_angles(np.array([yaw, pitch, roll])))  # noqa: E731
    assert (turn(0.3, 0, 0) @ nose)[0] > 0, "yaw to the subject's left is right in the picture"
    assert (turn(0, 0.3, 0) @ nose)[1] < 0, "pitch up is up in the picture"
    assert (turn(0, 0, 0.3) @ crown)[0] > 0, "roll to the left shoulder is right in the picture"
    assert np.allclose(turn(0, 0, 0), FRONTAL)


def test_relative_to_frontal_is_small_near_the_wrap_and_inverts():
    angles = np.array([[0.01, 0, 0], [-0.01, 0.01, 0], [0, -0.01, 0.02]])
    rotation = from_head_angles(angles)
    assert np.linalg.norm(relative_to_frontal(rotation), axis=-1).max() < 0.05
    assert angle_between(from_frontal(relative_to_frontal(rotation)), rotation).max() < 1e-7


def test_interpolation_hits_its_samples_and_clamps():
    rotation = from_head_angles(RNG.uniform(-0.5, 0.5, (5, 3)))
    times = np.arange(5.0)
    assert angle_between(interpolate(rotation, times, times), rotation).max() < 1e-6
    assert angle_between(interpolate(rotation, times, np.array([-3.0, 9.0])), rotation[[0, 4]]).max() < 1e-6


def test_projection_inverts_the_pixel_rays():
    camera = Camera.simple(300, 32, 24)
    rays = camera.ray_directions().reshape(1, -1, 3) * 7.0
    v, u = np.mgrid[0:24, 0:32] + 0.5
    assert np.allclose(camera.project(rays)[0], np.stack([u, v], -1).reshape(-1, 2), atol=1e-4)


def test_points_behind_the_camera_do_not_project():
    assert np.isnan(Camera.simple(300, 32, 24).project(np.array([[[0, 0, -1.0], [0, 0, 0]]]))).all()


def test_resizing_scales_pixels():
    camera, point = Camera.simple(300, 64, 64), np.array([[[3.0, 4.0, 50.0]]])
    assert np.allclose(camera.resized(128, 32).project(point), camera.project(point) * [2, 0.5])


@pytest.mark.parametrize("K, pose", [(np.eye(3), np.eye(4)), (np.zeros((3, 3)), np.eye(4)[None]), (np.full((3, 3), np.nan), np.eye(4)[None])])
def test_impossible_cameras_are_refused(K, pose):
    with pytest.raises(ValueError):
        Camera(K, pose, 10, 10)
