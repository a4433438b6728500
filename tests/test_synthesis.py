"""From a Track to a video, with a renderer that draws the frame number: order, sound, interruption, backgrounds."""

import sys
import threading
import types

import numpy as np
import pytest
from PIL import Image

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, StageError
from render.video import load_video, probe, read_audio_track
from thnerf import synthesis

SIZE = 64


def make_track(frames=20, fps=25.0, model="test") -> Track:
    return Track(
        fps=fps, model_id=model, camera=Camera.simple(200, SIZE, SIZE, frames), shape=np.zeros(2), expression=np.zeros((frames, 1)),
        rotation=np.zeros((frames, 3)), translation=np.zeros((frames, 3)), gaze=np.zeros((frames, 2, 2)), torso=np.zeros((frames, 4)),
        valid=np.ones(frames, bool), expression_names=("jawOpen",))


class Ramp:
    """Draws frame i of n as the grey level i / n, over a background on the left half."""

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.fail_at, self.error, self.drawn = fail_at, error, 0

    def frame(self, track, index, background=None):
        if index == self.fail_at:
            raise self.error
        self.drawn += 1
        image = np.full((SIZE, SIZE, 3), index / len(track), np.float32)
        if background is not None:
            image[:, : SIZE // 2] = background[:, : SIZE // 2]
        return image


def test_frames_arrive_whole_and_in_order(tmp_path):
    done = synthesis.render_track(Ramp(), make_track(30), tmp_path / "a.mp4")
    levels = load_video(tmp_path / "a.mp4").mean((1, 2, 3)) / 255
    np.testing.assert_allclose(levels, np.arange(30) / 30, atol=0.02)
    assert done["frames"] == 30 and done["fps"] > 0
    assert b"trainedAlgorithmicMedia" in (tmp_path / "a.mp4").read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_earlier_file(tmp_path, error):
    (tmp_path / "a.mp4").write_bytes(b"earlier")
    with pytest.raises(error):
        synthesis.render_track(Ramp(fail_at=12, error=error), make_track(30), tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_an_encoder_that_fails_ends_the_render_at_once(tmp_path, monkeypatch):
    from render import video

    count = []

    def write(self, frame):
        count.append(1)
        if len(count) == 5:
            raise StageError("cannot write a.mp4: no space left on device")

    monkeypatch.setattr(video.VideoWriter, "write", write)
    ramp = Ramp()
    with pytest.raises(StageError, match="no space"):
        synthesis.render_track(ramp, make_track(500), tmp_path / "a.mp4")
    assert ramp.drawn < 100 and not list(tmp_path.iterdir())


def test_rendering_never_runs_far_ahead_of_encoding(tmp_path, monkeypatch):
    from render import video

    ramp, write, lead = Ramp(), video.VideoWriter.write, []
    gate = threading.Event()

    def slow(self, frame):
        gate.wait(0.005)
        lead.append(ramp.drawn - len(lead))
        write(self, frame)

    monkeypatch.setattr(video.VideoWriter, "write", slow)
    synthesis.render_track(ramp, make_track(60), tmp_path / "a.mp4")
    assert len(lead) == 60 and max(lead) <= synthesis.AHEAD + 2


def test_no_frames_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no frames"):
        synthesis.render_track(Ramp(), make_track()[0:0], tmp_path / "a.mp4")


def test_background_covers_and_is_cropped_in_the_middle(tmp_path):
    wide = np.zeros((40, 160, 3), np.uint8)
    wide[:, 60:100] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = synthesis.load_background(tmp_path / "wide.png", 32, 32)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.float32 and picture[:, 2:-2].min() > 0.95
    synthesis.render_track(Ramp(), make_track(4), tmp_path / "a.mp4", background=np.ones((SIZE, SIZE, 3), np.float32))
    assert load_video(tmp_path / "a.mp4")[0][:, :24].min() > 230


def test_unreadable_backgrounds(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture := np.random.default_rng(0).integers(0, 255, (50, 50, 3)).astype(np.uint8)).save(tmp_path / "whole.png")
    assert picture.shape == (50, 50, 3)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    for name in ("text.png", "cut.png", "missing.png"):
        with pytest.raises(InputError, match="background"):
            synthesis.load_background(tmp_path / name, 8, 8)


class FakeSubject(Subject):
    """A subject that exists in memory only."""

    track = make_track(10)


def test_pose_takes_words_and_tracks_of_the_same_model(tmp_path):
    subject = FakeSubject(tmp_path)
    assert synthesis.pose_source("still", subject) == "still"
    make_track(50, fps=50.0).save(tmp_path / "pose.npz")
    pose = synthesis.pose_source(tmp_path / "pose.npz", subject)
    assert isinstance(pose, Track) and pose.fps == 25 and len(pose) == 25
    make_track(model="other").save(tmp_path / "other.npz")
    with pytest.raises(InputError, match="face model other"):
        synthesis.pose_source(str(tmp_path / "other.npz"), subject)
    with pytest.raises(InputError, match="audio, source, still"):
        synthesis.pose_source("sideways", subject)


@pytest.fixture
def fake_chain(monkeypatch):
    """Stand-ins for the speech network and the trained run: a frame for every 1/25 s of sound."""
    motion, trainer = types.ModuleType("thnerf.motion"), types.ModuleType("thnerf.trainer")
    motion.predict_track = lambda subject, run, samples, rate, seed=0, pose="audio": make_track(max(1, round(len(samples) / rate * 25)))
    trainer.load_renderer = lambda run, subject, device="auto": Ramp()
    monkeypatch.setitem(sys.modules, "thnerf.motion", motion)
    monkeypatch.setitem(sys.modules, "thnerf.trainer", trainer)


@pytest.mark.parametrize("length, rate", [(2.0, 16000), (1.37, 44100), (0.05, 8000)])
def test_the_video_is_as_long_as_the_sound(tmp_path, fake_chain, length, rate):
    import soundfile

    t = np.arange(int(length * rate)) / rate
    soundfile.write(tmp_path / "a.wav", np.stack([0.5 * np.sin(2 * np.pi * 300 * t)] * 2, 1), rate)
    done = synthesis.render_speech(FakeSubject(tmp_path), tmp_path / "a.wav", tmp_path / "a.mp4")
    assert abs(len(load_video(tmp_path / "a.mp4")) - length * 25) <= 1
    assert done["frames"] == len(load_video(tmp_path / "a.mp4")) and done["duration"] == done["frames"] / 25
    assert probe(tmp_path / "a.mp4").has_audio
    sound = read_audio_track(tmp_path / "a.mp4", 16000)
    if length > 1:
        middle = sound[8000:16000]
        spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
        assert abs(np.argmax(spectrum) * 16000 / len(middle) - 300) < 5 and np.abs(middle).max() > 0.4


def test_bad_requests_stop_before_anything_is_written(tmp_path, fake_chain):
    (tmp_path / "empty.wav").write_bytes(b"")
    for audio, out in (("empty.wav", "a.mp4"), ("missing.wav", "a.mp4"), ("empty.wav", "a.gif")):
        with pytest.raises(InputError):
            synthesis.render_speech(FakeSubject(tmp_path), tmp_path / audio, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["empty.wav"]
