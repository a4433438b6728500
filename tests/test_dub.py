"""Dubbing: the footage's own frames and times, pixels that stay, a mask that covers the old mouth and the new one."""

import numpy as np
import pytest

from recon.subject import Subject, write_subject
from render.files import InputError
from render.video import VideoWriter, frame_times, load_video, probe, timestamps
from synthetic import make_subject, toy_model
from thnerf import dub, synthesis, trainer
from thnerf.direction import Direction
from thnerf.performance import Speech

SIDE, X, Y, WIDTH, HEIGHT, FRAMES = 64, 40, 20, 160, 96, 50


def source_frame(i):
    u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    return np.stack([u + i, v + i, 0 * u + 3 * i], -1).astype(np.uint8)


@pytest.fixture(scope="module", params=["steady", "uneven"])
def footage_file(request, tmp_path_factory):
    """50 frames at 25 fps, or at times of their own."""
    path = tmp_path_factory.mktemp("source") / "clip.mp4"
    times = None if request.param == "steady" else np.cumsum(np.r_[0, np.random.default_rng(0).uniform(0.02, 0.06, FRAMES - 1)])
    with VideoWriter(path, WIDTH, HEIGHT, 25, crf=4, times=times) as writer:
        for i in range(FRAMES):
            writer.write(source_frame(i))
    return path


@pytest.fixture
def subject(tmp_path, footage_file, monkeypatch):
    made = make_subject(tmp_path / "s", FRAMES, SIDE)
    info = {**made.info, "clips": [{"source": str(footage_file), "start": 0, "end": FRAMES, "crop": {"x": X, "y": Y, "side": SIDE, "size": SIDE}}]}
    write_subject(made.path, {k: v for k, v in info.items() if k != "version"})
    opened = Subject.open(made.path)
    opened.__dict__["model"] = toy_model()
    monkeypatch.setattr(trainer, "load_renderer", lambda run, subject, device="auto": Stripes())
    monkeypatch.setattr(dub, "spoken", lambda subject, run, samples, direction, head: mumbling(subject, len(samples)))
    return opened


def mumbling(subject, samples):
    frames = max(1, round(samples / 16000 * 25))
    index = np.arange(frames) % len(subject.track)
    t = subject.track
    parts = {n: getattr(t, n)[index] for n in ("rotation", "translation", "gaze", "torso", "valid")}
    return t.replace(camera=t.camera.at(index), expression=np.full((frames, t.expression.shape[1]), 0.9), **parts)


class Stripes:
    """Draws black and white stripes."""

    def frame(self, track, index, background=None):
        out = np.zeros((track.camera.height, track.camera.width, 3), np.float32)
        out[::2] = 1
        return out


def speech(seconds):
    return Speech(np.zeros(round(16000 * seconds), np.float32), (np.zeros(round(16000 * seconds), np.float32), 16000))


def test_only_the_lower_face_changes_and_nothing_is_added_or_lost(subject, footage_file):
    original = load_video(footage_file).astype(np.float32) / 255
    renderer, motion, times = dub.dubbed(subject, subject.run(), speech(2), Direction())
    assert len(motion) == len(times) == len(original) == FRAMES
    np.testing.assert_allclose(times, frame_times(footage_file))
    for i in range(FRAMES):
        frame = renderer.frame(motion, i)
        x, y, w, h = renderer.box
        mask = np.zeros((HEIGHT, WIDTH))
        mask[Y + y : Y + y + h, X + x : X + x + w] = dub.soft_hull(renderer.outline[i], w, h)
        np.testing.assert_array_equal(frame[mask == 0], original[i][mask == 0])
        assert 0.01 < (mask > 0).mean() < 0.2 and np.abs(frame - original[i])[mask > 0.9].mean() > 0.2
    assert w < SIDE and h < 0.6 * SIDE


