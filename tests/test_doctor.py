"""The doctor: verdicts follow from what is in the clip, and each complaint says what to do."""

import subprocess

import numpy as np
import pytest

from recon.doctor import Finding, Report, _steady_rate, diagnose, judge
from render.encode import VideoWriter


def write_clip(path, frames, fps=25, audio=None):
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps, audio=audio) as writer:
        for frame in frames:
            writer.write(frame)


def severities(report):
    return {f.name: f.severity for f in report.findings}


def test_the_verdict_is_the_worst_finding():
    good, poor, bad = Finding("a", "ok", ""), Finding("b", "warn", "", "do x"), Finding("c", "fail", "", "do y")
    assert Report("", [good]).verdict == "ok"
    assert Report("", [good, poor]).verdict == "warn"
    assert Report("", [poor, bad, good]).verdict == "fail"
    assert "do y" in Report("", [bad]).text()


@pytest.mark.parametrize("value, severity", [(3.0, "ok"), (1.5, "warn"), (0.5, "fail")])
def test_judge_gives_advice_exactly_when_it_complains(value, severity):
    finding = judge("n", value, "", 2, 1, "advice")
    assert finding.severity == severity and bool(finding.advice) == (severity != "ok")


def test_a_clip_without_a_face_cannot_work(tmp_path):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (1, 96, 96, 3)), 30, 0).astype(np.uint8)
    write_clip(tmp_path / "noise.mp4", frames)
    report = diagnose(tmp_path / "noise.mp4")
    assert report.verdict == "fail"
    assert severities(report)["face visible"] == "fail" and severities(report)["sound"] == "warn"
    assert all(f.advice for f in report.findings if f.severity != "ok")


def test_a_cut_is_noticed(tmp_path):
    frames = np.concatenate([np.full((20, 64, 64, 3), 30), np.full((20, 64, 64, 3), 220)]).astype(np.uint8)
    write_clip(tmp_path / "cut.mp4", frames)
    assert severities(diagnose(tmp_path / "cut.mp4"))["no cuts"] == "warn"


def test_an_uneven_frame_rate_is_noticed_and_an_even_one_is_not():
    even = np.round(np.arange(100) / 29.97, 3)  # as a container with milliseconds stores it
    uneven = np.delete(even, np.arange(10, 100, 10))
    assert _steady_rate(even).severity == "ok" and _steady_rate(uneven).severity == "warn"
    assert _steady_rate(np.zeros(1)).severity == "ok", "one frame has no rate"


@pytest.mark.parametrize("seconds, rate, complaint", [(1.6, 48000, None), (3.0, 48000, "sound as long as the picture"), (1.6, 8000, "sound bandwidth")])
def test_sound_that_is_dull_or_of_another_length_is_noticed(tmp_path, seconds, rate, complaint):
    import imageio_ffmpeg

    write_clip(tmp_path / "v.mp4", np.full((40, 64, 64, 3), 90, np.uint8))
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "v.mp4", "-f", "lavfi", "-i", f"sine=300:sample_rate={rate}:duration={seconds}",
                    "-c:v", "copy", "-c:a", "pcm_s16le", tmp_path / "a.mov"], check=True)
    found = severities(diagnose(tmp_path / "a.mov"))
    assert {n for n in ("sound as long as the picture", "sound bandwidth") if found[n] != "ok"} == ({complaint} if complaint else set())


@pytest.mark.footage
def test_real_clips_get_the_verdict_they_deserve(footage):
    report = diagnose(footage / "silent" / "wojtek.mp4")
    found = severities(report)
    assert report.verdict == "warn" and found["sound"] == "warn" and found["face visible"] == "ok" and found["head movement"] == "ok"
