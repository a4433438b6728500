"""The command line: help with an example everywhere, one sentence and the right code on bad input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recon.track import Track
from render.camera import Camera
from thnerf.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, capfd):
    """Exit code, stdout and stderr of a command run in this process."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as exit_:
        code = exit_.code
    out = capfd.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capfd):
    code, out, _ = run(command, "--help", capfd=capfd)
    assert code == 0 and f"Example: thnerf {command}" in out


def small_track(frames=12):
    """A still head of a model with ARKit-like names."""
    return Track(25, "anny-arkit52-v1", Camera.simple(600, 64, 64, frames), np.zeros(4), np.zeros((frames, 2)), np.tile([np.pi, 0, 0], (frames, 1)),
                 np.tile([0, 0, 700.0], (frames, 1)), np.zeros((frames, 2, 2)), np.zeros((frames, 4)), np.ones(frames), ("jawOpen", "mouthClose"))


def bad_calls(folder):
    """Commands that must end with one sentence and code 2."""
    text = folder / "clip.mp4"
    text.write_text("not a video")
    empty = folder / "empty.mp4"
    empty.touch()
    half = folder / "half"
    half.mkdir()
    (half / "video.mp4").write_bytes(b"0")
    damaged = folder / "track.npz"
    small_track().save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:200])
    hostile = folder / "hostile.npz"
    np.savez(hostile, version=np.array([{"a": 1}], dtype=object))
    out = folder / "out"
    return {
        "missing clip": ["fit", folder / "none.mp4", "--out", out], "text as video": ["fit", text, "--out", out],
        "empty video": ["fit", empty, "--out", out], "doctor on text": ["doctor", text], "doctor on nothing": ["doctor", empty],
        "odd size": ["fit", text, "--out", out, "--size", "33"], "no subject": ["train", folder / "nobody"],
        "half a subject": ["train", half], "evaluate half": ["evaluate", half],
        "render without subject": ["render", folder / "nobody", "--audio", text], "damaged track": ["export", damaged, "--to", "json", "-o", out],
        "hostile track": ["export", hostile, "--to", "json", "-o", out], "unknown model": ["fit", text, "--out", out, "--model", folder / "flame.pkl"],
    }


BAD = ["missing clip", "text as video", "empty video", "doctor on text", "doctor on nothing", "odd size", "no subject", "half a subject",
       "evaluate half", "render without subject", "damaged track", "hostile track", "unknown model"]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_code_2(name, tmp_path, capfd):
    code, out, err = run(*bad_calls(tmp_path)[name], capfd=capfd)
    lines = [line for line in err.splitlines() if line.startswith("thnerf: ")]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err and len(lines[0]) < 300
    assert not (tmp_path / "out" / "subject.json").exists()


@pytest.mark.parametrize("option, value", [
    ("--focal", "nan"), ("--focal", "1e9"), ("--focal", "5"), ("--pose-smoothing", "inf"), ("--expression-smoothing", "nan"), ("--crf", "52"), ("--crf", "-1"), ("--size", "99998"),
    ("--size", "65"), ("--shape-components", "-1"), ("--keyframes", "0"), ("--fps", "nan")])
def test_fit_refuses_numbers_that_cannot_be(option, value, tmp_path, capfd):
    code, _, err = run("fit", tmp_path / "a.mp4", "--out", tmp_path / "me", f"{option}={value}", capfd=capfd)
    assert code == 2 and err.startswith(f"thnerf: {option} must ") and len(err.splitlines()) == 1


@pytest.mark.parametrize("call, words", [
    ("track --camera none.mp4 --focal nan", "--focal must"), ("phantom -o {} --seed=-1", "--seed must"), ("phantom -o {} --size 99998", "--size must"),
    ("phantom -o {} --fps nan", "--fps must"), ("retarget none.npz --model default -o {}/a.npz --smoothing nan", "--smoothing must"), ("demo --out {} --minutes nan", "--minutes must")])
def test_others_refuse_them_before_any_work(call, words, tmp_path, capfd):
    code, _, err = run(*(part.format(tmp_path / "out") for part in call.split()), capfd=capfd)
    assert code == 2 and err.startswith(f"thnerf: {words}") and not (tmp_path / "out").exists()


def test_a_track_exports_and_json_stays_alone_on_stdout(tmp_path, capfd):
    import json

    path = tmp_path / "track.npz"
    small_track().save(path)
    code, out, _ = run("export", path, "--to", "npz", "-o", tmp_path / "copy.npz", "--json", capfd=capfd)
    assert code == 0 and json.loads(out)["frames"] == 12
    assert np.array_equal(Track.load(tmp_path / "copy.npz").rotation, small_track().rotation)


def test_the_thin_training_script_is_the_train_command(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "train.py", tmp_path / "nobody"], capture_output=True, text=True)
    assert done.returncode == 2 and "not a subject folder" in done.stderr
