"""Evaluation of renderers whose answer is known: perfect, late, frozen, shifted; on a drawn face with drawn landmarks."""

import json

import numpy as np
import pytest

from recon.landmarks import Landmarks
from recon.subject import Subject, write_subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.video import VideoWriter, load_video, probe
from thnerf import evaluate as module
from thnerf.evaluate import evaluate_with, shuffled_index
from thnerf.metrics import IMAGE_KEYS, KEYS, SETTINGS, format_table

SIZE, FPS = 96, 25.0
NAMES = ("browInnerUp", "jawOpen", "mouthPucker")


def draw(opening: float, dx: int = 0) -> np.ndarray:
    """A face of blocks; the mouth is `opening` px high, and marked so that `BlockDetector` reads it back."""
    image = np.full((SIZE, SIZE, 3), 110, np.uint8)
    image[20:24, 24 + dx : 72 + dx] = 30
    height = int(round(opening))
    image[60 : 60 + height, 36 + dx : 60 + dx] = (200, 40, 40)
    image[:, :2] = np.linspace(0, 255, SIZE).astype(np.uint8)[:, None, None]
    return image


class BlockDetector:
    """Finds the drawn face: eyes at the bar's ends, lips around the red block."""

    def detect(self, frames) -> Landmarks:
        points = [self.one(f) for f in frames]
        valid = np.array([p is not None for p in points], bool)
        filled = [p if p is not None else np.full((68, 2), np.nan) for p in points]
        return Landmarks(np.array(filled, np.float32), valid, valid.astype(int))

    def one(self, frame):
        bar = np.flatnonzero(frame[22, 3:].mean(-1) < 70) + 3
        if not len(bar):
            return None
        column = frame[60:90, int(bar.mean())].astype(int)
        opening = int(((column[:, 0] - column[:, 1]) > 80).sum())
        left, right = bar[0], bar[-1] + 1
        points = np.stack([np.linspace(left, right, 68), np.linspace(18, 85, 68)], 1)
        points[[36, 45]] = (left, 22), (right, 22)
        points[48:68] = np.stack([np.linspace(left + 10, right - 10, 20), np.full(20, 60.0)], 1)
        points[[61, 62, 63], 1], points[[67, 66, 65], 1] = 60, 60 + opening
        for upper, lower in ((61, 67), (62, 66), (63, 65)):
            points[lower, 0] = points[upper, 0]
        return points


class Drawn:
    """Renders what a track says: jawOpen is the mouth's height in px; late by some frames, moved sideways, or blank."""

    def __init__(self, late=0, dx=0, blank=False):
        self.late, self.dx, self.blank = late, dx, blank

    def frame(self, track, index, background=None):
        if self.blank:
            return np.full((SIZE, SIZE, 3), 0.5, np.float32)
        return draw(track.column("jawOpen")[max(0, index - self.late)], self.dx).astype(np.float32) / 255


class Exact(Drawn):
    """Returns the decoded footage itself."""

    def __init__(self, frames):
        super().__init__()
        self.frames = frames

    def frame(self, track, index, background=None):
        return self.frames[index].astype(np.float32) / 255


def talk(frames, seed):
    rng = np.random.default_rng(seed)
    return np.clip(np.convolve(rng.normal(size=frames + 8), np.hanning(9), "valid") * 4 + 9, 0, 24)


def make_subject(path, clips=(220,), test=1, sound=True) -> Subject:
    frames = sum(clips)
    motion = np.concatenate([talk(n, 5 + i) for i, n in enumerate(clips)])
    starts = tuple(np.cumsum([0, *clips[:-1]]).tolist())
    samples = np.random.default_rng(0).normal(0, 0.1, int(frames / FPS * 16000)).astype(np.float32)
    with VideoWriter(path / "video.mp4", SIZE, SIZE, FPS, crf=6) as writer:
        for opening in motion:
            writer.write(draw(opening))
    if sound:
        import soundfile

        soundfile.write(path / "audio.wav", samples, 16000)
    expression = np.zeros((frames, 3), np.float32)
    expression[:, 1] = motion
    Track(
        fps=FPS, model_id="test", camera=Camera.simple(200, SIZE, SIZE, frames), shape=np.zeros(2), expression=expression, rotation=np.zeros((frames, 3)),
        translation=np.zeros((frames, 3)), gaze=np.zeros((frames, 2, 2)), torso=np.zeros((frames, 4)), valid=np.ones(frames, bool),
        expression_names=NAMES, clip_starts=starts).save(path / "track.npz")
    for name in ("matte.mp4", "background.png"):
        (path / name).write_bytes(b"-")
    bounds = [*starts, frames]
    ranges = [[a, b] for a, b in zip(bounds, bounds[1:])]
    split = {"train": ranges[:-test], "test": ranges[-test:]} if len(clips) > 1 else {"train": [[0, frames - 60]], "test": [[frames - 60, frames]]}
    write_subject(path, {"clips": [], "split": split, "has_audio": sound})
    return Subject.open(path)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("subject"))