def test_head_eyes_and_shoulders_stay(subject):
    _, motion, _ = dub.dubbed(subject, subject.run(), speech(2), Direction())
    at = dub.at_times(subject.track, frame_times(dub.source_clips(subject)[0].path))
    for name in ("rotation", "translation", "gaze", "torso"):
        np.testing.assert_array_equal(getattr(motion, name), getattr(at, name))
    np.testing.assert_array_equal(motion.column("eyeBlinkLeft"), at.column("eyeBlinkLeft"))
    assert np.allclose(motion.column("jawOpen"), 0.9)


@pytest.mark.parametrize("seconds", [0.3, 2.0, 4.0])
def test_the_video_is_as_long_as_the_footage(subject, footage_file, tmp_path, seconds, monkeypatch):
    monkeypatch.setattr(synthesis, "speech_of", lambda *a: speech(seconds))
    if seconds > 3:
        with pytest.warns(UserWarning, match="not spoken"):
            done = synthesis.render_speech(subject, "a.wav", tmp_path / "a.mp4", dub=True)
    else:
        done = synthesis.render_speech(subject, "a.wav", tmp_path / "a.mp4", dub=True)
    assert done["frames"] == FRAMES and probe(tmp_path / "a.mp4").has_audio
    np.testing.assert_allclose(timestamps(tmp_path / "a.mp4"), timestamps(footage_file), atol=1e-4)
    made, original = load_video(tmp_path / "a.mp4").astype(int), load_video(footage_file).astype(int)
    assert made.shape == original.shape and np.abs(made - original)[:, :, : X - 2].max() < 12  # H.264 twice


def test_frames_without_a_face_are_left_alone(subject):
    valid = np.ones(FRAMES, bool)
    valid[20:23] = False
    object.__setattr__(subject.track, "valid", valid)
    amount = dub.presence(valid, 25)
    assert (amount[20:23] == 0).all() and amount[10] == amount[40] == 1 and np.abs(np.diff(amount)).max() < 0.5
    renderer, motion, _ = dub.dubbed(subject, subject.run(), speech(2), Direction())
    original = load_video(dub.source_clips(subject)[0].path).astype(np.float32) / 255
    at = dub.at_times(subject.track, frame_times(dub.source_clips(subject)[0].path))
    for i in range(FRAMES):
        same = np.array_equal(renderer.frame(motion, i), original[i])
        assert same == (not at.valid[i])


def test_the_mask_is_soft_and_covers_both_mouths():
    points = np.array([[20.0, 20], [60, 20], [40, 60]])
    mask = dub.soft_hull(points, 80, 80)
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == 0 and mask[35, 40] == 1 and np.abs(np.diff(mask, axis=0)).max() < 0.45
    subject_track = make_track_with_jaw(0.0), make_track_with_jaw(1.0)
    both = dub.lower_face(toy_model(), list(subject_track), SIDE)
    one = dub.lower_face(toy_model(), [subject_track[0]], SIDE)
    assert both[..., 1].max() > one[..., 1].max() + 1  # the open chin is lower
    with pytest.raises(InputError, match="landmarks"):
        import dataclasses

        dub.lower_face(dataclasses.replace(toy_model(), landmarks={}), [subject_track[0]], SIDE)


def make_track_with_jaw(jaw):
    from synthetic import toy_track

    track = toy_track(3, SIDE)
    expression = track.expression.copy()
    expression[:, 0] = jaw
    return track.replace(expression=expression)


def test_what_a_dub_leaves_no_room_for(subject, tmp_path):
    for wish in ({"direction": Direction(pose="still")}, {"direction": Direction(gaze="camera")}, {"direction": Direction(blink="0")}, {"track": "fit"}, {"size": "64"},
                 {"background": "green"}, {"full_frame": True}, {"camera": "orbit"}, {"direction": Direction(drive="a.mp4")}):
        with pytest.raises(InputError, match="--dub"):
            synthesis.render_speech(subject, "a.wav", tmp_path / "a.mp4", dub=True, **wish)
    with pytest.raises(InputError, match="--audio"):
        synthesis.render_speech(subject, None, tmp_path / "a.mp4", dub=True)
