"""The crop back in its footage: frames, edges, order, and what is refused."""

import dataclasses

import numpy as np
import pytest

from recon.subject import Subject, write_subject
from render.files import InputError
from render.video import VideoWriter, load_video, probe, read_audio_track, read_frames, read_frames_from
from synthetic import make_subject
from thnerf import fullframe, synthesis, trainer
from thnerf.direction import Direction
from thnerf.performance import Speech

SIDE, X, Y, WIDTH, HEIGHT, FRAMES = 64, 40, 20, 160, 96, 50


@pytest.fixture(scope="module")
def footage_file(tmp_path_factory):
    """50 frames at 25 fps, key frames far apart; the grey level tells the number."""
    path = tmp_path_factory.mktemp("source") / "clip.mp4"
    with VideoWriter(path, WIDTH, HEIGHT, 25, crf=4) as writer:
        for i in range(FRAMES):
            writer.write(np.full((HEIGHT, WIDTH, 3), 20 + 4 * i, np.uint8))
    return path


@pytest.fixture
def subject(tmp_path, footage_file):
    made = make_subject(tmp_path / "s", FRAMES, SIDE)
    info = {**made.info, "clips": [{"source": str(footage_file), "start": 0, "end": FRAMES, "crop": {"x": X, "y": Y, "side": SIDE, "size": SIDE}}]}
    write_subject(made.path, {k: v for k, v in info.items() if k != "version"})
    return Subject.open(made.path)


class Red:
    """Draws red pictures."""

    def frame(self, track, index, background=None):
        out = np.zeros((track.camera.height, track.camera.width, 3), np.float32)
        out[..., 0] = 1
        return out


@pytest.fixture
def red(monkeypatch):
    monkeypatch.setattr(trainer, "load_renderer", lambda run, subject, device="auto": Red())
    monkeypatch.setattr(synthesis, "spoken", lambda subject, run, samples, direction, head, fps: subject.track.resample(fps)[:30] if len(samples) else stretched(subject, fps))


def stretched(subject, fps):
    index = fullframe.back_and_forth(120, len(subject.track))
    t = subject.track
    return dataclasses.replace(t, **{n: getattr(t, n)[index] for n in ("expression", "rotation", "translation", "gaze", "torso", "valid")}, camera=t.camera.at(index))


def number(frame):
    """Which frame of the footage this is, by its outermost columns."""
    return (frame[:, :8].mean() - 20) / 4


@pytest.mark.parametrize("start", [0, 1, 7, 33, 49, 60])
@pytest.mark.parametrize("fps", [25.0, 50.0, 10.0])
def test_reading_from_the_middle_is_reading_from_the_start(footage_file, start, fps):
    expected = list(read_frames(footage_file, fps))[start:]
    seen = list(read_frames_from(footage_file, fps, start))
    assert len(seen) == len(expected) and all(np.array_equal(a, b) for a, b in zip(seen, expected))


def test_back_and_forth_never_jumps():
    index = fullframe.back_and_forth(200, 13)
    assert index.min() == 0 and index.max() == 12 and np.abs(np.diff(index)).max() == 1 and (index[:13] == np.arange(13)).all()
    assert (fullframe.back_and_forth(5, 1) == 0).all()


@pytest.mark.parametrize("room", [2**28, 6 * 3 * WIDTH * HEIGHT])
def test_frames_in_order_forwards_and_backwards(footage_file, room, monkeypatch):
    monkeypatch.setattr(fullframe, "_BLOCK_BYTES", room)
    index = fullframe.back_and_forth(130, FRAMES)
    seen = [number(f) for f in fullframe.frames_in_order(footage_file, 25.0, index, 3 * WIDTH * HEIGHT)]
    np.testing.assert_allclose(seen, index, atol=0.4)


def test_soft_edge_is_whole_inside_and_nothing_at_inner_borders():
    clip = fullframe.Clip("a", 0, 1, 100, 60, 25, 20, 0, 60)  # touches top and bottom of the frame
    mask = fullframe.soft_edge(clip)[..., 0]
    assert mask[30, 30] == 1 and mask[0, 30] == 1 and mask[-1, 30] == 1 and mask[30, 0] < 0.1 and mask[30, -1] < 0.1
    assert np.abs(np.diff(mask[30])).max() < 0.5 and (np.diff(mask[30, :30]) >= 0).all()


