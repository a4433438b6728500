"""A/V offset: recovered whatever it is, refused where nothing can be known, and put right by fit."""

import numpy as np
import pytest

from recon.assets import asset
from recon.sync import RATE, Sync, heard, log_mel, measure_sync, mouth_motion, prior, ridge
from render.sound import resample_audio
from render.video import read_audio_track, read_frames

FPS = 25.0


def late(sound, frames):
    """The same length of sound, starting `frames` later."""
    step = abs(round(frames / FPS * RATE))
    if frames > 0:
        return np.concatenate([np.zeros(step, np.float32), sound[:-step]])
    return np.concatenate([sound[step:], np.zeros(step, np.float32)]) if frames < 0 else sound


def observed(path, frames=None):
    """(points, valid, sound) of a clip's first frames."""
    from itertools import islice

    from recon.landmarks import load_detector

    found = load_detector().detect(islice(read_frames(path, FPS), frames))
    return found.points, found.valid, read_audio_track(path, RATE, len(found.valid) / FPS)


@pytest.fixture(scope="module")
def demo():
    return observed(asset("demo/video.mp4"), 300)


def test_any_shift_of_the_demo_is_recovered(demo):
    points, valid, sound = demo
    for shift in (-6, -3, 0, 2, 6):
        found = measure_sync(points, valid, late(sound, shift), FPS, [(0, len(valid))])
        assert found.offset is not None and abs(round(found.offset) - shift) <= 1, (shift, found.offset)
        assert found.shift == 0 or found.shift == round(found.offset)


def test_shifting_the_sound_shifts_the_curve(demo):
    points, valid, sound = demo
    a, b = (measure_sync(points, valid, late(sound, k), FPS, [(0, 300)]).offset for k in (0, 4))
    assert abs(b - a - 4) < 0.15


def test_other_sound_silence_and_short_clips_are_not_judged(demo):
    points, valid, sound = demo
    noise = np.random.default_rng(0).normal(size=len(sound)).astype(np.float32)
    assert measure_sync(points, valid, noise, FPS, [(0, 300)]).offset is None
    assert measure_sync(points, valid, sound[::-1].copy(), FPS, [(0, 300)]).offset is None
    assert measure_sync(points, valid, np.zeros_like(sound), FPS, [(0, 300)]).confidence == 0
    assert measure_sync(points, valid, sound, FPS, [(0, 20)]).offset is None
    assert measure_sync(points, np.zeros_like(valid), sound, FPS, [(0, 300)]).offset is None


def test_68_points_give_the_same_offset(demo):
    from recon.landmarks import ibug68

    points, valid, sound = demo
    a, b = (measure_sync(p, valid, sound, FPS, [(0, 300)]).offset for p in (points, ibug68(points)))
    assert abs(a - b) < 0.5


def test_motion_knows_neither_scale_nor_place_nor_loudness(demo):
    points, valid, sound = demo
    assert np.allclose(mouth_motion(points, valid, FPS), mouth_motion(points * 3 + [40, 7], valid, FPS), atol=1e-3)
    assert np.allclose(log_mel(sound[:RATE]), log_mel(0.1 * sound[:RATE]), atol=1e-2)
    gap = valid.copy()
    gap[50:55] = False
    holed = np.where(gap[:, None, None], points, np.nan)
    assert np.isfinite(mouth_motion(holed, gap, FPS)).all()


def test_ridge_is_the_minimum_and_meets_its_prior():
    rng = np.random.default_rng(0)
    x, y, w0 = rng.normal(size=(40, 3)), rng.normal(size=(40, 2)), rng.normal(size=(3, 2))
    w = ridge(x, y, 0.3, w0)
    cost = lambda w: ((x @ w - y) ** 2).sum() + 0.3 * 40 * ((w - w0) ** 2).sum()  # noqa: E731
    assert all(cost(w) < cost(w + 1e-3 * rng.normal(size=w.shape)) for _ in range(20))
    assert np.allclose(ridge(x, y, 1e6, w0), w0, atol=1e-4)


def test_looking_later_in_the_sound_is_looking_at_later_rows():
    mel = np.arange(200.0)[:, None] * np.ones(2)
    assert np.allclose(heard(mel, 10, FPS, 3)[:, 2] - heard(mel, 10, FPS, 0)[:, 2], 12)  # the middle of its three windows
    assert prior().shape == (60, 10)


@pytest.mark.parametrize("offset, shift", [(None, 0), (1.2, 0), (-1.2, 0), (3.6, 4), (-2.2, -2)])
def test_only_what_exceeds_the_error_is_corrected(offset, shift):
    assert Sync(offset, 1.0).shift == shift


def test_fit_measures_and_corrects_late_sound(tmp_path):
    from itertools import islice

    from recon.config import FitConfig
    from recon.fit import fit_subject, read_sound
    from render.video import VideoWriter

    sound, shift, frames = read_audio_track(asset("demo/video.mp4"), 48000), 5, 175
    delayed = np.concatenate([np.zeros(shift * 1920, np.float32), sound])
    with VideoWriter(tmp_path / "late.mp4", 256, 256, FPS, audio=(delayed, 48000)) as writer:
        for frame in islice(read_frames(asset("demo/video.mp4")), frames):
            writer.write(frame)
    report = fit_subject([tmp_path / "late.mp4"], tmp_path / "me", FitConfig(size=96, shape_components=5, keyframes=6, overlay=False, fix_sync=True))
    moved = report["av_shift_frames"]
    assert abs(report["av_offset_frames"] - shift) <= 1.5 and report["av_offset_confidence"] > 0.5 and abs(moved - shift) <= 1
    after = resample_audio(read_sound(tmp_path / "me" / "audio.wav"), 48000, RATE)
    assert len(after) == frames * 640
    wanted = resample_audio(delayed[moved * 1920 :], 48000, RATE)[: len(after)]
    inside = slice(0, len(after) - moved * 640)  # AAC and the clip's end differ
    assert np.corrcoef(after[inside], wanted[inside])[0, 1] > 0.99


@pytest.mark.footage
@pytest.mark.parametrize("clip", ["obama/obama.mp4", "macron/macron.mp4"])
def test_real_clips_that_are_in_time_and_ones_that_are_not(footage, clip):
    points, valid, sound = observed(footage / clip, 300)
    for shift in (-6, 0, 5):
        found = measure_sync(points, valid, late(sound, shift), FPS, [(0, 300)])
        assert found.offset is not None and abs(round(found.offset) - shift) <= 1
