"""Compressed frames stand for the array that they were made of, whatever the order in which they are asked for."""

import cv2
import numpy as np
import pytest

from recon.subject import Subject
from synthetic import make_subject, toy_model
from thnerf.dataset import load_training_set
from thnerf.frames import CompressedFrames, frame_memory


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([cv2.GaussianBlur(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), (0, 0), 1.5) for _ in range(5)])


def test_pixels_and_frames_are_those_that_were_stored(pictures: np.ndarray) -> None:
    held, mattes = CompressedFrames(pictures.shape), CompressedFrames(pictures.shape[:3])
    for i, picture in enumerate(pictures):
        held[i], mattes[i] = picture, picture[..., 0]
    rng = np.random.default_rng(1)
    at = rng.integers(0, 5, 300), rng.integers(0, 48, 300), rng.integers(0, 64, 300)
    assert np.array_equal(mattes[at], pictures[..., 0][at]) and np.array_equal(mattes[3], pictures[3, ..., 0])  # without loss
    assert held[at].shape == (300, 3) and np.abs(held[at].astype(int) - pictures[at]).mean() < 2.5
    assert np.array_equal(held[at], np.stack([held[int(i)][v, u] for i, v, u in zip(*at)]))
    assert np.array_equal(held[-1], held[4]) and len(held) == 5 and held.shape == pictures.shape
    assert held.nbytes < pictures.nbytes
    with pytest.raises(IndexError):
        CompressedFrames(pictures.shape)[0]


def test_frames_are_compressed_only_beyond_the_limit() -> None:
    assert all(isinstance(a, np.ndarray) for a in frame_memory(64, 64, 64, 1))
    assert all(isinstance(a, CompressedFrames) for a in frame_memory(65, 64, 64, 1))


def test_batches_do_not_depend_on_how_frames_are_held(tmp_path) -> None:
    subject: Subject = make_subject(tmp_path / "subject", frames=44, size=64)
    plain, packed = (load_training_set(subject, toy_model(), 2, 100, limit) for limit in (100, 0))
    a, b = (data.sample(np.random.default_rng(3), 2, 500) for data in (plain, packed))
    assert np.array_equal(a.u, b.u) and np.array_equal(a.frames, b.frames) and np.array_equal(a.matte, b.matte)
    assert np.sqrt(np.mean((a.colour - b.colour) ** 2)) < 0.01