def test_the_crop_is_replaced_and_the_rest_is_the_footage(subject, red, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(19200) / 8), 16000)
    done = synthesis.render_speech(subject, tmp_path / "a.wav", tmp_path / "a.mp4", full_frame=True)
    frames, info = load_video(tmp_path / "a.mp4"), probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps) == (WIDTH, HEIGHT, 25) and done["frames"] == 30 and info.has_audio
    np.testing.assert_allclose([number(f) for f in frames], np.arange(30), atol=0.5)
    inside = frames[:, Y + 8 : Y + SIDE - 8, X + 8 : X + SIDE - 8].astype(int)
    assert inside[..., 0].min() > 220 and inside[..., 1].max() < 40
    outside = frames[10].astype(int)
    outside[Y - 2 : Y + SIDE + 2, X - 2 : X + SIDE + 2] = 60
    assert np.abs(outside - 60).max() < 8


def test_the_crop_is_as_bright_as_the_footage_around_it():
    clip = fullframe.Clip("a", 0, 1, 100, 60, 25, 20, 0, 60)
    drawn = np.kron(np.random.default_rng(0).uniform(0.2, 0.7, (6, 6, 3)), np.ones((10, 10, 1))).astype(np.float32)
    dark = np.array([0.85, 0.9, 0.8], np.float32) * drawn  # the camera has just closed its aperture
    window = dark.copy()
    window[12:, 20:40] = 0.5  # where the person was
    fullframe.PastedRenderer(None, None, [clip], np.zeros(1, int), iter(())).paste(window, drawn, 0)
    np.testing.assert_allclose(window, dark, atol=0.01)


def test_longer_speech_plays_the_footage_back(subject, red, tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "speech_of", lambda *a: Speech(np.zeros(0, np.float32), (np.zeros(100, np.float32), 16000)))
    synthesis.render_speech(subject, "long", tmp_path / "a.mp4", full_frame=True)
    seen = [number(f) for f in read_frames(tmp_path / "a.mp4")]
    np.testing.assert_allclose(seen, fullframe.back_and_forth(120, FRAMES), atol=0.6)


def test_pose_comes_from_the_very_frames_that_are_shown(subject):
    clip = fullframe.source_clips(subject)[0]
    moved, index = fullframe.with_source_pose(stretched(subject, 25), subject.track, clip)
    np.testing.assert_array_equal(moved.rotation, subject.track.rotation[index])
    np.testing.assert_array_equal(moved.torso, subject.track.torso[index])


def test_the_footage_itself_with_its_own_sound(subject, red, tmp_path):
    done = synthesis.render_speech(subject, None, tmp_path / "a.mov", full_frame=True, track="fit")
    assert done["frames"] == FRAMES and read_audio_track(tmp_path / "a.mov") is None  # this footage has no sound
    smiling = subject.track.replace(expression=subject.track.expression * 0 + 1)
    assert synthesis.render_speech(subject, None, tmp_path / "b.mp4", full_frame=True, track=smiling)["frames"] == FRAMES
    turned = subject.track.replace(rotation=subject.track.rotation + 0.1)
    with pytest.raises(InputError, match="moves as in the footage"):
        synthesis.render_speech(subject, None, tmp_path / "c.mp4", full_frame=True, track=turned)


@pytest.mark.parametrize("wish", [{"size": "512"}, {"background": "green"}, {"direction": Direction(pose="audio")}, {"direction": Direction(pose="still")},
                                  {"direction": Direction(drive="b.mp4")}, {"dub": True}])
def test_wishes_that_exclude_each_other(subject, red, tmp_path, wish):
    with pytest.raises(InputError, match="--full-frame"):
        synthesis.render_speech(subject, "a.wav", tmp_path / "a.mp4", full_frame=True, **wish)
    with pytest.raises(InputError, match="--track"):
        synthesis.render_speech(subject, None, tmp_path / "a.mp4", track="fit", direction=Direction(text="No."))
    with pytest.raises(InputError, match="--audio"):
        synthesis.render_speech(subject, None, tmp_path / "a.mp4")


def test_footage_that_is_gone_or_was_replaced(subject, tmp_path):
    info = {k: v for k, v in subject.info.items() if k != "version"}
    for change, words in (({"source": str(tmp_path / "gone.mp4")}, "put it back"), ({"crop": {"x": 120, "y": 20, "side": 64, "size": 64}}, "too few")):
        write_subject(subject.path, {**info, "clips": [{**info["clips"][0], **change}]})
        with pytest.raises(InputError, match=words):
            fullframe.source_clips(Subject.open(subject.path))
