"""Text to speech: what is said, by whom, and what cannot be."""

import os
import sys

import numpy as np
import pytest

from render.files import InputError, StageError
from thnerf import voice


def test_a_text_and_its_file_sound_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffGood morning.\nHow are you?", encoding="utf-8")
    first, rate = voice.synthesise("Good morning.\nHow are you?")
    second, _ = voice.synthesise(str(tmp_path / "a.txt"))
    assert np.array_equal(first, second) and rate >= 16000 and 0.5 < len(first) / rate < 5 and 0.1 < np.abs(first).max() <= 1


@pytest.mark.parametrize("text, words", [("", "no words"), ("  \n", "no words"), ("… !?", "no words"), ("\x00\x07", "no words"), ("gone.txt", "does not exist"), ("a " * 20000, "characters")])
def test_nothing_to_say(text, words):
    with pytest.raises(InputError, match=words):
        voice.read_text(text)


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "b.txt").write_text("")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(InputError, match=name):
            voice.read_text(str(tmp_path / name))


def test_unknown_voices(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no voice 'klingon-xx'"):
        voice.synthesise("Hello", "klingon-xx")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="program piper"):
        voice.synthesise("Hello", "piper:voice.onnx")


@pytest.fixture
def piper(tmp_path, monkeypatch):
    """A stand-in for the program: half a second of tone for each word, or what the model's file says goes wrong."""
    program = tmp_path / "piper"
    program.write_text(f"""#!{sys.executable}
import argparse, sys
import numpy as np, soundfile
parser = argparse.ArgumentParser()
parser.add_argument("--model"); parser.add_argument("--output_file")
given = parser.parse_args()
if open(given.model).read() == "broken":
    print("loading", file=sys.stderr); print("invalid protobuf", file=sys.stderr); sys.exit(1)
lines = sys.stdin.read().splitlines()
assert len(lines) == 1
soundfile.write(given.output_file, np.tile(0.3 * np.sin(np.arange(11025) / 9), len(lines[0].split())), 22050)
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_piper_is_a_program_of_its_own(piper):
    with pytest.raises(InputError, match="does not exist"):
        voice.synthesise("Hello", f"piper:{piper}/v.onnx")
    (piper / "v.onnx").write_text("fine")
    with pytest.raises(InputError, match="v.onnx.json"):
        voice.synthesise("Hello", f"piper:{piper}/v.onnx")
    (piper / "v.onnx.json").write_text("{}")
    samples, rate = voice.synthesise("one two\nthree", f"piper:{piper}/v.onnx")
    assert rate == 22050 and len(samples) == 3 * 11025 and samples.dtype == np.float32
    (piper / "v.onnx").write_text("broken")
    with pytest.raises(StageError, match="invalid protobuf"):
        voice.synthesise("Hello", f"piper:{piper}/v.onnx")
