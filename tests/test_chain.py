"""The chain end to end through the command line, on a piece of the demo subject and on real footage."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recon.assets import asset
from recon.subject import Subject
from recon.track import Track
from render.encode import VideoWriter
from render.video import load_video, probe, read_audio_track
from thnerf.cli import main

pytestmark = pytest.mark.slow


def thnerf(*arguments):
    """Run a command in this process; its exit code."""
    return main([str(a) for a in arguments])


def cut(source, out, start, seconds, sound=True):
    """Re-encode a part of a clip."""
    info = probe(source)
    first, count = round(start * info.fps), round(seconds * info.fps)
    frames = load_video(source)[first : first + count]
    samples = read_audio_track(source, 48000) if sound else None
    audio = (samples[round(start * 48000) : round((start + seconds) * 48000)], 48000) if samples is not None else None
    with VideoWriter(out, frames.shape[2], frames.shape[1], info.fps, audio=audio) as writer:
        for frame in frames:
            writer.write(frame)
    return out


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """Six seconds of the demo subject, fitted and trained for 400 steps."""
    folder = tmp_path_factory.mktemp("chain")
    clip = cut(asset("demo/video.mp4"), folder / "clip.mp4", 0, 6)
    assert thnerf("fit", clip, "--out", folder / "me") == 0
    assert thnerf("train", folder / "me", "--steps", "400", "--minutes", "2") == 0
    return folder / "me"


def test_fit_writes_the_whole_subject_folder_and_its_figures(subject):
    fit = json.loads((subject / "fit.json").read_text())
    assert {"frames", "valid_fraction", "landmark_error_px", "landmark_error_iod", "focal_px", "detect_fps", "solve_fps", "fit_fps"} <= set(fit)
    opened = Subject.open(subject)
    frames = len(opened.track)
    assert frames == fit["frames"] == 150 and fit["valid_fraction"] > 0.99
    assert len(load_video(opened.video_path)) == len(load_video(opened.matte_path)) == frames
    assert abs(len(_wav(opened.audio_path)) / 48000 - frames / 25) < 1e-3
    assert (subject / "overlay.mp4").exists() and (subject / "curves.png").exists()
    assert opened.info["split"]["test"] == [[136, 150]]


def _wav(path):
    import soundfile

    return soundfile.read(path)[0]


def test_fit_agrees_with_the_exact_track(subject):
    from thnerf.demo import compare_tracks

    report = compare_tracks(Subject.open(subject).track, Track.load(asset("demo/track.npz"))[0:150])
    assert report["rotation_error_deg"] < 2
    assert report["correlation"]["jawOpen"] > 0.9


def test_a_finished_fit_is_not_done_again(subject):
    before = (subject / "track.npz").stat().st_mtime_ns
    assert thnerf("fit", subject.parent / "clip.mp4", "--out", subject) == 0
    assert (subject / "track.npz").stat().st_mtime_ns == before


def test_render_is_as_long_as_the_sound_and_says_that_it_is_synthetic(subject, tmp_path):
    out = tmp_path / "speech.mp4"
    assert thnerf("render", subject, "--audio", asset("demo/unseen.wav"), "-o", out) == 0
    info = probe(out)
    length = len(_wav(asset("demo/unseen.wav"))) / _rate(asset("demo/unseen.wav"))
    assert abs(info.frames - length * 25) <= 1 and info.has_audio
    assert b"trainedAlgorithmicMedia" in out.read_bytes()
    frames = load_video(out)
    assert frames.std() > 20 and np.abs(np.diff(frames[:50].astype(int), axis=0)).mean() > 0.05


def _rate(path):
    import soundfile

    return soundfile.info(path).samplerate


@pytest.mark.parametrize("pose", ["source", "still"])
def test_pose_choices_render(subject, tmp_path, pose):
    sound = tmp_path / "second.wav"
    import soundfile

    soundfile.write(sound, np.zeros(16000), 16000)
    assert thnerf("render", subject, "--audio", sound, "-o", tmp_path / "x.mp4", "--pose", pose) == 0
    assert probe(tmp_path / "x.mp4").frames == 25


def test_a_track_of_another_model_is_refused(subject, tmp_path, capfd):
    Track.load(subject / "track.npz").replace(model_id="other").save(tmp_path / "other.npz")
    assert thnerf("render", subject, "--audio", asset("demo/unseen.wav"), "-o", tmp_path / "x.mp4", "--pose", tmp_path / "other.npz") == 2
    assert "other" in capfd.readouterr().err and not (tmp_path / "x.mp4").exists()


def test_evaluate_measures_every_row(subject):
    assert thnerf("evaluate", subject) == 0
    metrics = json.loads((subject / "runs/default/metrics.json").read_text())
    keys = {f"{m}_{r}" for m in ("psnr", "ssim") for r in ("full", "face", "mouth")} | {"lmd_px", "lmd_iod", "mouth_correlation", "jitter_ratio", "av_offset_frames"}
    for row in ("truth", "reconstruct", "audio", "frozen_mouth", "shuffled"):
        assert keys <= set(metrics[row])
    assert metrics["truth"]["psnr_full"] is None and metrics["truth"]["ssim_full"] > 0.999
    assert metrics["reconstruct"]["psnr_full"] > 22
    assert metrics["reconstruct"]["psnr_full"] > metrics["shuffled"]["psnr_full"]
    assert (subject / "runs/default/evaluation.mp4").exists()


def test_exports_of_footage_and_of_speech(subject, tmp_path):
    assert thnerf("export", subject, "--to", "livelink", "-o", tmp_path / "me.csv") == 0
    assert len((tmp_path / "me.csv").read_text().splitlines()) == 151
    assert thnerf("export", subject, "--audio", asset("demo/unseen.wav"), "--to", "json", "-o", tmp_path / "s.json") == 0
    json.loads((tmp_path / "s.json").read_text())


def test_a_truncated_checkpoint_says_so(subject, tmp_path, capfd):
    import shutil

    copy = tmp_path / "me"
    shutil.copytree(subject, copy)
    checkpoint = copy / "runs/default/field.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert thnerf("render", copy, "--audio", asset("demo/unseen.wav"), "-o", tmp_path / "x.mp4") == 2
    assert "field.safetensors" in capfd.readouterr().err and not (tmp_path / "x.mp4").exists()


def test_training_survives_kill_and_resumes(subject, tmp_path):
    import shutil

    copy = tmp_path / "me"
    shutil.copytree(subject, copy)
    shutil.rmtree(copy / "runs")
    command = [sys.executable, "-m", "thnerf.cli", "train", str(copy), "--minutes", "0.5", "--save-seconds", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = copy / "runs/default"
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None and not list(state.glob("state*.safetensors")):
        time.sleep(0.2)
    assert list(state.glob("state*.safetensors")), "no state was saved within a minute"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resum" in done.stderr.lower()
    assert (state / "field.safetensors").exists()


def test_video_without_sound_fits_and_trains_but_cannot_speak(tmp_path, capfd):
    clip = cut(asset("demo/video.mp4"), tmp_path / "mute.mp4", 3, 2, sound=False)
    assert thnerf("fit", clip, "--out", tmp_path / "me") == 0
    assert thnerf("train", tmp_path / "me", "--steps", "20") == 0
    assert "sound" in capfd.readouterr().err
    assert thnerf("render", tmp_path / "me", "--audio", asset("demo/unseen.wav"), "-o", tmp_path / "x.mp4") == 2
    assert not (tmp_path / "x.mp4").exists()


def test_clips_that_no_face_can_be_tracked_in(tmp_path, capfd):
    plain = np.full((40, 96, 96, 3), 90, np.uint8)
    for name, frames in {"faceless": plain, "single": load_video(asset("demo/video.mp4"))[:1]}.items():
        with VideoWriter(tmp_path / f"{name}.mp4", frames.shape[2], frames.shape[1], 25) as writer:
            for frame in frames:
                writer.write(frame)
        assert thnerf("fit", tmp_path / f"{name}.mp4", "--out", tmp_path / name) == 2
        assert len([x for x in capfd.readouterr().err.splitlines() if x.startswith("thnerf: ")]) == 1
        assert not (tmp_path / name / "subject.json").exists()


def test_two_faces_and_a_face_that_leaves(tmp_path, capfd):
    frames = load_video(asset("demo/video.mp4"))[:60]
    wide = np.zeros((60, 256, 448, 3), np.uint8)
    wide[:, :, :256] = frames
    wide[:, 64:192, 288:416] = frames[:, ::2, ::2]
    wide[30:40] = 40
    with VideoWriter(tmp_path / "two.mp4", 448, 256, 25) as writer:
        for frame in wide:
            writer.write(frame)
    assert thnerf("fit", tmp_path / "two.mp4", "--out", tmp_path / "two") == 0
    assert "note: 50 of 60 frames show more than one face" in capfd.readouterr().err
    track = Track.load(tmp_path / "two/track.npz")
    assert not track.valid[31:39].any() and track.valid[:29].all() and np.isfinite(track.rotation).all()


@pytest.mark.footage
def test_the_chain_on_real_footage(footage, tmp_path):
    clips = [footage / f"grid_s1/mpg/{p.name}" for p in sorted((footage / "grid_s1/mpg").glob("*.mpg"))[:6]]
    assert thnerf("fit", *clips, "--out", tmp_path / "s1") == 0
    subject = Subject.open(tmp_path / "s1")
    assert len(subject.track.clip_starts) == 6 and subject.info["split"]["test"] == [[375, 450]]
    assert json.loads(subject.fit_path.read_text())["landmark_error_iod"] < 0.03
    assert thnerf("train", subject.path, "--minutes", "1") == 0
    assert thnerf("evaluate", subject.path) == 0
    metrics = json.loads((subject.run() / "metrics.json").read_text())
    assert metrics["reconstruct"]["psnr_face"] > 22 and metrics["reconstruct"]["mouth_correlation"] > 0.5
    assert thnerf("render", subject.path, "--audio", footage / "wav/jfk.wav", "-o", tmp_path / "jfk.mp4") == 0
