"""Lips of a Track meet where detected lips meet, and nothing else changes."""

import dataclasses

import numpy as np
import pytest

from recon import landmarks as lm
from recon.lips import PRESS, landmark_shift, lips_as_seen
from recon.model import load_model
from recon.track import Track
from render.camera import Camera
from render.rotations import FRONTAL, axis_angle_to_matrix, matrix_to_axis_angle


@pytest.fixture(scope="module")
def model():
    return load_model()


def speaking(model, frames=80, seed=0) -> Track:
    """A frontal head whose jaw moves, lips sometimes together over it."""
    rng, names = np.random.default_rng(seed), model.expression_names
    e = np.zeros((frames, len(names)))
    e[:, names.index("jawOpen")] = rng.uniform(0.02, 0.4, frames)
    e[::4, names.index("mouthClose")] = e[::4, names.index("jawOpen")]
    e[:, names.index("mouthLowerDownLeft")] = e[:, names.index("mouthLowerDownRight")] = rng.uniform(0, 0.3, frames) * (np.arange(frames) % 4 > 0)
    rotation = np.repeat(matrix_to_axis_angle(np.asarray(FRONTAL)[None]).reshape(1, 3), frames, 0)
    return Track(25, model.model_id, Camera.simple(640, 256, 256, frames), np.zeros(len(model.shape_basis)), e, rotation, np.tile([0.0, 0, 600], (frames, 1)),
                 np.zeros((frames, 2, 2)), np.zeros((frames, 0)), np.ones(frames, bool), names)


def landmarks_of(model, track, expression=None) -> np.ndarray:
    shown = model.vertices(track.shape, track.expression if expression is None else expression)
    world = np.einsum("tij,tnj->tni", axis_angle_to_matrix(track.rotation), model.points(shown, "mediapipe478")) + track.translation[:, None]
    return track.camera.project(world)


def test_lips_that_the_fit_left_apart_meet_again(model):
    truth = speaking(model)
    close, jaw = (truth.expression_names.index(n) for n in ("mouthClose", "jawOpen"))
    weak = truth.expression.copy()
    weak[:, close] *= 0.2  # as a prior shrinks it
    seen = landmarks_of(model, truth)
    touching = lm.inner_lip_gap(landmarks_of(model, truth, np.zeros_like(weak)))[0]
    seen[::4, [u for u, _ in lm.LIP_PAIRS[478]]] = seen[::4, [low for _, low in lm.LIP_PAIRS[478]]]  # a detector gives lips that touch no gap
    found = lips_as_seen(truth.replace(expression=weak), seen, model)
    gap = lm.inner_lip_gap(landmarks_of(model, found))
    assert lm.inner_lip_gap(landmarks_of(model, truth, weak))[::4].max() > 2 * touching
    assert gap[::4].max() < 1.1 * touching
    np.testing.assert_allclose(found.expression[:, jaw], truth.expression[:, jaw], atol=1e-6)
    assert (found.expression[:, close] <= found.expression[:, jaw] + 1e-6).all()


def test_nothing_opens_and_only_lips_move(model):
    track = speaking(model)
    wide = landmarks_of(model, track, np.where(np.array([n == "jawOpen" for n in track.expression_names]), 0.9, track.expression))
    np.testing.assert_array_equal(lips_as_seen(track, wide, model).expression, track.expression)
    shut = np.repeat(landmarks_of(model, track)[:1], len(track), 0)
    shut[:, [u for u, _ in lm.LIP_PAIRS[478]]] = shut[:, [low for _, low in lm.LIP_PAIRS[478]]]
    moved = np.flatnonzero(np.abs(lips_as_seen(track, shut, model).expression - track.expression).max(0) > 1e-6)
    assert {track.expression_names[i] for i in moved} <= {"mouthClose", "mouthLowerDownLeft", "mouthLowerDownRight", *PRESS}


def test_frames_without_a_face_and_other_models_are_left_alone(model):
    track = speaking(model)
    valid = np.arange(len(track)) % 2 == 0
    points = np.where(valid[:, None, None], 100.0, np.nan) * np.ones((len(track), 478, 2))
    found = lips_as_seen(track.replace(valid=valid), points, model)
    np.testing.assert_array_equal(found.expression[~valid], track.expression[~valid])
    assert np.isfinite(found.expression).all() and np.abs(found.expression - track.expression)[valid].max() > 0.01
    other = dataclasses.replace(model, expression_names=tuple("x" + n for n in model.expression_names))
    assert lips_as_seen(track, points, other) is track


def test_landmarks_move_as_the_mesh_does(model):
    track = speaking(model)
    other = track.replace(expression=track.expression * np.where(np.arange(len(track)) % 2, 1.0, 0.5)[:, None])
    moved = landmark_shift(track, other, model, 478)
    np.testing.assert_allclose(moved, landmarks_of(model, other) - landmarks_of(model, track), atol=1e-2)
    assert not moved[1::2].any() and np.abs(moved[::2]).max() > 0.5
