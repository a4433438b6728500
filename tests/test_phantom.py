"""Laws of the phantom: speech that is tiled by its phonemes, motion that obeys them, pictures that show the motion."""

import json

import numpy as np
import pytest

from recon.assets import asset
from recon.model import load_model
from recon.track import Track
from render.files import InputError
from render.rotations import head_angles
from thnerf.phantom import motion, scene
from thnerf.phantom.speech import speak
from thnerf.phantom.visemes import mouth_weights, segments

TEXT = "Bob may pay my puppy. Five very fine vans. Mum poured more!"
LIPS = (13, 14)  # inner lips of MediaPipe-478, above and below


@pytest.fixture(scope="module")
def model():
    return load_model("default")


@pytest.fixture(scope="module")
def spoken():
    return scene.utterance(TEXT, "en-us", 150, 25)


@pytest.fixture(scope="module")
def make_track(model, spoken):
    samples, rate, phonemes = spoken
    return lambda seed=0, size=256: motion.phantom_track(phonemes, samples, rate, model, scene.identity_shape(model, 0), seed=seed, size=size)


@pytest.fixture(scope="module")
def track(make_track):
    return make_track()


def lip_gap(model, track):
    """Distance (T,) mm between the inner lips."""
    points = model.points(model.vertices(track.shape, track.expression), "mediapipe478")
    return np.linalg.norm(points[:, LIPS[0]] - points[:, LIPS[1]], axis=-1)


def test_phonemes_tile_the_sound_and_silence_is_silent():
    samples, rate, phonemes = speak("Hello there. How are you?")
    starts, ends = np.array([p[1] for p in phonemes]), np.array([p[2] for p in phonemes])
    assert starts[0] == 0 and ends[-1] == pytest.approx(len(samples) / rate) and (starts[1:] == ends[:-1]).all() and (ends > starts).all()
    assert samples.dtype == np.float32 and 0.1 < np.abs(samples).max() <= 1
    level = {quiet: [np.abs(samples[int(a * rate) : int(b * rate)]).mean() for s, a, b in phonemes if (s == "_") == quiet and b - a > 0.05] for quiet in (True, False)}
    assert np.max(level[True]) < 0.2 * np.mean(level[False])


def test_the_same_text_gives_the_same_sound_and_rate_and_voice_change_it():
    first, _, phonemes = speak("The same again.")
    assert np.array_equal(first, speak("The same again.")[0]) and phonemes == speak("The same again.")[2]
    assert len(speak("The same again.", rate=110)[0]) > 1.2 * len(first)
    assert not np.array_equal(first, speak("The same again.", voice="de")[0][: len(first)])


@pytest.mark.parametrize("arguments", [{"text": "  "}, {"text": "hi", "voice": "no-such-voice"}, {"text": "hi", "rate": 5}, {"text": "hi", "pitch": 900}])
def test_bad_speech_requests_are_input_errors(arguments):
    with pytest.raises(InputError):
        speak(**arguments)


def test_a_phoneme_table_covers_english_and_diphthongs_split():
    assert [s for s, _, _ in segments([("aI", 0, 1), ("b", 1, 2), ("_", 2, 3)])] == ["AA", "IH", "PP", "sil"]
    assert segments([("aU", 1.0, 2.0)])[0][2] == segments([("aU", 1.0, 2.0)])[1][1]


def test_lips_meet_on_bilabials_and_open_on_open_vowels(model, spoken, track):
    gap, phonemes, fps = lip_gap(model, track), spoken[2], track.fps
    rest = lip_gap(model, track.replace(expression=np.zeros_like(track.expression)))[0]
    closed = [gap[int(np.floor(a * fps)) : int(np.ceil(b * fps)) + 1].min() for s, a, b in phonemes if s in ("p", "b", "m")]
    assert len(closed) >= 9 and np.max(closed) < rest + 2.0
    opened = [gap[int(a * fps) : int(np.ceil(b * fps)) + 1].max() for s, a, b in phonemes if s in ("aI", "A:", "0", "a", "eI") and b - a > 0.08]
    assert opened and np.mean(opened) > rest + 5


def test_rounded_vowels_pucker_and_spread_ones_do_not():
    loud = np.ones(200)
    spread, round_ = (mouth_weights([("_", 0, 0.3), (s, 0.3, 0.7), ("_", 0.7, 1.0)], loud, 200)["mouthPucker"][100] for s in ("i:", "u:"))
    assert round_ > 0.4 and spread < 0.1


def test_silence_closes_the_mouth(spoken, track):
    for symbol, start, end in spoken[2]:
        if symbol == "_" and end - start > 0.25:
            at = int(round((start + end) / 2 * track.fps))
            assert track.column("jawOpen")[min(at, len(track) - 1)] < 0.04


def test_the_track_repeats_with_its_seed_and_changes_with_another(make_track, track):
    again, other = make_track(0), make_track(1)
    assert all(np.array_equal(getattr(track, n), getattr(again, n)) for n in ("expression", "rotation", "translation", "gaze", "torso"))
    assert not np.allclose(track.rotation, other.rotation) and not np.allclose(track.torso, other.torso)
    assert np.corrcoef(track.column("jawOpen"), other.column("jawOpen"))[0, 1] > 0.95  # the words are the same


