"""Mattes and plates: the plate is the empty scene, without a ghost, and never invents detail where nothing was seen."""

import numpy as np
import pytest

from recon.matte import Matter, background_plate, fill_smoothly, sharpen


def scene():
    """A gradient scene with a person-sized block moving over it, and exact mattes."""
    v, u = np.mgrid[0:64, 0:64]
    plate = np.stack([u * 3, v * 3, 60 + 0 * u], -1).astype(np.uint8)
    frames, mattes = [], []
    for t in range(30):
        matte = (np.abs(u - 32 - 12 * np.sin(t / 3)) < 10) & (v > 12)
        frames.append(np.where(matte[..., None], np.uint8(250), plate))
        mattes.append(np.where(matte, 255, 0))
    return plate, np.stack(frames), np.stack(mattes).astype(np.uint8)


def test_the_plate_is_the_scene_wherever_it_was_seen_and_smooth_elsewhere():
    plate, frames, mattes = scene()
    found = background_plate(frames, mattes).astype(int)
    assert np.abs(found - plate).max() <= 30
    assert np.abs(found - plate)[:12].max() <= 1
    assert (np.abs(found - 250).max(-1) > 20).all(), "the person left a ghost"


def test_filling_keeps_known_pixels_and_stays_within_their_range():
    image = np.zeros((16, 16, 3), np.float32)
    image[:, :8] = 100
    known = np.zeros((16, 16), bool)
    known[:, :4] = known[:, 12:] = True
    filled = fill_smoothly(image, known)
    assert np.allclose(filled[known], image[known])
    assert filled.min() >= -1e-3 and filled.max() <= 100.001


def test_sharpening_is_monotone_and_reaches_both_ends():
    x = sharpen(np.linspace(0, 1, 50))
    assert (np.diff(x) >= 0).all() and x[0] == 0 and x[-1] == 1


def test_a_static_scene_gives_a_static_matte():
    frame = np.full((64, 64, 3), 127, np.uint8)
    mattes = Matter().matte(np.stack([frame] * 4))
    assert mattes.shape == (4, 64, 64) and (np.diff(mattes.astype(int), axis=0) == 0).all()


@pytest.mark.footage
def test_a_real_speaker_is_cut_out(footage):
    from render.video import load_video

    frames = load_video(footage / "silent" / "wojtek.mp4")[:40:8]
    mattes = Matter().matte(frames)
    height, width = mattes.shape[1:]
    assert (mattes[:, height // 2, width // 2] > 250).all()
    assert (mattes[:, : height // 10, : width // 10] < 5).all()
