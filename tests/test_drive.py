"""Video-driven animation: own footage comes back, another's is brought into the subject's manner, and stays where its head can be."""

import dataclasses

import numpy as np
import pytest

from recon.model import load_model
from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from render.rotations import angle_between, from_frontal, relative_to_frontal
from render.video import VideoWriter
from synthetic import make_subject
from thnerf import drive, performance
from thnerf.direction import Direction
from thnerf.manner import Manner, mouth_columns, pose_of
from thnerf.phantom import motion, scene


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def make_track(model):
    samples, rate, phonemes = scene.utterance("Bob may pay my puppy. Where were you all this long, warm summer?", "en-us", 150, 25)
    return lambda seed=0, identity=0: motion.phantom_track(phonemes, samples, rate, model, scene.identity_shape(model, identity), seed=seed, size=256)


@pytest.fixture(scope="module")
def track(make_track) -> Track:
    return make_track()


def test_own_footage_comes_back(track, model):
    back = drive.transfer(track, model, track, model)
    np.testing.assert_allclose(back.expression, track.expression, atol=1e-5)
    assert np.degrees(angle_between(back.rotation, track.rotation).max()) < 1e-3 and np.abs(back.translation - track.translation).max() < 1e-3
    np.testing.assert_allclose(back.gaze, track.gaze, atol=1e-6)
    assert back.fps == track.fps and len(back) == len(track) and back.torso.shape == track.torso.shape


def test_another_neutral_and_amplitude_are_taken_out(track, model):
    own = Manner.of(track, model)
    mouth = mouth_columns(track.expression_names)
    shy = track.expression.astype(float)
    smile = np.zeros(len(own.names))
    smile[[own.names.index(n) for n in ("mouthSmileLeft", "mouthSmileRight")]] = 0.2
    shy[:, mouth] = (own.neutral + smile + 0.75 * (shy - own.neutral))[:, mouth]
    driver = track.replace(expression=shy)
    back = drive.transfer(driver, model, track, model)
    inside = ((shy > 0) & (shy < 1))[:, mouth] & ((track.expression > 0) & (track.expression < 1))[:, mouth]
    error = np.abs(back.expression - track.expression)[:, mouth]
    assert error[inside].mean() < 0.02 and np.abs(shy - track.expression)[:, mouth][inside].mean() > 0.025
    assert 1.2 < back.meta["mouth_gain"] < 1.45
    assert abs(Manner.of(back, model).reach - own.reach) < 0.1 * own.reach


def test_a_head_that_moves_more_is_held_back(track, model, make_track):
    home = track
    wild = make_track(3, 1)
    relative = relative_to_frontal(wild.rotation)
    wild = wild.replace(rotation=from_frontal(relative.mean(0) + 4 * (relative - relative.mean(0))), translation=wild.translation + np.array([80, -40, 300]))
    back = drive.transfer(wild, model, home, model)
    low, high = pose_of(home).min(0), pose_of(home).max(0)
    margin = drive.MARGIN * np.maximum(high - low, drive.ROOM)
    assert (pose_of(back) > low - margin - 1e-6).all() and (pose_of(back) < high + margin + 1e-6).all()
    moved, led = pose_of(back)[:, 1], pose_of(wild)[:, 1]
    assert np.corrcoef(moved, led)[0, 1] > 0.95
    np.testing.assert_allclose(np.median(pose_of(back), 0), np.median(pose_of(home), 0), atol=0.6)
    np.testing.assert_array_equal(back.shape, home.shape)


def test_the_subjects_frame_rate_and_model(track, model):
    assert drive.transfer(track.resample(50), model, track, model).fps == 25
    with pytest.raises(ValueError, match="retarget"):
        drive.transfer(track.replace(model_id="other"), None, track, model)


