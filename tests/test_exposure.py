"""Exposure: what lay over a picture is found and taken out, clip by clip, and training on footage that drifts gives the colours it had without."""

import dataclasses

import numpy as np
import pytest
import torch

from recon.subject import Subject
from render.files import atomic_path
from render.video import VideoWriter, load_video
from synthetic import make_subject, toy_model
from test_trainer import SMALL
from thnerf.dataset import load_background, load_training_set
from thnerf.exposure import Exposure, match, measure, neutral
from thnerf.renderer import HeadRenderer
from thnerf.trainer import Trainer, new_trainer, write_tensors

RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.uniform(0.1, 0.8, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.float32)  # a wall of coloured squares, 128 px
CODE = np.array([[0.12, -0.05, -0.15], [0.02, 0.0, -0.02]], np.float32)


def exposed(picture: np.ndarray, code: np.ndarray) -> np.ndarray:
    return np.clip((1 + code[0]) * picture + code[1], 0, 1)


def matte(person: slice = slice(40, 90)) -> np.ndarray:
    mask = np.zeros((128, 128), np.uint8)
    mask[40:, person] = 255
    return mask


def to_uint8(picture: np.ndarray) -> np.ndarray:
    return (picture * 255 + 0.5).astype(np.uint8)


def test_what_lies_over_the_background_is_measured_whatever_the_person_does():
    frame = exposed(SMOOTH, CODE)
    frame[40:, 40:90] = RNG.random((88, 50, 3))
    frame[:30, 10:40] = 0.9  # somebody walks by
    found = measure([to_uint8(frame), to_uint8(SMOOTH)], [matte(), matte()], SMOOTH)
    assert found.shape == (2, 2, 3) and np.abs(found[0] - CODE).max() < 0.01 and np.abs(found[1]).max() < 3e-3


def test_where_nothing_is_seen_nothing_is_measured():
    assert not measure([to_uint8(exposed(SMOOTH, CODE))], [np.full((128, 128), 255, np.uint8)], SMOOTH).any()
    white = np.ones_like(SMOOTH)
    assert not measure([to_uint8(white)], [matte()], white).any()


def test_one_brightness_alone_explains_itself_and_no_more():
    """On a plain wall gain and offset are one equation: together they explain it, and neither is larger than it takes."""
    wall = np.full_like(SMOOTH, 0.6)
    gain, offset = measure([to_uint8(exposed(wall, CODE))], [matte()], wall)[0]
    change = CODE[0] * 0.6 + CODE[1]
    np.testing.assert_allclose(gain * 0.6 + offset, change, atol=0.005)
    assert (np.sign(gain) == np.sign(change)).all() and (np.abs(gain * 0.6) < np.abs(change)).all()


