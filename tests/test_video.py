"""Video in and out: time is kept, colours are kept, files appear whole or not at all, bad input gets one sentence."""

import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest

from render.files import InputError, StageError
from render.video import SYNTHETIC, VideoWriter, crop_square, load_video, picked_frames, probe, read_audio_track, read_frames, resample_audio, timestamps

SIDE = 64


def numbered(index: int) -> np.ndarray:
    """A flat frame that says which one it is (10 grey levels apart, up to 24)."""
    return np.full((SIDE, SIDE, 3), 10 * index + 5, np.uint8)


def number(frame: np.ndarray) -> int:
    return int(round((float(frame.mean()) - 5) / 10))


def write_timed(path, times_ms, container="matroska"):
    """Numbered frames at given presentation times (ms)."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1", "bf": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = int(ms), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write(path, frames, fps=25, **options):
    frames = list(frames)
    with VideoWriter(path, frames[0].shape[1], frames[0].shape[0], fps, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.mark.parametrize("fps", [25, 60, Fraction(30000, 1001), 24])
def test_reading_at_its_own_rate_is_the_identity(tmp_path, fps):
    path = write(tmp_path / "a.mp4", (numbered(i) for i in range(24)), fps)
    assert [number(f) for f in read_frames(path, float(fps))] == list(range(24))
    assert [number(f) for f in read_frames(path)] == list(range(24))
    assert np.allclose(timestamps(path), np.arange(24) / float(fps), atol=1e-3)


@pytest.mark.parametrize("fps", [60, 50, Fraction(30000, 1001), 24, 12])
def test_another_rate_shows_the_frame_on_screen_and_keeps_the_duration(tmp_path, fps):
    path = write(tmp_path / "a.mp4", (numbered(i) for i in range(24)), fps)
    shown = [number(f) for f in read_frames(path, 25)]
    lag = np.arange(len(shown)) / 25 - np.array(shown) / float(fps)
    early = 0.5 / max(25, float(fps))  # half the shorter period
    assert lag.min() >= -early - 1e-3 and lag.max() <= 1 / float(fps) - early + 1e-3
    assert abs(len(shown) / 25 - 24 / float(fps)) <= 1 / 25


def test_a_variable_rate_holds_each_frame_until_the_next(tmp_path):
    path = write_timed(tmp_path / "vfr.mkv", [0, 33, 67, 500, 540, 580])
    shown = [number(f) for f in read_frames(path, 25)]
    assert shown[:2] == [0, 1] and shown[2:12] == [2] * 10, "the frame on screen for half a second must stay on screen"
    assert shown[-1] == 5 and np.all(np.diff(shown) >= 0)
    assert abs(len(shown) - 15.5) <= 1


def test_jitter_of_timestamps_changes_nothing(tmp_path):
    times = np.arange(20) * 40 + np.random.default_rng(0).integers(-9, 10, 20)
    times -= times[0]
    assert [number(f) for f in read_frames(write_timed(tmp_path / "j.mkv", times), 25)] == list(range(20))


def test_a_late_start_is_time_zero(tmp_path):
    path = write_timed(tmp_path / "late.mkv", 700 + np.arange(10) * 40)
    assert [number(f) for f in read_frames(path, 25)] == list(range(10))


def test_a_single_frame_is_a_video(tmp_path):
    path = write(tmp_path / "one.mp4", [numbered(3)])
    assert [number(f) for f in read_frames(path, 25)] == [3]
    assert probe(path).frames == 1 and probe(path).duration > 0


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotated_phone_clips_come_out_upright(tmp_path, turn, mirror):
    picture = np.zeros((48, SIDE, 3), np.uint8)
    picture[:, :, 0] = np.linspace(0, 250, SIDE)
    picture[:, :, 2] = np.linspace(0, 250, 48)[:, None]
    write(tmp_path / "a.mp4", [picture] * 3)
    flags = ["-display_rotation", str(turn)] + (["-display_hflip"] if mirror else [])
    ffmpeg(*flags, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    ffmpeg("-i", tmp_path / "b.mp4", "-frames:v", "1", tmp_path / "want.png")  # ffmpeg turns it by itself
    want = next(av.open(str(tmp_path / "want.png")).decode(video=0)).to_ndarray(format="rgb24")
    got = load_video(tmp_path / "b.mp4")
    assert got.shape[1:] == want.shape and np.abs(got[0].astype(int) - want).mean() < 4
    assert (probe(tmp_path / "b.mp4").height, probe(tmp_path / "b.mp4").width) == want.shape[:2]


def smooth_frames(count=12, side=128):
    g = np.linspace(0, 1, side)
    for t in range(count):
        wave = 128 + 90 * np.sin(5 * g[None] + t / 5) * np.cos(4 * g[:, None])
        yield np.rint(np.stack([wave, 40 + 160 * np.broadcast_to(g[:, None], wave.shape), 230 - 200 * np.outer(g, g)], -1)).astype(np.uint8)


def test_what_is_written_is_read_back_without_a_colour_shift(tmp_path):
    frames = np.stack(list(smooth_frames()))
    difference = load_video(write(tmp_path / "a.mp4", frames)).astype(float) - frames
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 40
    assert np.abs(difference.mean((0, 1, 2))).max() < 1
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]):
        flat = np.tile(np.uint8(colour), (2, SIDE, SIDE, 1))
        assert np.abs(load_video(write(tmp_path / "c.mp4", flat)).astype(int) - flat).max() <= 4


def test_the_file_says_which_colours_it_holds(tmp_path):
    with av.open(str(write(tmp_path / "a.mp4", smooth_frames(2)))) as source:
        context = source.streams.video[0].codec_context
        assert (int(context.colorspace), int(context.color_primaries), int(context.color_range)) == (1, 1, 1)
        assert context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("span", ["tv", "pc"])
def test_the_declared_matrix_and_range_are_obeyed(tmp_path, matrix, span):
    np.asarray(next(smooth_frames(1))).tofile(tmp_path / "raw")
    tag = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "128x128", "-i", tmp_path / "raw", "-vf",
           f"scale=out_color_matrix={matrix}:out_range={span}:flags=accurate_rnd+full_chroma_int,format=yuv444p",
           "-colorspace", tag, "-color_range", span, "-c:v", "libx264", "-crf", "1", tmp_path / "a.mp4")
    difference = load_video(tmp_path / "a.mp4")[0].astype(float) - next(smooth_frames(1))
    assert np.abs(difference).mean() < 1.5


def test_grey_video_keeps_both_ends(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (3, SIDE, 1))
    back = load_video(write(tmp_path / "m.mp4", ramp, grey=True), grey=True)
    assert back.shape == ramp.shape and np.abs(back.astype(int) - ramp).max() <= 4
    flat = np.stack([np.zeros((SIDE, SIDE), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)])
    assert np.abs(load_video(write(tmp_path / "e.mp4", flat, grey=True), grey=True).astype(int) - flat).max() <= 1


def click_track(path, seconds, rate, at):
    import soundfile

    samples = np.zeros(int(seconds * rate), np.float32)
    start = int(at * rate)
    samples[start : start + rate // 100] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(rate // 100) / rate)
    soundfile.write(path, samples, rate)
    return path


def onset(samples, rate=48000):
    return np.flatnonzero(np.abs(samples) > 0.25)[0] / rate


@pytest.mark.parametrize("seconds, rate", [(0.3, 48000), (1.0, 16000), (3.0, 44100)])
def test_sound_lasts_exactly_as_long_as_the_frames_and_stays_in_place(tmp_path, seconds, rate):
    sound = click_track(tmp_path / "s.wav", seconds, rate, 0.2)
    path = write(tmp_path / "a.mp4", (numbered(i) for i in range(24)), audio=sound)
    info = probe(path)
    assert abs(info.audio_duration - 24 / 25) < 0.001 and abs(info.duration - 24 / 25) < 0.001
    samples = read_audio_track(path, duration=24 / 25)
    assert len(samples) == 46080 and samples.dtype == np.float32
    assert abs(onset(samples) - 0.2) < 0.003


def test_sound_may_be_given_as_samples_even_with_nan(tmp_path):
    samples = np.zeros(16000, np.float32)
    samples[100] = np.nan
    back = read_audio_track(write(tmp_path / "a.mp4", (numbered(i) for i in range(10)), audio=(samples, 16000)))
    assert np.isfinite(back).all() and np.abs(back).max() < 0.01


@pytest.mark.parametrize("offset", [0.2, -0.1])
def test_sound_is_placed_against_the_first_frame(tmp_path, offset):
    write(tmp_path / "v.mp4", (numbered(i) for i in range(20)))
    sound = click_track(tmp_path / "s.wav", 0.6, 48000, 0.3)
    ffmpeg("-itsoffset", max(0, -offset), "-i", tmp_path / "v.mp4", "-itsoffset", max(0, offset), "-i", sound,
           "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "a.mkv")
    assert abs(onset(read_audio_track(tmp_path / "a.mkv")) - (0.3 + offset)) < 0.004


def test_stereo_is_averaged_and_silence_is_none_only_without_a_stream(tmp_path):
    import soundfile

    stereo = np.zeros((9600, 2), np.float32)
    stereo[:, 0] = 0.5 * np.sin(np.arange(9600) / 10)
    soundfile.write(tmp_path / "s.wav", stereo, 48000)
    back = read_audio_track(write(tmp_path / "a.mp4", (numbered(i) for i in range(5)), audio=tmp_path / "s.wav"))
    assert 0.2 < np.abs(back).max() < 0.3
    assert read_audio_track(write(tmp_path / "b.mp4", [numbered(1)])) is None


def test_resampling_keeps_a_tone_and_its_phase():
    tone = lambda rate: np.sin(2 * np.pi * 440 * np.arange(rate) / rate)  # noqa: E731 - used twice, on one line
    assert np.abs(resample_audio(tone(16000), 16000, 48000) - tone(48000))[2000:-2000].max() < 1e-2


def test_synthetic_media_is_marked_in_metadata_and_xmp(tmp_path):
    path = write(tmp_path / "s.mp4", smooth_frames(3), synthetic=True)
    with av.open(str(path)) as source:
        assert source.metadata["DigitalSourceType"] == SYNTHETIC and SYNTHETIC in source.metadata["comment"]
    assert len(load_video(path)) == 3, "the XMP box must not disturb a player"
    boxes, data = {}, path.read_bytes()
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        boxes[data[at + 4 : at + 8]] = data[at + 8 : at + size]
        at += size
    assert at == len(data) and SYNTHETIC.encode() in boxes[b"uuid"]
    assert SYNTHETIC.encode() not in write(tmp_path / "r.mp4", smooth_frames(3)).read_bytes()


def test_a_full_disk_leaves_the_earlier_file_alone(tmp_path, monkeypatch):
    import errno

    path = write(tmp_path / "a.mp4", [numbered(1)] * 3)
    before = path.read_bytes()
    for call in (1, 40):  # while frames are encoded, and while the file is closed
        writer = VideoWriter(path, SIDE, SIDE, 25)
        with pytest.raises(StageError, match="No space left"):
            with writer:
                real, calls = writer._container, []

                class Full:
                    def mux(self, packet):
                        calls.append(packet)
                        if len(calls) >= call:
                            raise OSError(errno.ENOSPC, "No space left on device")
                        real.mux(packet)

                    def close(self):
                        real.close()
                        if call > 1:
                            raise OSError(errno.ENOSPC, "No space left on device")

                monkeypatch.setattr(writer, "_container", Full())
                for i in range(80 if call == 1 else 5):
                    writer.write(numbered(i % 24))
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_an_exception_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        with VideoWriter(tmp_path / "a.mp4", SIDE, SIDE, 25) as writer:
            writer.write(numbered(1))
            raise KeyError("stop")
    assert not list(tmp_path.iterdir())


def test_wrong_sizes_and_wrong_sound_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="even"):
        VideoWriter(tmp_path / "a.mp4", 63, 64, 25)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(InputError, match="empty.wav"):
        write(tmp_path / "a.mp4", [numbered(1)], audio=tmp_path / "empty.wav")
    with pytest.raises(ValueError, match="shape"):
        write(tmp_path / "a.mp4", [numbered(1), np.zeros((8, 8, 3), np.uint8)])
    assert not (tmp_path / "a.mp4").exists()


def test_bad_input_gets_one_sentence_with_its_name(tmp_path):
    import soundfile

    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "text.txt").write_text("this is no video\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20000))
    whole = write(tmp_path / "whole.mp4", smooth_frames(20)).read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[-len(whole) // 2 :])
    soundfile.write(tmp_path / "sound.wav", np.zeros(800), 8000)
    for name in ("empty.mp4", "text.mp4", "text.txt", "noise.mp4", "headless.mp4", "sound.wav", "missing.mp4", ""):
        for read in (probe, lambda p: list(read_frames(p, 25))):
            with pytest.raises(InputError) as raised:
                read(tmp_path / name)
            message = str(raised.value)
            assert (name or tmp_path.name) in message and "\n" not in message and ";" in message, message


def test_a_truncated_file_gives_what_it_still_holds(tmp_path):
    rng = np.random.default_rng(0)
    whole = write(tmp_path / "a.mp4", (rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(50))).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.warns(UserWarning, match="cut.mp4") if _complains(tmp_path / "cut.mp4") else _nothing():
        count = sum(1 for _ in read_frames(tmp_path / "cut.mp4", 25))
    assert 10 < count < 50


def _complains(path):
    import warnings

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        list(read_frames(path))
    return bool(seen)


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_odd_sizes_and_wide_pixels_are_read(tmp_path):
    for size, sar, want in (("63x49", "1", (49, 63)), ("64x48", "2", (48, 128))):
        ffmpeg("-f", "lavfi", "-i", f"testsrc=size={size}:rate=25:duration=0.2", "-vf", f"setsar={sar}", "-pix_fmt", "yuv444p", tmp_path / "o.mp4")
        assert load_video(tmp_path / "o.mp4").shape[1:3] == want


def test_crops_are_antialiased_squares_with_edges_repeated():
    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    assert np.array_equal(crop_square(frame, 10, 20, 50, 50), frame[20:70, 10:60])
    assert np.abs(crop_square(frame, 0, 0, 80, 40).astype(float) - frame[:80, :80].reshape(40, 2, 40, 2, 3).mean((1, 3))).max() <= 1
    outside = crop_square(frame, -10, -5, 60, 60)
    assert np.array_equal(outside[5:, 10:], frame[:55, :50]) and (outside[5:, :10] == frame[:55, :1]).all()
    with pytest.raises(ValueError, match="outside"):
        crop_square(frame, 500, 0, 50, 50)


@pytest.mark.footage
def test_real_clips_keep_their_frames_and_sound(footage):
    clip = sorted((footage / "grid_s1" / "mpg").glob("*.mpg"))[0]
    info = probe(clip)
    assert (info.width, info.height, info.fps) == (360, 288, 25.0)
    assert sum(1 for _ in read_frames(clip, 25)) == sum(1 for _ in read_frames(clip)) == info.frames == 75
    assert abs(len(read_audio_track(clip)) / 48000 - 3) < 0.1


def test_picked_frames_are_those_of_a_full_read_and_stop_at_the_last(tmp_path):
    path = tmp_path / "n.mp4"
    with VideoWriter(path, SIDE, SIDE, 25) as writer:
        for i in range(20):
            writer.write(numbered(i))
    everything = load_video(path)
    for wanted in ([3, 17], {5}, range(20), []):
        found = dict(picked_frames(path, wanted))
        assert list(found) == sorted(wanted) and all((found[i] == everything[i]).all() for i in found)
    assert next(picked_frames(path, [4], grey=True))[1].shape == (SIDE, SIDE)
    assert list(picked_frames(path, [25])) == []


@pytest.mark.parametrize("sound", [1.0, 4.0])
def test_the_length_of_a_picture_is_its_own_where_the_container_tells_that_of_everything(tmp_path, sound):
    tone = np.sin(np.arange(int(48000 * sound)) * 0.05)
    with VideoWriter(tmp_path / "a.mp4", 64, 64, 25) as writer:
        for i in range(50):
            writer.write(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    import soundfile

    soundfile.write(tmp_path / "a.wav", tone, 48000)
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.mp4", "-i", tmp_path / "a.wav", "-c:v", "copy", "-c:a", "libopus", tmp_path / "a.mkv"], check=True)
    assert abs(probe(tmp_path / "a.mkv").duration - 2.0) < 0.1
    half = tmp_path / "half.mkv"
    half.write_bytes((tmp_path / "a.mkv").read_bytes()[: (tmp_path / "a.mkv").stat().st_size // 2])
    assert probe(half).duration > 1.9, "a file that was cut short declares what is missing"
