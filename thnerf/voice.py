"""Text in, speech out: eSpeak NG by default, or a piper voice through the external program `piper`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from render.files import InputError, StageError

DEFAULT_VOICE = "en-us"
LONGEST = 20_000
"""Characters that are spoken at most: about half an hour."""
_PIPER = "piper:"
_SILENT = 1e-4


def read_text(text: str) -> str:
    """The words behind `--text`: those of the file it names, or the string itself; control characters become spaces.

    Raises InputError when the file is no UTF-8 text, when there is nothing to say, and when there is too much.
    """
    path = Path(text)
    try:
        named = len(text) < 1024 and path.is_file()
    except (OSError, ValueError):  # too long for a file name, or with a zero byte in it
        named = False
    if named:
        try:
            words = path.read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise InputError(f"{path} is not readable as UTF-8 text ({getattr(error, 'reason', None) or error}); save it again as plain text") from None
    else:
        words = text
        if text.lower().endswith(".txt") and " " not in text.strip():
            raise InputError(f"{text} does not exist; name a text file, or give the words themselves")
    words = "".join(c if c.isprintable() or c == "\n" else " " for c in words).strip()
    if not any(c.isalnum() for c in words):
        raise InputError(f"{path if named else '--text'} has no words in it; give at least one")
    if len(words) > LONGEST:
        raise InputError(f"the text has {len(words)} characters, more than the {LONGEST} that are spoken at once; render it in parts")
    return words


def synthesise(text: str, voice: str = DEFAULT_VOICE) -> tuple[np.ndarray, int]:
    """Speech of a text or of the text file it names → (samples (N,) float32 in [-1, 1], sample rate in Hz).

    voice: a name that eSpeak NG knows ('en-us', 'de', 'fr', 'en-us+f3' …), or 'piper:MODEL.onnx'.
    Raises InputError for empty text, an unknown voice, and where a program or library is absent; StageError when the synthesiser fails.
    """
    words = read_text(text)
    if voice.startswith(_PIPER) or voice.endswith(".onnx"):
        samples, rate = _piper(words, Path(voice.removeprefix(_PIPER)))
    else:
        from thnerf.phantom.speech import speak

        samples, rate, _ = speak(words, voice=voice)
    if not len(samples) or np.abs(samples).max() < _SILENT:
        raise InputError(f"the voice {voice} says nothing for this text; check that it speaks the text's language")
    return samples, rate


def _piper(words: str, model: Path) -> tuple[np.ndarray, int]:
    """Speech of a piper voice, through the program of that name: its licence and its packages stay outside of ours."""
    import soundfile

    program = shutil.which("piper")
    if program is None:
        raise InputError("a piper voice needs the program piper on the PATH (for example: pipx install piper-tts); without it choose a voice of eSpeak NG such as en-us")
    if not model.is_file():
        raise InputError(f"the piper voice {model} does not exist; give piper:MODEL.onnx with the path of a downloaded voice")
    if not Path(f"{model}.json").is_file():
        raise InputError(f"the piper voice {model} lacks its settings {model.name}.json; download both files into one folder")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        # one line: older versions of the program take each line for a text of its own and keep the last
        done = subprocess.run([program, "--model", str(model), "--output_file", str(out)], input=" ".join(words.split()).encode(), capture_output=True)
        if done.returncode or not out.exists() or not out.stat().st_size:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise StageError(f"piper failed on this text ({lines[-1][:200] if lines else 'no message'}); check the voice {model}")
        samples, rate = soundfile.read(out, dtype="float32", always_2d=True)
    return samples.mean(1), int(rate)
