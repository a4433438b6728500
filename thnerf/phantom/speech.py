"""Text to speech with phoneme times, by eSpeak NG through ctypes (the shared library comes from `espeakng-loader`).

eSpeak keeps hidden state between utterances (its pitch flutter runs on), so each utterance gets a process of its own:
the same text always gives the same sound.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from render.files import InputError, StageError

Phoneme = tuple[str, float, float]

# espeak-ng/speak_lib.h
_SYNCHRONOUS = 2
_PHONEME_EVENTS, _DONT_EXIT = 0x0001, 0x8000
_CHARS_UTF8 = 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH = 1, 3
_SILENCE = "_"
_BAD_INPUT = 2


def speak(text: str, voice: str = "en-us", rate: int = 165, pitch: int = 50) -> tuple[np.ndarray, int, list[Phoneme]]:
    """Synthesise `text`.

    voice: an eSpeak voice or language name ('en-us', 'en-gb-x-rp', 'de', 'en-us+f3' …). rate: words a minute (80–450).
    pitch: 0–100. Returns (samples (N,) float32 in [−1, 1], sample rate in Hz, phonemes [(symbol, start s, end s)]).
    The phonemes tile the sound from 0 to its end without gap or overlap; silence has the symbol '_', the others are
    eSpeak's ASCII mnemonics. Raises InputError for empty text, an unknown voice or a missing library, StageError when
    the synthesiser fails.
    """
    if not text.strip():
        raise InputError("there is no text to speak; give at least one word with --text")
    if not (80 <= rate <= 450 and 0 <= pitch <= 100):
        raise InputError(f"speech takes a rate of 80 to 450 words a minute and a pitch of 0 to 100, not {rate} and {pitch}")
    request = json.dumps({"text": text, "voice": voice, "rate": int(rate), "pitch": int(pitch)})
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); from thnerf.phantom.speech import _serve; _serve()"]
    done = subprocess.run(command, input=request.encode(), capture_output=True)
    if done.returncode == _BAD_INPUT:
        raise InputError(done.stderr.decode(errors="replace").strip())
    head, _, wave = done.stdout.partition(b"\n")
    if done.returncode or not head:
        reason = done.stderr.decode(errors="replace").strip()[-200:] or "no message"
        raise StageError(f"eSpeak NG failed on this text ({reason}); try a shorter one or another voice")
    answer = json.loads(head)
    samples = np.frombuffer(wave, "<i2").astype(np.float32) / 32768
    return samples, answer["rate"], _tile(answer["marks"], len(samples), answer["rate"])


def _tile(marks: list[tuple[int, str]], count: int, rate: int) -> list[Phoneme]:
    """Phoneme onsets (sample, symbol) → intervals in seconds that tile [0, count / rate]; pauses become '_'."""
    onsets = sorted((min(max(0, sample), count), position, symbol) for position, (sample, symbol) in enumerate(marks))
    if not onsets or onsets[0][0] > 0:
        onsets.insert(0, (0, -1, _SILENCE))
    ends = [o[0] for o in onsets[1:]] + [count]
    tiled: list[Phoneme] = []
    for (start, _, symbol), end in zip(onsets, ends):
        if end <= start:
            continue
        name = symbol.strip("'`,%=") if symbol.strip("_:;| ") else _SILENCE
        if tiled and name == _SILENCE and tiled[-1][0] == _SILENCE:
            tiled[-1] = (_SILENCE, tiled[-1][1], end / rate)
        else:
            tiled.append((name or _SILENCE, start / rate, end / rate))
    return tiled


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", _EventId)]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _load() -> tuple[ctypes.CDLL, int]:
    """The started library and its sample rate. Raises InputError when it is not installed or does not start."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    except ImportError:
        raise InputError("speech synthesis needs the package espeakng-loader; install it with: pip install espeakng-loader") from None
    except OSError as error:
        raise InputError(f"the eSpeak NG library does not load on this machine ({error}); reinstall espeakng-loader") from None
    data = Path(espeakng_loader.get_data_path())
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(data.parent).encode(), _PHONEME_EVENTS | _DONT_EXIT)
    if rate <= 0:
        raise InputError(f"eSpeak NG finds no usable voice data in {data}; reinstall espeakng-loader")
    return library, rate


def _synthesise(text: str, voice: str, rate: int, pitch: int) -> tuple[np.ndarray, int, list[tuple[int, str]]]:
    """One utterance in this process: (int16 samples, sample rate, [(onset sample, symbol)]). Raises like `speak`."""
    library, sample_rate = _load()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"eSpeak NG has no voice {voice!r}; try en-us, en-gb-x-rp, de, fr or es")
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    chunks: list[np.ndarray] = []
    marks: list[tuple[int, str]] = []

    @_CALLBACK
    def receive(wave, count, events):  # type: ignore[no-untyped-def]
        if wave and count > 0:
            chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_PHONEME:
                marks.append((events[index].sample, events[index].id.string.decode("utf-8", "replace")))
            index += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    encoded = text.encode() + b"\0"
    if library.espeak_Synth(encoded, len(encoded), 0, 0, 0, _CHARS_UTF8, None, None) != 0 or not chunks:
        raise StageError("it returned no sound")
    return np.concatenate(chunks), sample_rate, marks


def _serve() -> None:
    """The child's side of `speak`: a JSON request on stdin; a JSON line and little-endian 16-bit samples on stdout."""
    try:
        samples, rate, marks = _synthesise(**json.loads(sys.stdin.buffer.read()))
    except (InputError, StageError) as error:
        print(error, file=sys.stderr)
        sys.exit(_BAD_INPUT if isinstance(error, InputError) else 1)
    sys.stdout.buffer.write(json.dumps({"rate": rate, "marks": marks}).encode() + b"\n" + samples.astype("<i2").tobytes())