def predictor(subject):
    """A speech network that is right but one frame late."""
    test = subject.frames("test")

    def predict(samples, rate, frames):
        assert len(samples) / rate == pytest.approx(frames / FPS, abs=1e-3)
        return subject.track.expression[np.maximum(test[:frames] - 1, test[0])]

    return predict


def test_perfect_renderer(subject, tmp_path):
    frames = load_video(subject.video_path)[subject.frames("test")]
    result = evaluate_with(subject, tmp_path / "run", Exact(frames), BlockDetector(), predictor(subject))
    for setting in ("truth", "reconstruct"):
        block = result[setting]
        assert [block[k] for k in IMAGE_KEYS[:3]] == [None] * 3 and block["ssim_full"] == pytest.approx(1)
        assert block["mouth_correlation"] == pytest.approx(1) and block["av_offset_frames"] == 0 and block["lmd_px"] == 0
    assert result["frames"] == 60 and result["size"] == [SIZE, SIZE] and result["split"]["test"] == [[160, 220]]


def test_every_setting_measures_what_it_says(subject, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    subject.track.replace(meta={"fit": subject.fingerprint}).save(run / "track.npz")
    result = evaluate_with(subject, run, Drawn(), BlockDetector(), predictor(subject))
    assert all(set(KEYS) <= set(result[s]) for s in SETTINGS)
    assert result["reconstruct"]["psnr_full"] > 30 and result["reconstruct"]["mouth_correlation"] > 0.99
    assert result["audio"]["av_offset_frames"] == 1 and 0.3 < result["audio"]["mouth_correlation"] < 0.999
    assert result["frozen_mouth"]["mouth_correlation"] == 0 and result["frozen_mouth"]["mouth_amplitude"] < 1e-4 and result["frozen_mouth"]["av_offset_frames"] is None
    assert abs(result["shuffled"]["mouth_correlation"]) < 0.7 and result["shuffled"]["lmd_px"] > result["audio"]["lmd_px"] * 0.5
    assert result["frozen_mouth"]["psnr_mouth"] < result["audio"]["psnr_mouth"] < result["reconstruct"]["psnr_mouth"]


@pytest.mark.parametrize("late", [2, 5])
def test_late_renderer_has_that_offset(subject, tmp_path, late):
    result = evaluate_with(subject, tmp_path / "run", Drawn(late=late), BlockDetector(), None, "no sound")
    assert result["reconstruct"]["av_offset_frames"] == late


def test_shifted_renderer_moves_the_picture_but_not_the_lips(subject, tmp_path):
    result = evaluate_with(subject, tmp_path / "run", Drawn(dx=3), BlockDetector(), None, "no sound")
    assert result["reconstruct"]["lmd_px"] == pytest.approx(0, abs=0.2) and result["reconstruct"]["psnr_face"] < 30


def test_renders_without_a_face_are_counted(subject, tmp_path):
    block = evaluate_with(subject, tmp_path / "run", Drawn(blank=True), BlockDetector(), None, "no sound")["reconstruct"]
    assert block["landmark_frames"] == 0 and block["lmd_px"] is None and block["mouth_correlation"] is None
    assert block["box_frames"] == 60 and block["psnr_face"] < 20


def test_files(subject, tmp_path):
    result = evaluate_with(subject, tmp_path / "run", Drawn(), BlockDetector(), predictor(subject), max_frames=40)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == json.loads(json.dumps(result))
    info = probe(tmp_path / "run/evaluation.mp4")
    assert (info.width, info.height, info.has_audio) == (3 * SIZE, SIZE + module.BAND, True)
    assert len(load_video(tmp_path / "run/evaluation.mp4")) == 40 == result["frames"]
    assert (tmp_path / "run/evaluation.png").stat().st_size > 5000


def test_without_sound_audio_is_null_and_says_why(tmp_path):
    silent = make_subject(tmp_path, sound=False)
    predict, reason = module.speech_predictor(silent, tmp_path)
    assert predict is None
    result = evaluate_with(silent, tmp_path / "runs/default", Drawn(), BlockDetector(), predict, reason, max_frames=10)
    assert result["audio"] is None and "no sound" in result["notes"]["audio"]
    assert probe(tmp_path / "runs/default/evaluation.mp4").width == 2 * SIZE


def test_a_run_without_a_speech_network_is_still_measured(subject, tmp_path):
    def predict(samples, rate, frames):
        raise InputError("this run has no speech network")

    result = evaluate_with(subject, tmp_path / "run", Drawn(), BlockDetector(), predict, max_frames=10)
    assert result["audio"] is None and "no speech network" in result["notes"]["audio"] and result["reconstruct"]["psnr_full"] > 30


def test_clips_are_scored_apart(tmp_path):
    """A render that is late within each clip; the pairs and second differences never span two clips."""
    several = make_subject(tmp_path, clips=(50, 60, 50, 70), test=2)
    bounds = []

    class LateInClip(Drawn):
        def frame(self, track, index, background=None):
            bounds.append(track.clip_starts)
            start = max(s for s in track.clip_starts if s <= index)
            return super().frame(track, max(start, index - 3))

    result = evaluate_with(several, tmp_path / "runs/default", LateInClip(), BlockDetector(), None, "no")
    assert result["reconstruct"]["av_offset_frames"] == 3 and result["clips"] == 2 and set(bounds) == {(0, 50)}


def test_shuffled_frames_come_from_elsewhere(tmp_path, subject):
    index = shuffled_index(subject, [(160, 220)])
    assert len(index) == 60 and index.max() < 160 and (np.diff(index) == 1).all()
    (tmp_path / "several").mkdir()
    several = make_subject(tmp_path / "several", clips=(50, 60, 50, 70), test=2)
    index = shuffled_index(several, [(110, 160), (160, 230)])
    assert (index[:50] >= 160).all() and ((110 <= index[50:]) & (index[50:] < 160)).all()
    np.testing.assert_array_equal(index[100:], 159)
    assert set(shuffled_index(several, [(160, 230)])) <= set(range(50, 160))


def test_frames_at_any_order(subject):
    frames = load_video(subject.video_path)
    order = np.array([3, 4, 4, 9, 2, 0])
    np.testing.assert_array_equal(np.stack(list(module.frames_at(subject.video_path, order))), frames[order])
    with pytest.raises(InputError, match="only 220 frames"):
        list(module.frames_at(subject.video_path, np.array([500])))


def test_an_interruption_keeps_the_earlier_results(subject, tmp_path):
    (tmp_path / "metrics.json").write_text("earlier")

    class Stops(Drawn):
        def frame(self, track, index, background=None):
            if index == 45:
                raise KeyboardInterrupt
            return super().frame(track, index)

    with pytest.raises(KeyboardInterrupt):
        evaluate_with(subject, tmp_path, Stops(), BlockDetector(), None, "no")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"] and (tmp_path / "metrics.json").read_text() == "earlier"


def test_no_test_frames_is_an_input_error(subject, tmp_path, monkeypatch):
    monkeypatch.setitem(subject.info["split"], "test", [])
    with pytest.raises(InputError, match="no held-out frames"):
        evaluate_with(subject, tmp_path, Drawn(), BlockDetector(), None, "no")


def test_landmarks_are_found_by_fits_detector(subject, monkeypatch):
    assert module.fit_detector(subject) == "mediapipe"
    for name, expected in (("face-alignment", "face-alignment"), ("points.npz", "mediapipe")):
        monkeypatch.setitem(subject.info, "config", {"detector": name})
        assert module.fit_detector(subject) == expected


def test_lpips_is_measured_where_it_is_asked_for(subject, tmp_path):
    """A stand-in that counts the pixels of the face box that differ."""

    class Share:
        name = "AlexNet"

        def measure(self, truth, images, box):
            left, top, right, bottom = box
            return [float((truth != image)[top:bottom, left:right].any(-1).mean()) for image in images]

    frames = load_video(subject.video_path)[subject.frames("test")]
    result = evaluate_with(subject, tmp_path, Exact(frames), BlockDetector(), None, "no", max_frames=20, lpips=Share())
    assert result["truth"]["lpips"] == result["reconstruct"]["lpips"] == 0 < result["shuffled"]["lpips"] <= 1
    assert result["notes"]["lpips"] == "of the face box, with AlexNet" and "LPIPS" in format_table(result)
    (tmp_path / "config.yaml").write_text("lpips: weights\nlpips_weight: 0.05\n")
    again = evaluate_with(subject, tmp_path, Drawn(dx=3), BlockDetector(), None, "no", max_frames=20, lpips=Share())
    assert 0 < again["reconstruct"]["lpips"] <= 1 and "trained to lower LPIPS" in again["notes"]["lpips"]
    unasked = evaluate_with(subject, tmp_path, Drawn(), BlockDetector(), None, "no", max_frames=5)
    assert not any("lpips" in (unasked[s] or {}) for s in SETTINGS) and "lpips" not in unasked["notes"] and "LPIPS" not in format_table(unasked)


def test_a_refit_after_training_is_noticed(subject, tmp_path):
    import os

    weights = tmp_path / "field.safetensors"
    weights.write_bytes(b"-")
    assert module.stale_run(subject, tmp_path) == "" == module.stale_run(subject, tmp_path / "nothing")
    hour_ago = subject.track_path.stat().st_mtime - 3600
    os.utime(weights, (hour_ago, hour_ago))
    result = evaluate_with(subject, tmp_path, Drawn(), BlockDetector(), None, "no", max_frames=5)
    assert "train it again" in result["notes"]["run"] and "warning: the subject was fitted again" in format_table(result)
