"""Speech → motion laws, on a synthetic subject whose jaw is a known function of its sound."""

import dataclasses
import json
import warnings

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
torch = pytest.importorskip("torch")

from recon.subject import Subject, make_split, write_subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between, from_frontal
from thnerf import audio, lipnet, motion, motion_training, mouth
from thnerf.config import MotionConfig

FPS, RATE = 25, audio.RATE
NAMES = ("eyeBlinkLeft", "eyeBlinkRight", "browInnerUp", "jawOpen", "mouthFunnel", "mouthSmileLeft")
SMALL = MotionConfig(members=2, steps=160, hidden=32, batch=8, window=32, seed=3, prior=False, encoder="logmel")


def babble(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Syllables of noise, low or high in pitch, with pauses → samples, and (T, 2) jaw and funnel at FPS.

    The jaw follows the loudness at the middle of each frame exactly, the funnel the low syllables.
    """
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    low = np.convolve(rng.normal(size=n + 40), np.hanning(41) / 5, "valid")
    high = np.diff(rng.normal(size=n + 1)) * 0.7
    sound, loud, round_ = np.zeros(n), np.zeros(n), np.zeros(n)
    at = 0.4
    while at < seconds - 0.5:
        length, kind = rng.uniform(0.12, 0.3), rng.integers(2)
        a, b = int(at * RATE), int((at + length) * RATE)
        bump = np.hanning(b - a) * rng.uniform(0.4, 1)
        sound[a:b] += bump * (low if kind else high)[a:b] * 0.2
        loud[a:b] += bump
        round_[a:b] += bump * kind
        at += length + (rng.uniform(1.2, 1.6) if rng.random() < 0.08 else rng.uniform(-0.02, 0.15))
    centre = ((np.arange(int(seconds * FPS)) + 0.5) / FPS * RATE).astype(int)
    return (sound + 1e-5 * rng.normal(size=n)).astype(np.float32), np.stack([loud[centre] * 0.6, round_[centre] * 0.5], 1)


def head_motion(frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random relative rotation (T,3) rad and translation (T,3) mm."""
    rng = np.random.default_rng(seed)
    walk = np.stack([np.convolve(rng.normal(size=frames + 60), np.hanning(61) / 5, "valid")[:frames] for _ in range(6)], 1)
    return 0.05 * walk[:, :3], 3 * walk[:, 3:] + [0, 0, 600]


def make_subject(folder, seconds=24.0, clips=1, audio_rate=48000) -> Subject:
    sound, mouth = babble(seconds, 1)
    T = len(mouth)
    rng = np.random.default_rng(2)
    expression = np.zeros((T, len(NAMES)))
    expression[:, 3:5] = mouth
    expression[:, 5] = 0.1 + 0.01 * rng.normal(size=T)
    for peak in np.arange(30, T - 30, 70):
        expression[peak - 2 : peak + 4, :2] += np.array([0.3, 0.8, 0.9, 0.6, 0.3, 0.1])[:, None]
    rotation, translation = head_motion(T, 5)
    track = Track(
        FPS, "synthetic", Camera.simple(600, 64, 64, T), np.zeros(4), expression, from_frontal(rotation), translation,
        0.05 * np.sin(np.arange(T) / 40)[:, None, None] * np.ones((1, 2, 2)), 0.01 * translation[:, :3], np.ones(T, bool), NAMES,
        tuple(np.linspace(0, T, clips + 1).astype(int)[:-1]))
    folder.mkdir()
    track.save(folder / "track.npz")
    soundfile.write(folder / "audio.wav", audio.resample(sound, RATE, audio_rate), audio_rate)
    for name in ("video.mp4", "matte.mp4", "background.png"):
        (folder / name).write_bytes(b"-")
    write_subject(folder, {"clips": [], "split": make_split(track.clip_starts, T), "has_audio": True, "consent": "synthetic"})
    return Subject.open(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A subject with a trained run, and an unseen sound with its truth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subject = make_subject(tmp_path_factory.mktemp("motion") / "me")
    report = motion_training.train_motion(subject, subject.run(), SMALL, seconds=30)
    yield subject, subject.run(), report, babble(8.0, 77)
    torch.set_num_threads(threads)


def test_unseen_sound_moves_the_jaw_as_it_should(trained):
    subject, run, report, (sound, truth) = trained
    track = motion.predict_track(subject, run, sound)
    jaw = track.column("jawOpen")
    lags = range(-4, 5)
    scores = [np.corrcoef(jaw[8 + k : len(jaw) - 8 + k], truth[8:-8, 0])[0, 1] for k in lags]
    assert abs(lags[int(np.argmax(scores))]) <= 1
    assert max(scores) > 0.85 and report["validation_correlation"] > 0.8
    assert 0.7 < jaw.std() / truth[:, 0].std() < 1.3
    assert np.corrcoef(track.column("mouthFunnel"), truth[:, 1])[0, 1] > 0.6


def test_nothing_outside_the_training_frames_is_learnt_from(trained, tmp_path):
    subject, run, report, (sound, _) = trained
    other = make_subject(tmp_path / "other")
    (a, b), = other.info["split"]["test"]
    track = Track.load(other.track_path)
    expression = track.expression.copy()
    expression[a:b] = 9.0
    rotation = track.rotation.copy()
    rotation[a:b] = from_frontal(np.full((b - a, 3), 0.7))
    track.replace(expression=expression, rotation=rotation).save(other.track_path)
    samples, rate = soundfile.read(other.audio_path)
    samples[round(a * rate / FPS) :] = 0.9
    soundfile.write(other.audio_path, samples, rate)
    few = MotionConfig(**{**SMALL.__dict__, "steps": 12})
    motion_training.train_motion(Subject.open(other.path), tmp_path / "spoilt", few, 1e6)
    motion_training.train_motion(subject, tmp_path / "clean", few, 1e6)
    (_, x), (_, y) = motion.load_networks(tmp_path / "spoilt" / motion.FILE), motion.load_networks(tmp_path / "clean" / motion.FILE)
    for name in x:
        np.testing.assert_allclose(x[name], y[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("samples", [1, 100, 639, 16000, 16321, 40000])
@pytest.mark.parametrize("fps", [None, 30, 29.97, 60])
def test_length_law(trained, samples, fps):
    subject, run, _, (sound, _) = trained
    track = motion.predict_track(subject, run, sound[:samples], fps=fps)
    assert len(track) == max(1, round(samples / RATE * (fps or FPS))) and track.fps == (fps or FPS)
    assert len(track.camera) == len(track) and track.clip_starts == (0,) and track.valid.all()


def test_chunks_give_what_one_pass_gives(trained, monkeypatch):
    subject, run, _, (sound, _) = trained
    whole = motion.predict_track(subject, run, sound)
    monkeypatch.setattr(motion, "CHUNK", 17)
    parts = motion.predict_track(subject, run, sound)
    np.testing.assert_allclose(parts.expression, whole.expression, atol=1e-5)


def test_every_frame_sees_the_same_context():
    net = lipnet.LipNet(5, 2, hidden=8).eval()
    features = np.random.default_rng(0).normal(size=(4 * 60 + 1, 5)).astype(np.float32)
    whole, part = net.predict(features, 60), net.predict(features[4 * 10 :], 50)
    np.testing.assert_allclose(whole[20:], part[10:], atol=1e-5)
    moved = features.copy()
    moved[4 * 30 + 2] += 5  # the centre of frame 30
    change = np.abs(net.predict(moved, 60) - whole).sum(1)
    assert change[30] > 0 and np.flatnonzero(change).min() >= 30 - 9 and np.flatnonzero(change).max() <= 30 + 9
    np.testing.assert_allclose(np.flatnonzero(change).mean(), 30, atol=0.51)


def test_gain_of_the_recording_does_not_matter(trained):
    subject, run, _, (sound, _) = trained
    a, b = (motion.predict_track(subject, run, g * sound) for g in (1.0, 0.1))
    np.testing.assert_allclose(a.expression, b.expression, atol=0.02)


def test_rate_and_file_do_not_matter(trained, tmp_path):
    subject, run, _, (sound, _) = trained
    soundfile.write(tmp_path / "a.flac", audio.resample(sound, RATE, 44100), 44100)
    jaw = [t.column("jawOpen") for t in (motion.predict_track(subject, run, sound), motion.predict_track(subject, run, tmp_path / "a.flac"))]
    np.testing.assert_allclose(jaw[0], jaw[1], atol=0.05)


def test_silence_closes_the_mouth(trained):
    subject, run, _, (sound, _) = trained
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        track = motion.predict_track(subject, run, np.zeros(3 * RATE, np.float32))
    assert any("silent" in str(w.message) for w in caught)
    assert track.column("jawOpen").max() < 0.05
    long_pause = motion.predict_track(subject, run, np.concatenate([sound, np.zeros(3 * RATE, np.float32), sound]))
    n = len(sound) // 640
    assert long_pause.column("jawOpen")[n + 15 : n + 60].max() < 0.05
    assert long_pause.column("jawOpen")[:n].max() > 0.3


def test_seed_moves_the_head_and_not_the_lips(trained):
    subject, run, _, (sound, _) = trained
    a, b, c = (motion.predict_track(subject, run, sound, seed=s) for s in (1, 1, 2))
    for name in ("expression", "rotation", "translation", "gaze", "torso"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert np.abs(a.rotation - c.rotation).max() > 0.01
    for name in ("jawOpen", "mouthFunnel", "mouthSmileLeft"):
        np.testing.assert_array_equal(a.column(name), c.column(name))


def test_pose_choices(trained):
    subject, run, _, (sound, _) = trained
    source = motion.predict_track(subject, run, sound, pose="source")
    assert angle_between(source.rotation[10:190], subject.track.rotation[10:190]).max() < 0.02
    still = motion.predict_track(subject, run, sound, pose="still")
    assert np.ptp(still.rotation, 0).max() < 1e-6 and np.ptp(still.torso, 0).max() < 1e-6
    other = subject.track[100:150].resample(30)
    follow = motion.predict_track(subject, run, sound, pose=other)
    assert angle_between(follow.rotation[10:40], subject.track.rotation[110:140]).max() < 0.02
    assert angle_between(follow.rotation[1:], follow.rotation[:-1]).max() < 0.05
    low, high = subject.track.torso.min(0), subject.track.torso.max(0)
    assert (follow.torso >= low - 1e-5).all() and (follow.torso <= high + 1e-5).all()
    np.testing.assert_array_equal(source.column("jawOpen"), still.column("jawOpen"))
    with pytest.raises(InputError, match="audio, source, still"):
        motion.predict_track(subject, run, sound, pose="backwards")


def test_expression_for_evaluation(trained):
    subject, run, _, (sound, truth) = trained
    expression = motion.predict_expression(subject, run, audio.resample(sound, RATE, 48000), 48000, len(truth))
    assert expression.shape == (len(truth), len(NAMES)) and np.isfinite(expression).all()
    assert np.corrcoef(expression[:, 3], truth[:, 0])[0, 1] > 0.85


def test_a_finished_network_is_kept(trained):
    subject, run, report, _ = trained
    before = (run / motion.FILE).stat().st_mtime_ns
    again = motion_training.train_motion(subject, run, SMALL, seconds=30)
    assert again["reused"] and again["validation_correlation"] == report["validation_correlation"]
    assert (run / motion.FILE).stat().st_mtime_ns == before


def test_a_stopped_training_goes_on_after_its_last_finished_network(trained, tmp_path, monkeypatch):
    subject, _, _, _ = trained
    train_member, calls = lipnet.fit_member, []

    def stopping(*arguments):
        calls.append(arguments[5])  # the seed
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train_member(*arguments)

    monkeypatch.setattr(lipnet, "fit_member", stopping)
    config = dataclasses.replace(SMALL, members=2)
    with pytest.raises(KeyboardInterrupt):
        motion_training.train_motion(subject, tmp_path, config, seconds=30)
    assert (tmp_path / motion_training.STATE).exists() and not (tmp_path / motion.FILE).exists()
    report = motion_training.train_motion(subject, tmp_path, config, seconds=30)
    assert calls == [calls[0], calls[1], calls[1]] and report["members"] == 2
    assert (tmp_path / motion.FILE).exists() and not (tmp_path / motion_training.STATE).exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "noise", "other version", "no header", "lost tensor", "other model"])
def test_damaged_networks_are_refused(trained, tmp_path, kind):
    from safetensors.numpy import load_file, save_file

    subject, run, _, (sound, _) = trained
    data = (run / motion.FILE).read_bytes()
    header, tensors = motion.load_networks(run / motion.FILE)
    path = tmp_path / motion.FILE
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "no header":
        save_file(load_file(run / motion.FILE), path)
    elif kind != "missing":
        change = {"other version": {"version": 99}, "other model": {"model_id": "flame"}}.get(kind, {})
        if kind == "lost tensor":
            tensors.pop("net1.out.weight")
        save_file(tensors, path, {"thnerf": json.dumps({**header, **change})})
    with pytest.raises(InputError):
        motion.predict_track(subject, tmp_path, sound)


@pytest.mark.parametrize("sound", [np.zeros(0, np.float32), np.zeros((10, 2), np.float32), np.full(100, np.nan, np.float32)])
def test_unusable_samples_are_refused(trained, sound):
    with pytest.raises(InputError):
        motion.predict_track(trained[0], trained[1], sound)


def test_footage_without_sound_is_refused(tmp_path):
    subject = make_subject(tmp_path / "mute", 2.0)
    subject.info["has_audio"] = False
    with pytest.raises(InputError, match="no sound"):
        motion_training.train_motion(subject, tmp_path / "run", SMALL, 1)


@pytest.mark.parametrize("frames, enough", [(motion_training.FEWEST - 1, False), (motion_training.FEWEST, True)])
def test_too_little_footage_is_refused_with_its_length(tmp_path, frames, enough):
    subject = make_subject(tmp_path / "short", 2.0)
    subject.info["split"] = {"train": [[0, frames]], "test": []}
    tiny = MotionConfig(members=1, steps=1, hidden=16, batch=2, bilabials=False)
    if enough:
        assert motion_training.train_motion(subject, tmp_path / "run", tiny, 10)["frames"] == frames
    else:
        with pytest.raises(InputError, match=f"{frames} training frames .* needs {motion_training.FEWEST}"):
            motion_training.train_motion(subject, tmp_path / "run", tiny, 10)


def test_several_clips_and_invalid_frames(tmp_path):
    subject = make_subject(tmp_path / "clips", 12.0, clips=4)
    valid = subject.track.valid.copy()
    valid[20:30] = False
    subject.track.replace(valid=valid).save(subject.track_path)
    report = motion_training.train_motion(Subject.open(subject.path), tmp_path / "run", MotionConfig(members=1, steps=5, hidden=16, batch=2), 10)
    assert report["frames"] == len(subject.frames("train")) - 10


def test_networks_of_all_kinds_speak_together(trained, tmp_path):
    pytest.importorskip("pocketsphinx")
    subject, _, _, (sound, truth) = trained
    report = motion_training.train_motion(subject, tmp_path, dataclasses.replace(SMALL, encoder="auto", prior=True, members=1, steps=40), 1e6)
    speaker = motion.Speaker(subject, tmp_path)
    assert report["members"] == len(speaker.nets) == 3  # log-mel, phones, log-mel from the prior
    assert [kind.last - kind.first for kind, _ in speaker.nets] == [80, 45, 80]
    heard = speaker.hear(sound, len(truth))
    features = np.pad(heard.features[: 4 * len(truth) + speaker.right], ((speaker.left, 0), (0, 0)), mode="edge")
    every, streamed = speaker.window(features)[0], speaker.window(features[:, :80])[0]
    assert np.abs(every - streamed).max() > 0.01  # a stream brings the columns of log-mel only, and is spoken by the networks that hear these
    speaker.nets = speaker.nets[::2]
    np.testing.assert_array_equal(streamed, speaker.window(features)[0])
    jaw = motion.predict_track(subject, tmp_path, sound).column("jawOpen")
    assert np.corrcoef(jaw[8:-8], truth[8 : len(jaw) - 8, 0])[0, 1] > 0.6


def test_modes_invert_on_what_they_span():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 8)) + 1
    metric = np.diag(np.arange(1.0, 9))
    modes = mouth.fit_modes(y, metric, np.ones(8), 8)
    z = (y - modes.mean) @ modes.forward
    assert z.shape[1] <= 3
    np.testing.assert_allclose(modes.mean + z @ modes.back, y, atol=0.35)
    np.testing.assert_allclose(z.std(0), modes.scale, rtol=1e-6)
    np.testing.assert_allclose((z / modes.scale) @ modes.opening, (z @ modes.back).sum(1), atol=1e-9)


def test_a_mouth_rests_as_soon_as_unseen_footage_allows():
    t = np.arange(2000) / 25
    plain = 6 + 3 * np.sin(9 * t) + 2 * np.sin(5.3 * t)
    rests = np.stack([(np.arange(2000) % 100 < n).astype(float) for n in (60, 40, 20, 0)], 1)  # in fewer and fewer silences
    for step, seconds in enumerate(mouth.PATIENCE):
        lips = plain * (1 - rests[:, step])  # those that the network knows to be still are no cost
        assert mouth.patience(lips, lips, 0.0, rests) == seconds
    assert mouth.patience(plain, plain * (1 - rests[:, 0]), 0.0, rests) == mouth.PATIENCE[0]
