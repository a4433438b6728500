"""fit: crops, resumption, bad footage, and one real chain."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recon import fit as fit_module
from recon.config import FitConfig
from recon.fit import choose_crop, fit_subject
from recon.subject import Subject
from render.files import InputError, StageError
from render.threads import prefetched
from render.video import VideoWriter, load_video, probe


def face_points(x: float, y: float, size: float, frames: int = 20) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, (1, 478, 2)) * size + np.array([x, y]) + rng.normal(size=(frames, 1, 2))


def write_clip(path: Path, frames: int, width: int = 96, height: int = 80, picture: np.ndarray | None = None, fps: float = 25) -> Path:
    rng = np.random.default_rng(1)
    with VideoWriter(path, width, height, fps) as writer:
        for _ in range(frames):
            writer.write(picture if picture is not None else rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("width,height,x,y,size", [(1920, 1080, 960, 400, 300), (360, 288, 180, 150, 110), (1080, 1920, 300, 500, 500), (640, 480, 20, 30, 200)])
def test_crop_stays_inside_holds_the_face_and_follows_scale(width, height, x, y, size):
    points, valid = face_points(x, y, size), np.ones(20, bool)
    left, top, side = choose_crop(points, valid, width, height, 2.3)
    assert left >= 0 and top >= 0 and left + side <= width and top + side <= height
    middle = np.clip(np.median(points.reshape(-1, 2), 0), 0, [width, height])
    assert left <= middle[0] <= left + side and top <= middle[1] <= top + side
    twice = choose_crop(points * 2, valid, width * 2, height * 2, 2.3)
    assert np.abs(np.array(twice) - 2 * np.array([left, top, side])).max() <= 3


def test_a_square_portrait_is_kept_whole():
    assert choose_crop(face_points(225, 200, 240), np.ones(20, bool), 450, 450, 2.3) == (0, 0, 450)


def test_prefetching_keeps_order_hands_over_errors_and_stops():
    assert list(prefetched(range(50), 3)) == list(range(50))

    def broken():
        yield 1
        raise InputError("broken in the middle")

    with pytest.raises(InputError, match="in the middle"):
        list(prefetched(broken()))
    endless = prefetched(iter(int, 1), 2)
    assert next(endless) == 0
    endless.close()  # must not hang


def test_bad_footage_is_one_sentence_and_leaves_no_subject(tmp_path):
    out = tmp_path / "me"
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    cases = [(tmp_path / "none.mp4", "does not exist"), (empty, "empty"), (write_clip(tmp_path / "one.mp4", 1), "1 frame"),
             (write_clip(tmp_path / "noise.mp4", 14), "no face")]
    for clip, words in cases:
        with pytest.raises(InputError) as caught:
            fit_subject([clip], out)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert not (out / "subject.json").exists() and not (out / "video.mp4").exists()
    with pytest.raises(InputError, match="is a file"):
        fit_subject([cases[-1][0]], cases[-1][0])
    with pytest.raises(InputError, match="--size"):
        FitConfig(size=33)


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory) -> Path:
    """A second of the built-in subject."""
    from recon.assets import asset

    frames = load_video(asset("demo/video.mp4"))[:24]
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    tone = (0.2 * np.sin(np.arange(48000) * 0.05)).astype(np.float32)
    with VideoWriter(path, frames.shape[2], frames.shape[1], 25, audio=(tone, 48000)) as writer:
        for frame in frames:
            writer.write(frame)
    return path


CONFIG = FitConfig(size=128, shape_components=20, keyframes=12)


def test_a_fit_is_whole_resumes_where_it_was_killed_and_is_reused(short_clip, tmp_path, monkeypatch):
    out = tmp_path / "me"
    monkeypatch.setattr(fit_module, "_solve", lambda work: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fit_subject([short_clip], out, CONFIG)
    with pytest.raises(InputError, match="not a finished subject"):
        Subject.open(out)
    monkeypatch.undo()
    monkeypatch.setattr(fit_module, "load_detector", lambda name: pytest.fail("landmarks were already found"))
    report = fit_subject([short_clip], out, CONFIG)
    subject = Subject.open(out)
    assert set(report) >= {"frames", "valid_fraction", "landmark_error_px", "landmark_error_iod", "focal_px", "detect_fps", "solve_fps", "fit_fps"}
    assert report["frames"] == 24 == len(subject.track) and report["valid_fraction"] == 1 and report["landmark_error_iod"] < 0.03
    assert probe(subject.video_path).frames == 24 == probe(subject.matte_path).frames and probe(subject.video_path).width == 128
    import soundfile

    assert soundfile.info(subject.audio_path).frames == 24 * 1920 and subject.has_audio
    assert subject.track.camera.width == 128 and (out / "overlay.mp4").exists() and (out / "curves.png").exists() and not (out / ".fit").exists()
    with np.load(subject.landmarks_path) as data:
        assert data["points"].shape == (24, 478, 2) and data["valid"].all()
    before = subject.video_path.stat().st_mtime_ns
    assert fit_subject([short_clip], out, CONFIG) == report and subject.video_path.stat().st_mtime_ns == before


def test_an_earlier_subject_survives_a_failed_refit(short_clip, tmp_path, monkeypatch):
    out = tmp_path / "me"
    config = FitConfig(size=64, shape_components=5, keyframes=6, overlay=False)
    fit_subject([short_clip], out, config)
    content = (out / "track.npz").read_bytes()

    def full(*_, **__):
        raise StageError("cannot write: no space left on device; free some space")

    monkeypatch.setattr(fit_module, "_write_picture", full)
    with pytest.raises(StageError, match="no space"):
        fit_subject([short_clip], out, FitConfig(size=80, shape_components=5, keyframes=6, overlay=False))
    assert (out / "track.npz").read_bytes() == content and Subject.open(out).track.camera.width == 64


def test_a_file_that_was_cut_short_is_fitted_as_far_as_it_goes_and_says_so(short_clip, tmp_path, capsys, monkeypatch):
    from itertools import islice

    from recon.assets import asset
    from recon.doctor import diagnose
    from render.video import read_frames

    monkeypatch.setenv("THNERF_QUIET", "0")
    half = tmp_path / "half.mp4"
    with VideoWriter(half, 256, 256, 25) as writer:
        for frame in islice(read_frames(asset("demo/video.mp4")), 75):
            writer.write(frame)
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])  # its index stands at the beginning and knows of 75 frames
    report = fit_subject([half], tmp_path / "me", FitConfig(size=64, shape_components=5, keyframes=6, overlay=False))
    assert 11 <= report["frames"] < 60
    said = f"only {report['frames'] / 25:.1f} of 3.0 s could be decoded"
    assert any(said in note and "copy the file again" in note for note in report["notes"]) and said in capsys.readouterr().err
    findings = {f["name"]: f for f in report["findings"]}
    assert said in findings["whole file"]["value"] and findings["length"]["value"] == f"{report['frames'] / 25:.1f} s"
    looked = diagnose(half)
    assert looked.verdict == "warn" and "could be decoded" in looked.text()
    assert not any(f.name == "whole file" for f in diagnose(short_clip).findings)


def test_consent_and_pictures_are_added_to_a_finished_subject_without_fitting_again(short_clip, tmp_path, monkeypatch):
    config = FitConfig(size=64, shape_components=5, keyframes=6, overlay=False)
    out = tmp_path / "me"
    fit_subject([short_clip], out, config)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "subject.json"}
    monkeypatch.setattr(fit_module, "_detect", lambda work: pytest.fail("fitted again"))
    fit_subject([short_clip], out, replace(config, consent="signed on paper"))
    assert Subject.open(out).info["consent"] == "signed on paper"
    fit_subject([short_clip], out, config)
    assert Subject.open(out).info["consent"] == "signed on paper", "a call without a note takes none away"
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "subject.json"}
    fit_subject([short_clip], out, replace(config, overlay=True))
    assert all((out / name).exists() for name in ("overlay.mp4", "curves.png", "report.html"))
    # fits from before the note and the pictures were left out of the fingerprint stay valid, and keep theirs for the runs trained on them
    earlier = fit_module._fingerprint((short_clip,), config, consent="yes", overlay=False)
    info = Subject.open(out).info
    (out / "subject.json").write_text(json.dumps({**info, "fingerprint": earlier, "config": {**info["config"], "consent": "yes", "overlay": False}}))
    fit_subject([short_clip], out, replace(config, consent="no"))
    assert Subject.open(out).fingerprint == earlier != info["fingerprint"] and Subject.open(out).info["consent"] == "no"
    fit_subject([short_clip], out, replace(config, consent="maybe"))
    assert Subject.open(out).info["consent"] == "maybe"


def test_a_model_that_cannot_be_read_is_refused_before_anything_is_detected(short_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "load_detector", lambda name: pytest.fail("looked at the footage first"))
    (tmp_path / "bad.npz").write_bytes(b"no model")
    for model in ("missing.npz", "bad.npz"):
        with pytest.raises(InputError, match=model):
            fit_subject([short_clip], tmp_path / "me", FitConfig(model=str(tmp_path / model)))
    with pytest.raises(InputError, match="--shape-components must lie between 0 and"):
        fit_subject([short_clip], tmp_path / "me", FitConfig(shape_components=9999))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another place"):
        fit_subject([short_clip], tmp_path / "file" / "me")


def test_two_clips_become_one_subject(short_clip, tmp_path):
    other = tmp_path / "b.mp4"
    os.link(short_clip, other)
    report = fit_subject([short_clip, other], tmp_path / "me", FitConfig(size=64, shape_components=5, keyframes=6, overlay=False))
    subject = Subject.open(tmp_path / "me")
    assert report["frames"] == 48 and subject.track.clip_starts == (0, 24)
    assert [(c["start"], c["end"]) for c in subject.info["clips"]] == [(0, 24), (24, 48)]
    assert subject.info["split"] == {"train": [[0, 24]], "test": [[24, 48]]}
    first, second = subject.track[:24], subject.track[24:]
    assert np.allclose(first.expression, second.expression, atol=1e-3) and np.allclose(first.translation, second.translation, atol=0.1)
    json.dumps(subject.info)


@pytest.mark.slow
def test_the_demo_fit_agrees_with_its_ground_truth(tmp_path):
    from recon.assets import asset
    from recon.track import Track
    from render.rotations import angle_between

    fit_subject([asset("demo/video.mp4")], tmp_path / "me", FitConfig(overlay=False))
    found, truth = Subject.open(tmp_path / "me").track, Track.load(asset("demo/track.npz"))
    assert len(found) == len(truth)
    assert np.degrees(np.median(angle_between(found.rotation, truth.rotation))) < 2.0
    for name, least in (("jawOpen", 0.88), ("eyeBlinkLeft", 0.9), ("eyeBlinkRight", 0.9)):
        assert np.corrcoef(found.column(name), truth.column(name))[0, 1] > least
