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
    code, _, err = run(*call.replace("{}", str(tmp_path / "out")).split(), capfd=capfd)
    assert code == 2 and err.startswith(f"thnerf: {words}") and not (tmp_path / "out").exists()


def test_a_command_that_is_told_to_end_leaves_nothing_unfinished(tmp_path, capfd, monkeypatch):
    import os
    import signal
    import time

    from render.files import atomic_path
    from thnerf import cli

    def work(argv):
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(cli, "run_command", work)
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run("export", capfd=capfd)
    assert code == 130 and "interrupted" in err and not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before


def unwritable(folder):
    """Calls whose result has nowhere to go; "{}/file" is a file."""
    (folder / "file").touch()
    np.savez(folder / "model.npz")
    small_track().save(folder / "track.npz")
    (folder / "a.wav").touch()
    return [call.replace("{}", str(folder)).split() for call in (
        "fit {}/a.wav --out {}/file/me", "phantom -o {}/file/p", "model convert default -o {}/file/m.npz", "animate {}/a.wav -o {}/file/t.npz",
        "animate {}/a.wav -o {}/t.npz --preview {}/file/p.mp4", "export {}/track.npz --to json -o {}/file/a.json", "retarget {}/track.npz --model default -o {}/file/t.npz",
        "render {} --audio {}/a.wav -o {}/file/a.mp4", "render {} --audio {}/a.wav -o {}/a.mp4 --depth {}/file/d.mp4", "stream {} --audio {}/a.wav --frames {}/file/a.mp4",
        "mesh {} -o {}/file/a.glb", "import {}/a.csv --subject {} -o {}/file/a.npz", "demo --out {}/file/d")]


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path, capfd):
    for call in unwritable(tmp_path):
        code, _, err = run(*call, capfd=capfd)
        assert code == 2 and "choose another place" in err and len(err.splitlines()) == 1, (call, err)


@pytest.mark.parametrize("call, words", [
    ("animate {}/a.wav -o {}/t.npz --preview {}/x.avi", "--preview takes the name of a video, ending in .mp4"), ("animate {}/a.wav -o {}/t.npz --fps 0", "--fps must lie between 1 and 240, not 0"),
    ("export {}/track.npz --to livelink -o {}/x.glb", "livelink is written as .csv, not 'x.glb'"), ("export {}/track.npz --to glb -o {}/x.gltf", "glb is written as .glb, not"),
    ("render {} --audio {}/a.wav --voice bad -o {}/a.mp4", "--voice says who speaks --text"), ("stream {} --frames raw --json", "--frames raw fills stdout"),
    ("export {} --to json -o {}/x.json --pose still", "give --audio FILE or --text WORDS")])
def test_options_that_would_be_ignored_are_refused(call, words, tmp_path, capfd):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    small_track().save(tmp_path / "track.npz")
    code, _, err = run(*call.replace("{}", str(tmp_path)).split(), capfd=capfd)
    assert code == 2 and words in err and "liveliness" not in err and "--track" not in err and len(err.splitlines()) == 1
    assert not any((tmp_path / name).exists() for name in ("t.npz", "x.glb", "x.json", "x.avi"))


def test_options_that_a_format_has_no_use_for_are_named(tmp_path, capfd):
    small_track().save(tmp_path / "track.npz")
    code, _, err = run("export", tmp_path / "track.npz", "--to", "json", "-o", tmp_path / "x.json", "--bake", "--albedo", capfd=capfd)
    assert code == 0 and err.splitlines() == ["note: --bake changes nothing in json; it is for usd", "note: --albedo changes nothing in json; it is for maya, usd, glb, fbx"]


def test_help_of_stream_offers_nothing_that_stream_refuses(capfd):
    _, out, _ = run("stream", "--help", capfd=capfd)
    assert not any(option in out for option in ("--text", "--voice", "--drive", "source (the footage's)", "a Track .npz, or a video")) and "--emotion" in out and "--pose" in out


def test_stream_hands_every_wish_over(monkeypatch, tmp_path):
    from recon.subject import Subject
    from thnerf import stream
    from thnerf.direction import Direction

    got = {}
    monkeypatch.setattr(Subject, "open", classmethod(lambda cls, path: path))
    monkeypatch.setattr(stream, "stream_speech", lambda subject, packets, sinks, **options: got.update(options) or {})
    assert main(["stream", "me", "--pose", "still", "--blink", "12", "--gaze=-10,5", "--emotion", "sad:0.5", "--mouth-amplitude", "1.2",
                 "--expression-offset", "jawOpen=0.1", "--expression-offset", "cheekPuff=-0.2", "--liveliness", "0.5", "--seed", "3"]) == 0
    assert got["direction"] == Direction(pose="still", blink="12", gaze="-10,5", emotion="sad:0.5", mouth_amplitude=1.2,
                                         expression_offset=("jawOpen=0.1", "cheekPuff=-0.2"), liveliness=0.5, seed=3)


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
