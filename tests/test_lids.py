"""Blinks apart from how lids are held."""

import numpy as np
import pytest

from recon.lids import BLINKS, blinks_alone
from render.rotations import from_head_angles

NAMES = ("jawOpen", *BLINKS)
T = 250


@pytest.fixture(scope="module")
def clip():
    """Angles of a head that nods and turns (T,3), blinks of both lids (T,), and their level when open (T,)."""
    time = np.arange(T) / 25
    angles = np.stack([0.5 * np.sin(time), 0.3 * np.sin(1.7 * time + 1), 0 * time], 1)
    blink = np.zeros(T)
    for start in range(20, T - 8, 45):
        blink[start : start + 6] = (0.45, 0.95, 1, 0.85, 0.5, 0.2)
    return angles, blink, 0.1 + 0.1 * angles[:, 1] / 0.3


def seen(blink, level):
    """Expressions (T,3) in which a level lies under blinks."""
    lid = level + (1 - level) * blink
    return np.stack([np.linspace(0, 1, len(lid)), lid, lid], 1)


def test_a_level_that_follows_the_head_is_taken_off_and_blinks_stay(clip):
    angles, blink, level = clip
    found = blinks_alone(seen(blink, level), NAMES, from_head_angles(angles), np.ones(T, bool))
    assert np.abs(found[:, 1:] - blink[:, None]).max() < 0.06
    assert found[blink == 1, 1].min() > 0.99  # shut stays shut
    assert np.abs(seen(blink, level)[:, 1] - blink).max() > 0.19
    np.testing.assert_array_equal(found[:, 0], np.linspace(0, 1, T))


def test_lids_at_rest_where_the_model_has_them_change_little(clip):
    angles, blink, _ = clip
    found = blinks_alone(seen(blink, 0 * blink), NAMES, from_head_angles(angles), np.ones(T, bool))
    assert np.abs(found[:, 1] - blink).max() < 0.06


def test_frames_without_a_face_do_not_set_the_level(clip):
    angles, blink, level = clip
    e, valid = seen(blink, level), np.ones(T, bool)
    valid[100:140] = False
    wild = e.copy()
    wild[~valid, 1] = 1
    rotation = from_head_angles(angles)
    np.testing.assert_allclose(blinks_alone(wild, NAMES, rotation, valid)[valid], blinks_alone(e, NAMES, rotation, valid)[valid])


def test_shut_eyes_are_not_taken_for_rest(clip):
    angles, _, _ = clip
    rotation = from_head_angles(angles)
    np.testing.assert_allclose(blinks_alone(seen(np.ones(T), np.zeros(T)), NAMES, rotation, np.ones(T, bool))[:, 1:], 1)
    half = blinks_alone(seen(np.full(T, 0.6), np.zeros(T)), NAMES, rotation, np.ones(T, bool))
    assert half[:, 1].min() > 0.4


def test_a_few_frames_say_little_and_other_models_stay(clip):
    rotation = from_head_angles(np.zeros((1, 3)))
    assert blinks_alone(np.array([[0, 0.2, 0.2]]), NAMES, rotation, np.ones(1, bool))[0, 1] > 0.1
    e = np.random.default_rng(0).random((1, 3))
    assert blinks_alone(e, ("a", "b", "c"), rotation, np.ones(1, bool)) is e
