"""Streaming: the same motion whatever the packets, nothing from beyond the stated latency, and what sinks make of it."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")
torch = pytest.importorskip("torch")

from recon.lines import MotionFrame, parse_line
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between
from render.video import load_video, probe, read_audio_track
from test_motion import SMALL, babble, make_subject
from thnerf import audio, motion, motion_training, sinks, stream
from thnerf.direction import Direction, camera_gaze

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A subject with a trained run, and an unseen sound with its truth."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subject = make_subject(tmp_path_factory.mktemp("stream") / "me")
    motion_training.train_motion(subject, subject.run(), dataclasses.replace(SMALL, members=1, steps=120), seconds=30)
    yield subject, *babble(4.5, 77)
    torch.set_num_threads(threads)


def said(subject, samples, packet=None, **options) -> list[MotionFrame]:
    """The frames of a sound in packets of so many samples."""
    streamer = stream.Streamer(subject, subject.run(), **options)
    out = [f for a in range(0, len(samples), packet or len(samples)) for f in streamer.push(samples[a : a + (packet or len(samples))])]
    return out + list(streamer.finish())


def expressions(frames):
    return np.array([list(f.expression.values()) for f in frames])


@pytest.fixture(scope="module")
def whole(trained):
    return said(trained[0], trained[1])


@pytest.mark.parametrize("packet", [1, 333, 50_000])
def test_packets_do_not_matter(trained, whole, packet):
    subject, sound, _ = trained
    part = sound[: 16_000] if packet < 10 else sound
    frames, expected = said(subject, part, packet), said(subject, part) if packet < 10 else whole
    assert len(frames) == len(expected) == round(len(part) / audio.RATE * 25)
    assert np.abs(expressions(frames) - expressions(expected)).max() < 1e-4
    for name in ("time", "rotation", "translation", "gaze"):
        np.testing.assert_allclose([getattr(f, name) for f in frames], [getattr(f, name) for f in expected], atol=1e-6)


def test_bytes_one_by_one_are_the_same_sound(trained):
    raw = (np.clip(trained[1][:3000], -1, 1) * 32767).astype("<i2").tobytes()
    for size in (1, 3, 640, 10_000):
        got = np.concatenate(list(stream.pcm_packets(io.BytesIO(raw), size)))
        np.testing.assert_array_equal(got, np.frombuffer(raw, "<i2").astype(np.float32) / 32768)


@pytest.mark.parametrize("lookahead", [13, 1000])
def test_streamed_lips_are_those_of_the_network_on_the_whole_sound(trained, lookahead):
    subject, sound, _ = trained
    streamer = stream.Streamer(subject, subject.run(), lookahead=lookahead)
    speaker, closing = streamer.speaker, []
    inner = streamer.speaker.mouth
    streamer.speaker.mouth = lambda z, closed, rest, pause: (closing.append((rest[0], pause[0])), inner(z, closed, rest, pause))[1]
    frames = [*streamer.push(sound), *streamer.finish()]
    rest, pause = np.array(closing).T
    mel, ear = audio.log_mel(sound), stream.Ear()
    features, *_ = ear.push(sound, True)
    seen = features > 0
    assert len(features) == len(mel) and np.corrcoef(features[seen], mel[seen])[0, 1] > 0.95
    T, right = len(frames), speaker.right
    padded = np.pad(features[: 4 * T + right], ((speaker.left, right), (0, 0)), mode="edge")
    if lookahead >= right:
        z, closed, _ = speaker.window(padded[: 4 * T + speaker.left + right])
    else:  # each frame from a sound that is held after its look-ahead
        rows = []
        for i in range(T):
            cut = padded[4 * i : 4 * i + speaker.left + 4 + right].copy()
            cut[speaker.left + 4 + lookahead :] = cut[speaker.left + 3 + lookahead]
            rows.append(speaker.window(cut))
        z, closed, _ = (np.concatenate(x) for x in zip(*rows))
    lips = inner(z, closed, rest, pause)
    assert np.abs(expressions(frames)[:, speaker.columns] - lips).max() < 1e-4


def test_nothing_is_heard_from_beyond_the_stated_latency(trained, whole):
    subject, sound, _ = trained
    streamer = stream.Streamer(subject, subject.run())
    assert streamer.latency <= 0.2
    for i in (10, 80):
        last = int(np.ceil((i / 25 + streamer.latency) * audio.RATE))
        other = np.concatenate([sound[:last], np.random.default_rng(i).normal(size=len(sound) - last).astype(np.float32) * 0.3])
        frames = said(subject, other)
        np.testing.assert_allclose(expressions(frames[: i + 1]), expressions(whole[: i + 1]), atol=1e-5)
        streamer = stream.Streamer(subject, subject.run())
        assert len(list(streamer.push(sound[:last]))) >= i + 1  # and it comes as soon as that is in
    for latency in (20, 92.9, np.nan, np.inf):
        with pytest.raises(InputError, match="--latency must be a number of at least 93 ms"):
            stream.stream_speech(subject, [sound], [], latency=latency)


def test_a_latency_that_brings_nothing_more_is_limited_and_said(trained, monkeypatch, capsys):
    subject, sound, _ = trained
    monkeypatch.setenv("THNERF_QUIET", "0")
    most = stream.stream_speech(subject, [sound[:4000]], [], latency=1e9)["latency_ms"]
    assert f"it is limited to {most:.0f} ms" in capsys.readouterr().err and most < 1000
    stream.stream_speech(subject, [sound[:4000]], [], latency=most)
    assert "limited" not in capsys.readouterr().err


def test_the_jaw_follows_unseen_sound(trained, whole):
    jaw = np.array([f.expression["jawOpen"] for f in whole])
    truth = trained[2][: len(jaw), 0]
    scores = [np.corrcoef(jaw[10 + k : len(jaw) - 10 + k], truth[10:-10])[0, 1] for k in range(-3, 4)]
    assert max(scores) > 0.7 and abs(int(np.argmax(scores)) - 3) <= 1


@pytest.mark.parametrize("gain", [0.03, 3.0])
def test_loudness_does_not_matter_for_long(trained, whole, gain):
    subject, sound, _ = trained
    jaw, usual = (np.array([f.expression["jawOpen"] for f in frames[40:105]]) for frames in (said(subject, np.clip(gain * sound, -1, 1).astype(np.float32)), whole))
    assert usual.std() > 0.02 and np.corrcoef(jaw, usual)[0, 1] > 0.95 and 0.8 < jaw.std() / usual.std() < 1.25


def test_silence_closes_the_mouth(trained):
    subject, sound, _ = trained
    quiet = np.concatenate([sound[:48_000], np.zeros(48_000, np.float32)])
    frames = said(subject, quiet)
    jaw = np.array([f.expression["jawOpen"] for f in frames])
    assert jaw[-40:].max() < 0.15 * np.percentile(jaw[:70], 95) + 0.02
    assert np.ptp(jaw[-30:]) < 0.01
    assert len(said(subject, np.zeros(0, np.float32), 1)) == 1  # no sound at all is one frame, as offline


def test_the_seed_decides_all_but_the_lips(trained, whole):
    subject, sound, _ = trained
    same, other = said(subject, sound, direction=Direction(seed=0)), said(subject, sound, direction=Direction(seed=5))
    np.testing.assert_array_equal([f.rotation for f in same], [f.rotation for f in whole])
    assert angle_between(np.array([f.rotation for f in other]), np.array([f.rotation for f in whole])).max() > 0.01
    for name in ("jawOpen", "mouthFunnel"):
        np.testing.assert_allclose([f.expression[name] for f in other], [f.expression[name] for f in whole], atol=1e-6)


def test_head_motion_goes_on_for_ever_without_a_jump(trained, monkeypatch):
    monkeypatch.setattr(stream, "_BLOCK", 3.0)
    pose = motion.Speaker(trained[0], trained[0].run()).pose
    live = stream.LiveMotion(pose, 3, {})
    states = np.stack([live.at(i, 0.5 + 0.5 * np.sin(i / 40)) for i in range(600)])
    own = np.abs(np.concatenate([np.diff(pose.states[a:b], axis=0) for a, b in pose.runs])).max(0)
    assert (np.abs(np.diff(states[:, :6], axis=0)).max(0) < 2.5 * own[:6] + 1e-6).all()
    assert (states[:, :6] >= pose.low[:6] - 1e-6).all() and (states[:, :6] <= pose.high[:6] + 1e-6).all()
    again = stream.LiveMotion(pose, 3, {})
    np.testing.assert_array_equal(states, np.stack([again.at(i, 0.5 + 0.5 * np.sin(i / 40)) for i in range(600)]))


def test_streamed_speech_is_directed(trained, tmp_path):
    subject, sound, _ = trained
    (tmp_path / "e.csv").write_text("1,2,happy")
    plain = said(subject, sound[:48_000])
    amplified = said(subject, sound[:48_000], direction=Direction(mouth_amplitude=0.0, gaze="camera", pose="still", expression_offset=("browInnerUp=0.3",)))
    assert np.ptp([f.expression["jawOpen"] for f in amplified]) < 1e-6 < np.ptp([f.expression["jawOpen"] for f in plain])
    assert np.ptp([f.rotation for f in amplified], axis=0).max() < 1e-6
    track = subject.track[:1].replace(rotation=amplified[9].rotation[None], translation=amplified[9].translation[None], camera=Camera(subject.track.camera.K, np.eye(4)[None], 64, 64))
    np.testing.assert_allclose(amplified[9].gaze, camera_gaze(track)[0], atol=0.05)
    np.testing.assert_allclose([f.expression["browInnerUp"] for f in amplified], np.clip([f.expression["browInnerUp"] + 0.3 for f in plain], 0, 1), atol=0.05)
    for wish in ({"text": "Hello"}, {"drive": "a.mp4"}, {"blink": "source"}, {"gaze": "source"}, {"blink": "a.npz"}, {"gaze": "a.npz"}, {"pose": "a.mp4"}):
        with pytest.raises(InputError, match="thnerf stream"):
            stream.Streamer(subject, subject.run(), Direction(**wish))
    source = said(subject, sound[:48_000], direction=Direction(pose="source"))
    assert angle_between(source[30].rotation, subject.track.rotation[30]) < 0.01
    lids = np.array([f.expression["eyeBlinkLeft"] for f in said(subject, sound, direction=Direction(blink="0"))])
    assert lids.max() < 0.4


def test_sound_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="no sound came in"):
        list(stream.pcm_packets(io.BytesIO(b"")))
    with pytest.warns(UserWarning, match="odd number of bytes"):
        assert len(np.concatenate(list(stream.pcm_packets(io.BytesIO(b"\0" * 101))))) == 50
    with pytest.raises(InputError, match="does not exist"):
        list(stream.sound_packets(tmp_path / "a.wav"))


class Grey:
    """Draws grey pictures."""

    def frame(self, track, index, background=None):
        return np.full((track.camera.height, track.camera.width, 3), 0.5, np.float32)


def test_sinks_get_lines_frames_and_sound(trained, tmp_path):
    subject, sound, _ = trained
    tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(32_000) / audio.RATE)).astype(np.float32)
    lines, raw = io.StringIO(), io.BytesIO()
    targets = [sinks.LineSink(lines), sinks.RawSink(raw, Grey()), sinks.FrameSink(tmp_path / "a.mp4", subject, Grey()), sinks.FrameSink(tmp_path / "f", subject, Grey())]
    done = stream.stream_speech(subject, [tone[a : a + 320] for a in range(0, len(tone), 320)], targets)
    parsed = [parse_line(line) for line in lines.getvalue().splitlines()]
    assert done["frames"] == len(parsed) == 50 and done["latency_ms"] <= 200 and [p.time for p in parsed] == pytest.approx(np.arange(50) / 25)
    size = subject.track.camera.width
    assert len(raw.getvalue()) == 50 * size * size * 3 and set(raw.getvalue()) == {128}
    assert len(load_video(tmp_path / "a.mp4")) == 50 and probe(tmp_path / "a.mp4").has_audio and len(list((tmp_path / "f").glob("*.png"))) == 50
    heard = read_audio_track(tmp_path / "a.mp4", 16_000)
    middle = heard[8_000:24_000]
    assert abs(np.argmax(np.abs(np.fft.rfft(middle))) - 440) <= 1 and 0.3 < np.abs(middle).max() < 0.5


def test_sound_comes_out_as_it_went_in():
    live, tone = sinks.LiveSound(), np.sin(np.arange(16_000) / 5).astype(np.float32) * 0.5
    out = []
    for a in range(0, 16_000, 640):
        live.push(tone[a : a + 640])
        out.append(live.take(1920) if a < 15_000 else live.take(1000))
        if a == 0:
            continue
    from render.sound import resample_audio

    whole, got = resample_audio(tone, 16_000, 48_000), np.concatenate(out)
    assert np.abs(got - whole[: len(got)])[: 1800].max() < 1e-3 and live.position == len(got)


@pytest.mark.parametrize("command", ["stream", "track"])
def test_a_closed_pipe_ends_quietly(trained, tmp_path, command):
    subject, sound, _ = trained
    soundfile.write(tmp_path / "a.wav", np.tile(sound, 4), audio.RATE)
    source = [str(subject.path), "--audio", str(tmp_path / "a.wav")] if command == "stream" else ["--camera", str(ROOT / "assets/demo/video.mp4")]
    process = subprocess.Popen([sys.executable, "-m", "thnerf.cli", command, *source], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "THNERF_QUIET": "1", "OMP_NUM_THREADS": "1"})
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    stderr = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 0 and stderr == "" and first["time"] == 0