def test_neutral_undoes_a_code():
    picture = 255 * RNG.uniform(0.1, 0.8, (5, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(neutral(255 * exposed(picture / 255, CODE), CODE), picture, atol=1e-3)


def test_a_picture_is_matched_along_the_rim_alone():
    mask = np.zeros((128, 128), np.float32)
    mask[16:112, 16:112] = 0.5
    mask[24:104, 24:104] = 1
    footage = exposed(SMOOTH, CODE)
    footage[30:100, 30:100] = RNG.random((70, 70, 3))  # inside, the footage is somebody else
    np.testing.assert_allclose(match(SMOOTH, footage, mask), CODE, atol=0.01)
    assert not match(SMOOTH, footage, np.ones_like(mask)).any() and not match(SMOOTH, np.ones_like(SMOOTH), mask).any(), "without a rim, or beside another picture"


@pytest.fixture
def two_clips() -> Exposure:
    exposure = Exposure(RNG.normal(0, 0.1, (100, 2, 3)), np.r_[0:60, 70:110], (0, 60), 25.0)
    with torch.no_grad():
        exposure.knots.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return exposure


def learned(exposure: Exposure) -> np.ndarray:
    return (exposure(torch.arange(len(exposure.index))) - exposure.measured).detach().numpy()


def test_codes_have_no_mean_and_the_learned_part_changes_slowly_within_a_clip(two_clips):
    codes = learned(two_clips)
    np.testing.assert_allclose(two_clips(torch.arange(100)).detach().numpy().mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-6)
    bends = np.abs(np.diff(codes[:60], 2, axis=0)).max((1, 2)) > 1e-5
    assert 0 < bends.sum() <= 2  # 2.4 s have three knots; linear between


def test_nothing_reaches_across_a_clip_start(two_clips):
    first = two_clips(torch.arange(55, 60)).sum()
    (gradient,) = torch.autograd.grad(first, two_clips.knots)
    own = gradient - gradient[-1]  # the mean over all frames is common to all knots, as far as frames weigh on them
    before = learned(two_clips)
    with torch.no_grad():
        two_clips.knots[int(two_clips.lower[60]) :] += 0.3
    shift = learned(two_clips) - before
    np.testing.assert_allclose(shift[:60], shift[:1].repeat(60, 0), atol=1e-6)
    np.testing.assert_allclose(shift[60:] - shift[:1], 0.3, atol=1e-5)
    assert own[int(two_clips.lower[59])].abs().max() > 0.1


def test_colours_are_exposed_as_their_frames_are(two_clips):
    colour, which = torch.rand(7, 3), torch.tensor([0, 0, 1, 1, 1, 0, 1], dtype=torch.int32)
    frames = torch.tensor([10, 80])
    codes = two_clips(frames).detach().numpy()
    np.testing.assert_allclose(two_clips.expose(colour, frames, which).detach().numpy(), np.minimum(1, [(1 + codes[w, 0]) * c + codes[w, 1] for c, w in zip(colour.numpy(), which)]), atol=1e-6)


def drifting(path, frames: int = 66) -> tuple[Subject, np.ndarray]:
    """A toy subject whose video drifts, and the pictures it had before. The held-out frames drift on."""
    subject = make_subject(path, frames, 64)
    pictures, t = load_video(subject.video_path), np.arange(frames) / 25
    gain = 0.2 * np.sin(2 * np.pi * 1.1 * t)[:, None] + 0.08 * np.sin(2 * np.pi * 0.9 * t + 1)[:, None] * [1, 0, -1]
    with atomic_path(subject.video_path) as temporary, VideoWriter(temporary, 64, 64, 25, crf=4) as video:
        for picture, g in zip(pictures, gain):
            video.write(np.clip((1 + g) * picture + 0.5, 0, 255).astype(np.uint8))
    return subject, pictures


def test_footage_that_drifts_gives_the_colours_it_had_without(tmp_path):
    subject, pictures = drifting(tmp_path / "s")
    data, test = load_training_set(subject, toy_model(), 2, 1000), subject.frames("test")
    found = {}
    for exposure in (False, True):
        trainer = new_trainer(data, toy_model(), dataclasses.replace(SMALL, exposure=exposure))
        for step in range(250):
            trainer.advance(step / 250)
        renderer = HeadRenderer(trainer.avatar, load_background(subject, 64, 64))
        head = [np.square(renderer.frame(subject.track, int(i))[8:48, 16:48] - pictures[i, 8:48, 16:48] / 255).mean() for i in test]
        found[exposure] = -10 * np.log10(np.mean(head))
    assert found[True] > found[False] + 1, found


def test_codes_come_back_with_a_stopped_training(tmp_path):
    subject, _ = drifting(tmp_path / "s")
    data = load_training_set(subject, toy_model(), 2, 1000)
    straight = new_trainer(data, toy_model(), SMALL)
    for step in range(6):
        straight.advance(step / 100)
        if step == 3:
            write_tensors(tmp_path / "state.safetensors", *straight.state())
            kept = straight.exposure.knots.detach().clone()
    resumed = Trainer.resume(data, SMALL, tmp_path / "state.safetensors")
    assert torch.equal(resumed.exposure.knots, kept) and kept.abs().max() > 0 and torch.equal(resumed.exposure.measured, straight.exposure.measured)
    for step in (4, 5):
        resumed.advance(step / 100)
    assert torch.allclose(resumed.exposure.knots, straight.exposure.knots, atol=1e-6)
    assert not any("exposure" in name for name in straight.avatar.state()), "what is rendered is neutral, and no part of it"
