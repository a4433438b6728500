"""Smoothing: the laws of a zero-phase filter, and clips that stay apart."""

import numpy as np
import pytest

from recon.smooth import fill_gaps, whittaker


def test_lines_pass_unchanged_and_clips_stay_apart():
    line = np.stack([np.arange(20) * 0.3 + 1, -2 * np.arange(20.0)], -1)
    assert np.allclose(whittaker(line, 50), line)
    step = np.r_[np.zeros(10), np.ones(10)]
    assert np.allclose(whittaker(step, 50, (0, 10)), step)
    assert not np.allclose(whittaker(step, 50), step, atol=0.05)


def test_it_is_linear_symmetric_in_time_and_solves_its_own_equations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 3))
    w = rng.uniform(0.1, 2, 40)
    assert np.allclose(whittaker(a + 2 * b, 3, weights=w), whittaker(a, 3, weights=w) + 2 * whittaker(b, 3, weights=w))
    assert np.allclose(whittaker(a[::-1], 3)[::-1], whittaker(a, 3))
    D = np.diff(np.eye(40), 2, axis=0)
    assert np.allclose((np.diag(w) + 3 * D.T @ D) @ whittaker(a, 3, weights=w), w[:, None] * a)


def test_gain_is_as_documented():
    t = np.arange(400)
    for omega in (0.1, 0.6, 1.5):
        y = whittaker(np.cos(omega * t), 1.0)[100:300]
        gain = 1 / (1 + (2 * np.sin(omega / 2)) ** 4)
        assert np.allclose(y, gain * np.cos(omega * t[100:300]), atol=2e-3)


def test_short_clips_and_no_smoothing_return_the_input():
    x = np.random.default_rng(1).normal(size=(5, 2))
    assert np.array_equal(whittaker(x, 10, (0, 1, 3)), x)
    assert np.array_equal(whittaker(x, 0), x)


def test_gaps_are_bridged_inside_a_clip_and_held_at_its_ends():
    x = np.array([9.0, 1, np.nan, np.nan, 4, np.nan, 7, np.nan, 5])
    valid = np.isfinite(x) & (x != 9)
    assert fill_gaps(x, valid, (0, 6)).tolist() == [1, 1, 2, 3, 4, 4, 7, 6, 5]
    assert fill_gaps(np.array([np.nan, np.nan, 2.0, 4.0]), np.array([0, 0, 1, 1], bool), (0, 2)).tolist() == [3, 3, 2, 4]
    with pytest.raises(ValueError, match="no frame is valid"):
        fill_gaps(x, np.zeros(9, bool))