def test_videos_that_cannot_drive(tmp_path, monkeypatch):
    subject = make_subject(tmp_path / "s", 20, 64)
    with pytest.raises(InputError, match="does not exist"):
        drive.driving_subject(tmp_path / "gone.mp4", subject)
    with pytest.raises(InputError, match="not a finished subject"):
        (tmp_path / "folder").mkdir()
        drive.driving_subject(tmp_path / "folder", subject)
    with VideoWriter(tmp_path / "grey.mp4", 64, 64, 25) as writer:
        for _ in range(15):
            writer.write(np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(InputError, match="shows no face"):
        drive.driving_subject(tmp_path / "grey.mp4", subject)
    assert not list((subject.path / "driving").glob("*"))


@pytest.fixture
def pair(tmp_path, track, make_track, model):
    """A subject and a driving subject, both with the default face model."""
    made = []
    for name, motion_ in (("home", track), ("driver", make_track(2, 1))):
        toy = make_subject(tmp_path / name, len(motion_), 64)
        motion_.replace(torso=np.zeros((len(motion_), 4))).save(toy.track_path)
        made.append(Subject.open(tmp_path / name))
    return made


def test_who_sets_what(pair, tmp_path, monkeypatch):
    subject, other = pair
    run, home = subject.run(), subject.track
    driven = performance.perform(subject, run, None, Direction(drive=other.path))
    assert len(driven.track) == len(other.track) and driven.sound is None
    whole = performance.perform(subject, run, None, Direction(), track="fit")
    assert whole.track is home or np.array_equal(whole.track.expression, home.expression)
    other.track.save(tmp_path / "pose.npz")
    head = performance.perform(subject, run, None, Direction(pose=str(tmp_path / "pose.npz")), track="fit").track
    np.testing.assert_array_equal(head.expression, home.expression)  # the head alone
    assert np.degrees(angle_between(head.rotation, other.track.rotation[: len(head)]))[:-5].max() < 0.5
    alone = performance.perform(subject, run, None, Direction(pose=str(tmp_path / "pose.npz")))
    assert alone.sound is None and len(alone.track) == len(other.track)
    assert np.ptp(alone.track.column("jawOpen")) == 0 and np.ptp(alone.track.rotation, axis=0).max() > 0.01
    still = performance.perform(subject, run, None, Direction(pose="still"), track="fit").track
    assert np.ptp(still.rotation, axis=0).max() < 1e-5
    for wish, track, words in ((Direction(pose="audio"), "fit", "predicted from speech"), (Direction(text="No"), "fit", "--text"), (Direction(), None, "say what to speak"),
                               (Direction(drive=other.path), "fit", "--drive"), (Direction(pose="still"), None, "say what to speak")):
        with pytest.raises(InputError, match=words):
            performance.perform(subject, run, None, wish, track)
    with pytest.raises(InputError, match="leave out one"):
        performance.perform(subject, run, tmp_path / "a.wav", Direction(text="No"))


def test_a_track_file_is_silent_and_the_fit_brings_its_sound(pair, tmp_path):
    import soundfile

    subject, _ = pair
    sound = 0.1 * np.sin(np.arange(48000) / 20)
    soundfile.write(subject.audio_path, sound, 48000)
    subject = dataclasses.replace(subject)
    subject.info["has_audio"] = True
    subject.track.save(tmp_path / "t.npz")
    assert performance.perform(subject, subject.run(), None, Direction(), str(tmp_path / "t.npz")).sound is None
    assert len(performance.perform(subject, subject.run(), None, Direction(), "fit").sound[0]) == 48000
    soundfile.write(tmp_path / "b.wav", sound[:4800], 48000)
    assert len(performance.perform(subject, subject.run(), tmp_path / "b.wav", Direction(), str(tmp_path / "t.npz")).sound[0]) == 4800


@pytest.mark.footage
@pytest.mark.slow
def test_a_real_driving_video_is_fitted_once(footage, tmp_path, track):
    toy = make_subject(tmp_path / "home", len(track), 64)
    track.replace(torso=np.zeros((len(track), 4))).save(toy.track_path)
    subject = Subject.open(tmp_path / "home")
    clip = sorted((footage / "grid_s1" / "mpg").glob("*.mpg"))[0]
    first = performance.perform(subject, subject.run(), None, Direction(drive=clip))
    assert len(first.track) == 75 and first.sound is not None
    stamp = next((subject.path / "driving").rglob("track.npz")).stat().st_mtime_ns
    again = performance.perform(subject, subject.run(), None, Direction(drive=clip))
    np.testing.assert_array_equal(first.track.expression, again.track.expression)
    assert next((subject.path / "driving").rglob("track.npz")).stat().st_mtime_ns == stamp