def test_motion_stays_in_human_bounds_and_blinks_close_the_eyes(model):
    loud, phonemes = np.zeros(22050 * 20, np.float32), [("_", 0.0, 20.0)]
    loud[::50] = 0.1
    track = motion.phantom_track(phonemes, loud, 22050, model, np.zeros(4), seed=3)
    yaw, pitch, roll = np.abs(np.rad2deg(head_angles(track.rotation))).max(0)
    assert 2 < yaw < 12.01 and pitch < 8.01 and roll < 6.01
    lid = track.column("eyeBlinkLeft")
    blinks = int(((lid[1:] > 0.5) & (lid[:-1] <= 0.5)).sum())
    assert 3 <= blinks <= 14 and lid.max() > 0.95 and np.median(lid) < 0.1
    assert track.expression.min() >= 0 and track.expression.max() <= 1


def test_the_head_looks_as_far_around_as_asked_and_says_the_same(model, spoken):
    samples, rate, phonemes = spoken
    make = lambda reach: motion.phantom_track(phonemes, samples, rate, model, np.zeros(4), seed=3, reach=reach)  # noqa: E731
    near, wide, still = make(motion.REACH), make((40, 25, 12)), make((0, 0, 0))
    reached = np.rad2deg(np.abs(head_angles(wide.rotation)).max(0))
    assert (reached < (40, 25, 12)).all() and (reached > (34, 19, 9)).all()
    assert np.array_equal(near.column("jawOpen"), wide.column("jawOpen")) and np.abs(head_angles(still.rotation)).max() < 1e-6
    turns = np.rad2deg(np.linalg.norm(np.diff(head_angles(wide.rotation), axis=0), axis=1))
    assert turns.max() < 6  # a frame: a quick turn, no jump


def test_shoulders_do_not_follow_the_head_rigidly(model):
    count = 22050 * 24
    sound = np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)
    track = motion.phantom_track([("_", 0.0, 24.0)], sound, 22050, model, np.zeros(4), seed=1)
    yaw, sway = head_angles(track.rotation)[:, 0], track.torso[:, 0]
    assert abs(np.corrcoef(yaw, sway)[0, 1]) < 0.8 and sway.std() > 0.003 and track.torso.shape[1] == 4


def test_the_pose_moves_head_and_torso_separately(model, track):
    figure = scene.Studio(model, track[:2], scene.draw_look(0)).figure
    moved = track[:1].replace(torso=track.torso[:1] + np.float32([0.1, 0, 0, 0]))
    shift = figure.pose(moved, 0) - figure.pose(track[:1], 0)
    face = model.regions["face"]
    assert np.abs(shift[: len(model.mean)][face]).max() < 1e-6  # the face is the head's alone
    bottom = figure.rest[:, 1] < -250
    assert shift[bottom, 0].mean() == pytest.approx(0.1 * scene.FIELD_MM, rel=0.2)


def test_pictures_repeat_and_identities_differ(model, track):
    first, again, other = (next(scene.phantom_frames(track[10:11], identity, model)) for identity in (1, 1, 2))
    assert first.shape == (256, 256, 3) and first.dtype == np.uint8 and np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.slow
def test_a_made_phantom_is_whole_and_the_detector_sees_its_mouth_move(tmp_path):
    from recon.landmarks import inner_lip_gap, load_detector
    from render.video import load_video, probe, read_audio_track

    made = scene.make_phantom(tmp_path, "Bob may buy five apples.", seed=2, identity=4, size=192)
    track, frames = Track.load(tmp_path / "track.npz"), load_video(tmp_path / "video.mp4")
    assert frames.shape == (made["frames"], 192, 192, 3) and len(track) == made["frames"] and probe(tmp_path / "video.mp4").fps == 25
    assert abs(len(read_audio_track(tmp_path / "video.mp4", 48000)) / 48000 * 25 - len(track)) <= 1
    found = load_detector().detect(frames)
    assert found.valid.all()
    assert np.corrcoef(inner_lip_gap(found.points), track.column("jawOpen"))[0, 1] > 0.7
    assert json.loads((tmp_path / "phantom.json").read_text())["identity"] == 4


@pytest.mark.parametrize("arguments", [{"size": 33}, {"size": 2}, {"fps": 0}, {"reach": (90, 0, 0)}, {"text": ""}])
def test_bad_requests_leave_nothing_behind(tmp_path, arguments):
    with pytest.raises(InputError):
        scene.make_phantom(tmp_path / "out", **{"text": "hello", **arguments})
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_demo_is_whole_small_and_seen_by_the_detector():
    from recon.landmarks import inner_lip_gap, load_detector
    from render.video import load_video, read_audio_track
    import soundfile

    folder = asset("demo")
    assert sum(p.stat().st_size for p in folder.iterdir()) < 4e6
    track, unseen, frames = Track.load(folder / "track.npz"), Track.load(folder / "unseen_track.npz"), load_video(folder / "video.mp4")
    assert frames.shape == (len(track), 256, 256, 3) and 20 < len(track) / track.fps < 35
    assert abs(len(read_audio_track(folder / "video.mp4", 16000)) / 16000 * track.fps - len(track)) <= 1
    assert abs(soundfile.info(folder / "unseen.wav").duration * track.fps - len(unseen)) <= 1
    assert np.array_equal(unseen.shape, track.shape) and unseen.meta["text"] != track.meta["text"]
    sample = np.arange(0, len(frames), 9)
    found = load_detector().detect(frames[sample])
    assert found.valid.all()
    assert np.corrcoef(inner_lip_gap(found.points), track.column("jawOpen")[sample])[0, 1] > 0.8
