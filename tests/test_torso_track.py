"""The torso track follows the shoulders' similarity, from one reference, and says zero where it sees nothing."""

import cv2
import numpy as np

from recon.torso import track_torso

SIDE, CHIN = 128, 50


def moving_texture(tx, ty, log_scale, angle):
    """Frames of a textured torso that undergoes a similarity about the torso's centre, and the full matte."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), 2)
    texture = np.clip((texture - texture.mean()) * 5 + 128, 0, 255).astype(np.uint8)
    centre = np.array([SIDE / 2, 0.7 * SIDE])
    frames = []
    for x, y, s, a in zip(tx, ty, log_scale, angle):
        m = np.exp(s) * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        frames.append(cv2.warpAffine(texture, np.hstack([m, (centre - m @ centre + [x, y])[:, None]]), (SIDE, SIDE), borderMode=cv2.BORDER_REFLECT))
    return np.stack(frames), np.full((len(frames), SIDE, SIDE), 255, np.uint8)


def test_a_known_similarity_is_recovered_without_drift():
    t = np.arange(40)
    motion = np.stack([3 * np.sin(t / 5), 2 * np.cos(t / 7) - 2, 0.03 * np.sin(t / 6), 0.04 * np.sin(t / 8)], -1)
    frames, mattes = moving_texture(*motion.T)
    found = track_torso(frames, mattes, np.full(40, CHIN), modes=2)
    truth = motion / [SIDE, SIDE, 1, 1]
    difference = (found[:, :4] - found[:, :4].mean(0)) - (truth - truth.mean(0))
    assert np.abs(difference).max(0)[:2].max() < 0.5 / SIDE
    assert np.abs(difference[:, 2:]).max() < 0.01
    assert found.shape == (40, 6)


def test_no_visible_torso_gives_zeros():
    frames, mattes = moving_texture(*np.zeros((4, 6)))
    assert not track_torso(frames, np.zeros_like(mattes), np.full(6, CHIN)).any()


def test_a_frame_without_torso_takes_its_neighbours_values():
    t = np.arange(12)
    frames, mattes = moving_texture(0.3 * t, 0 * t, 0 * t, 0 * t)
    mattes[6] = 0
    found = track_torso(frames, mattes, np.full(12, CHIN))
    assert abs(found[6, 0] - (found[5, 0] + found[7, 0]) / 2) < 0.2 / SIDE
