"""Sampled head motion: the subject's range and speed, no seams, no loop; blinks at the subject's rate."""

import numpy as np
import pytest

from recon.track import Track
from render.camera import Camera
from render.rotations import from_frontal
from thnerf import pose

FPS = 25
NAMES = ("eyeBlinkLeft", "eyeBlinkRight", "eyeSquintLeft", "browInnerUp", "jawOpen")


def footage(frames: int = 900, clips: int = 1, seed: int = 0, blinks: bool = True) -> Track:
    """Smooth head motion with shoulders at half its translation, gaze steps, and a blink every 3 s."""
    rng = np.random.default_rng(seed)
    smooth = lambda n, k: np.stack([np.convolve(rng.normal(size=frames + k), np.hanning(k + 1), "valid")[:frames] for _ in range(n)], 1) / np.sqrt(k)  # noqa: E731
    rotation, translation = 0.08 * smooth(3, 50), 4 * smooth(3, 70) + [0, 0, 500]
    expression = np.zeros((frames, 5))
    expression[:, :2] = 0.05
    expression[:, 3:] = 0.2 + 0.05 * smooth(2, 40)
    if blinks:
        for peak in range(40, frames - 20, 75):
            expression[peak - 3 : peak + 5, :3] += np.array([0.1, 0.5, 0.8, 0.9, 0.7, 0.4, 0.2, 0.05])[:, None] * [1, 1, 0.3]
    gaze = np.repeat(np.repeat(0.1 * rng.normal(size=(frames // 20 + 1, 1, 2)), 20, 0)[:frames], 2, 1)
    return Track(FPS, "m", Camera.simple(500, 64, 64, frames), np.zeros(2), expression, from_frontal(rotation), translation, gaze,
                 np.concatenate([0.5 * (translation[:, :2] - translation[:, :2].mean(0)) / 500, 0.01 * smooth(2, 60)], 1), np.ones(frames, bool), NAMES,
                 tuple(np.linspace(0, frames, clips + 1).astype(int)[:-1]))


def model(track: Track, frames: np.ndarray | None = None) -> pose.PoseModel:
    return pose.fit_pose(track, np.arange(len(track)) if frames is None else frames, np.abs(np.sin(np.arange(len(track)) / 30)))


def test_columns_split_speech_from_the_rest():
    assert [NAMES[i] for i in pose.speech_columns(NAMES)] == ["jawOpen"]
    assert sorted([*pose.speech_columns(NAMES), *pose.sampled_columns(NAMES)]) == list(range(5))
    assert len(pose.speech_columns(("exp0", "exp1"))) == 2


def test_layout_round_trip():
    track = footage(50)
    layout = model(track).layout
    parts = layout.unpack(layout.pack(track))
    for name in ("rotation", "translation", "gaze", "torso"):
        np.testing.assert_allclose(parts[name], getattr(track, name), atol=1e-5)
    np.testing.assert_allclose(parts["upper"], track.expression[:, :4], atol=1e-6)


@pytest.mark.parametrize("clips", [1, 10])
def test_motion_stays_in_range_without_jumps_drift_or_loop(clips):
    track = footage(clips=clips)
    fitted = model(track)
    out = fitted.sample(np.ones(3000), seed=4)
    assert (out >= fitted.low - 1e-5).all() and (out <= fitted.high + 1e-5).all()
    inside = np.ones(len(track) - 1, bool)
    inside[np.array(track.clip_starts[1:], int) - 1] = False
    speed = np.abs(np.diff(fitted.states[:, :6], axis=0))[inside]
    sampled = np.abs(np.diff(out[:, :6], axis=0))
    assert (sampled.max(0) < 2 * speed.max(0)).all()
    assert np.all((sampled.mean(0) > 0.7 * speed.mean(0)) & (sampled.mean(0) < 1.3 * speed.mean(0)))
    spread = fitted.states[:, :6].std(0)
    assert (np.abs(out[:1000, :6].mean(0) - out[-1000:, :6].mean(0)) < 1.5 * spread).all()
    x = (out[:, 0] - out[:, 0].mean()) / out[:, 0].std()
    assert max(np.mean(x[k:] * x[:-k]) for k in range(200, 1500)) < 0.7


def test_whoever_sat_down_anew_does_not_hurry_there(monkeypatch):
    track = footage(clips=10)
    apart = np.repeat(12 * np.random.default_rng(3).normal(size=(10, 1)), 90, 0)
    track = track.replace(translation=track.translation + apart * [1, 0, 0])
    excess = []
    for share in (0, pose.SEATED):
        monkeypatch.setattr(pose, "SEATED", share)
        fitted = model(track)
        real = np.mean([np.abs(np.diff(fitted.states[a:b, 3])).mean() for a, b in fitted.runs])
        excess.append(np.abs(np.diff(fitted.sample(np.ones(3000), seed=2)[:, 3])).mean() / real)
    assert excess[1] < 0.85 * excess[0]


def test_head_does_not_swing_slowly_from_clip_to_clip(monkeypatch):
    track = footage(3000, clips=40)
    apart = np.repeat(15 * np.random.default_rng(5).normal(size=(40, 1)), 75, 0)  # the person sits elsewhere in every clip, shoulders and all
    fitted = model(track.replace(translation=track.translation + apart, torso=track.torso + 0.003 * apart))

    def repeats(seed: int) -> float:
        """Largest autocorrelation of the head's place beyond 5 s, over five minutes."""
        x = fitted.sample(np.ones(7500), seed)[:, 3:6]
        power = np.fft.irfft(np.abs(np.fft.rfft(x - x.mean(0), 2 * len(x), axis=0)) ** 2, axis=0)[: len(x)] / np.arange(len(x), 0, -1)[:, None]
        return (power[125:3750].max(0) / power[0]).max()

    restless = np.mean([repeats(seed) for seed in range(4)])
    monkeypatch.setattr(pose, "RESTLESS", 0.0)
    assert restless < 0.5
    assert restless < 0.9 * np.mean([repeats(seed) for seed in range(4)])


def test_shoulders_move_with_the_head_that_moved_them():
    fitted = model(footage())
    out = fitted.sample(np.ones(2000), seed=1)
    assert np.corrcoef(out[:, 3], out[:, 10])[0, 1] > 0.95


def test_same_seed_same_motion():
    fitted = model(footage())
    a, b, c = (fitted.sample(np.ones(400), s) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01


def test_length_does_not_change_the_beginning():
    fitted = model(footage())
    np.testing.assert_allclose(fitted.sample(np.ones(1500), 3)[:200], fitted.sample(np.ones(700), 3)[:200])


def test_blinks_are_cut_out_and_put_back_at_the_subjects_rate():
    track = footage(3000)
    fitted = model(track)
    lids = fitted.layout.blinks
    assert fitted.states[:, lids].max() < 0.3 < 0.9 < track.expression[:, 0].max()
    assert fitted.states[:, fitted.layout.eyes[6]].max() < 0.15  # the squint of the blink went with it
    assert fitted.interval[0] == pytest.approx(3.0, rel=0.1)
    assert fitted.blink[:, 0].max() == pytest.approx(0.9, abs=0.1)
    out = fitted.with_blinks(fitted.sample(np.zeros(7500), 1), 1)
    lid = out[:, lids[0]]
    count = np.sum((lid[1:-1] > 0.6) & (lid[1:-1] >= lid[:-2]) & (lid[1:-1] > lid[2:]))
    assert 70 <= count <= 130  # 100 expected in 300 s
    assert lid.max() <= track.expression[:, 0].max() + 1e-6


def test_a_subject_who_was_not_seen_blinking_blinks_anyway():
    fitted = model(footage(blinks=False))
    fitted = pose.PoseModel(**{**fitted.__dict__, "high": fitted.high + 1})
    lid = fitted.with_blinks(fitted.sample(np.zeros(1500), 1), 1)[:, fitted.layout.blinks[0]]
    assert 8 <= np.sum((lid[1:-1] > 0.5) & (lid[1:-1] >= lid[:-2]) & (lid[1:-1] > lid[2:])) <= 24


@pytest.mark.parametrize("frames", [1, 2, 10, 40])
def test_hardly_any_footage_holds_the_head(frames):
    out = model(footage(100)[:frames]).sample(np.ones(60), 0)
    assert out.shape[0] == 60 and np.isfinite(out).all()


def test_only_the_given_frames_count():
    track = footage(900)
    train = np.arange(800)
    rotation = track.rotation.copy()
    rotation[800:] = from_frontal(np.full((100, 3), 0.9))
    a, b = model(track, train), model(track.replace(rotation=rotation), train)
    for name, value in a.tensors().items():
        np.testing.assert_array_equal(value, b.tensors()[name])


def test_tensors_round_trip_and_refuse_nonsense():
    fitted = model(footage())
    again = pose.PoseModel.from_tensors(fitted.layout, fitted.tensors())
    np.testing.assert_allclose(again.sample(np.ones(300), 5), fitted.sample(np.ones(300), 5), atol=1e-4)
    with pytest.raises((ValueError, KeyError)):
        pose.PoseModel.from_tensors(fitted.layout, {**fitted.tensors(), "states": np.zeros((5, 3))})


@pytest.mark.parametrize("clips", [1, 5])
def test_source_motion_goes_back_and_forth_without_a_jump(clips):
    track = footage(250, clips=clips)
    out = pose.source_states(track, 1200)
    inside = np.ones(249, bool)
    inside[np.array(track.clip_starts[1:], int) - 1] = False
    still = pose.Layout(4, NAMES[:4]).pack(track)
    assert len(out) == 1200
    assert (np.abs(np.diff(out[:, :6], axis=0)).max(0) <= 1.05 * np.abs(np.diff(still[:, :6], axis=0))[inside].max(0) + np.ptp(still[:, :6], 0) / 8 * (clips > 1)).all()


def test_source_motion_of_one_frame_holds():
    assert np.ptp(pose.source_states(footage(100)[:1], 30), 0).max() == 0
