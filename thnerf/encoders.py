"""What a speech network hears: audio encoders behind one protocol.

An encoder turns mono samples (n,) at `audio.RATE` into features (n // 160 + 1, width) at 100 Hz; frame j is centred at j / 100 s,
whatever happens inside. Each states its `lookahead_seconds`: how far beyond a frame's time it listens. A finite one can be
streamed: a frame that much older than the end of the sound does not change any more.

| name | features | look-ahead | speed | needs |
|---|---|---|---|---|
| `logmel` | 80 mel bands, dB over (speech level − 55 dB), in tens | 12.5 ms, given the level | hundreds of times real time | – |
| `phones` | log posteriors of 42 phone classes by pocketsphinx' acoustic model, energy, voicing, pitch | the whole utterance (its channel mean) | about 20 times | pocketsphinx |
| a folder | hidden states of a wav2vec 2.0 or HuBERT checkpoint | the whole utterance (attention) | a few times | transformers |
| several, joined by + | the columns of each, side by side | the longest of them | | |
"""

from __future__ import annotations

import importlib.util
import math
import struct
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Sequence

import numpy as np

from render.files import InputError, StageError
from thnerf import audio

ENCODERS = ("logmel", "phones")
"""Encoders that are chosen by name; anything else is the folder of a checkpoint, or several of these joined by +."""


class Encoder(Protocol):
    """Sound → features at 100 Hz."""

    name: str
    width: int
    lookahead_seconds: float

    def encode(self, samples: np.ndarray, level: float | None = None) -> np.ndarray:
        """Mono samples (n,) at audio.RATE → (n // 160 + 1, width) float32. level: of the speech, dB re full scale, measured if not given."""
        ...


@dataclass(frozen=True)
class LogMel:
    """Mel-band energies that do not depend on the recording's gain."""

    name: str = "logmel"
    width: int = audio.BANDS
    lookahead_seconds: float = audio.WINDOW / 2 / audio.RATE

    def encode(self, samples: np.ndarray, level: float | None = None) -> np.ndarray:
        """See `Encoder`."""
        return audio.normalised(audio.log_mel(samples), level)


@dataclass(frozen=True)
class Joined:
    """Several encoders side by side, for networks that each hear one of them."""

    parts: tuple[Encoder, ...]

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    @property
    def lookahead_seconds(self) -> float:
        return max(part.lookahead_seconds for part in self.parts)

    def encode(self, samples: np.ndarray, level: float | None = None) -> np.ndarray:
        """See `Encoder`."""
        return np.concatenate([part.encode(samples, level) for part in self.parts], 1)


def columns_of(encoder: Encoder) -> dict[str, slice]:
    """Where the features of each part of an encoder stand, by the part's name, in order."""
    parts, found, at = getattr(encoder, "parts", (encoder,)), {}, 0
    for part in parts:
        found[part.name] = slice(at, at + part.width)
        at += part.width
    return found


def best_encoder() -> str:
    """What speech is heard with unless told otherwise: `logmel+phones`, or `logmel` where pocketsphinx is not installed."""
    return "logmel+phones" if importlib.util.find_spec("pocketsphinx") is not None else "logmel"


def load_encoder(name: str | Path = "logmel") -> Encoder:
    """The encoder of a name in ENCODERS, of a folder with a wav2vec 2.0 or HuBERT checkpoint, or of several of these joined by +.

    Raises InputError for another name, a package that is not installed, or a folder that lacks a file (which it names).
    """
    if name == "logmel":
        return LogMel()
    if name == "phones":
        return Phones()
    if Path(name).is_dir():
        return Transformer(Path(name))
    if "+" in str(name):
        parts = tuple(load_encoder(part) for part in str(name).split("+"))
        if len({part.name for part in parts}) == len(parts):
            return Joined(parts)
        raise InputError(f"the speech encoder {str(name)!r} names one encoder twice; give each once")
    raise InputError(f"the speech encoder is {', '.join(ENCODERS)}, the folder of a wav2vec 2.0 or HuBERT checkpoint, or several joined by +, not {str(name)!r}")


# ---- phones ---------------------------------------------------------------------------------------------------------

_NATS = 1024 * math.log(1.0001)  # of one unit of a senone score: PocketSphinx counts in powers of 1.0001, shifted by ten bits
_FLOOR = 8.0  # nats below the best phone at which a phone counts as excluded
_PHONE_DELAY = 205 / audio.RATE  # s from a frame's start, 160 j, to the middle of PocketSphinx' window of 410 samples
BLOCK = 30.0
"""Seconds that PocketSphinx hears at a time: the scores of its senones are 10 kB a frame."""


class Phones:
    """Which phones the sound may be, by the acoustic model inside pocketsphinx (BSD; US English, 5,126 senones), with energy, voicing and pitch.

    Senone scores come from `senlogdir` with `compallsen`; a phone's score is that of its best senone (as in a Viterbi step without
    history), and the posteriors are their softmax. Long sounds are heard in blocks of 30 s, which have a channel mean each.
    """

    name = "phones"
    lookahead_seconds = math.inf

    def __init__(self) -> None:
        try:
            import pocketsphinx
        except ImportError:
            raise InputError("the encoder 'phones' needs the package pocketsphinx; install it with: pip install pocketsphinx") from None
        folder = Path(pocketsphinx.get_model_path("en-us/en-us"))
        self.names, self.owner = senone_phones(folder / "mdef")
        self.width = len(self.names) + 3

    def encode(self, samples: np.ndarray, level: float | None = None) -> np.ndarray:
        """See `Encoder`. The first columns are (log posterior + 8) / 2 ≥ 0 of `names`, then energy in tens of dB, voicing 0 to 1, pitch in octaves."""
        samples = np.asarray(samples, np.float32)
        mel = audio.log_mel(samples)
        level = audio.speech_level(mel) if level is None else level
        energy = np.clip((audio.loudness(mel) - level + audio.SPAN) / 10, 0, None)
        phones = self.posteriors(samples, level, len(mel))
        return np.concatenate([(phones + _FLOOR) / 2, energy[:, None], pitch(samples)], 1).astype(np.float32)

    def posteriors(self, samples: np.ndarray, level: float, frames: int) -> np.ndarray:
        """Log posteriors (frames, phones) in [−8, 0] at j / 100 s."""
        time, found = _phone_scores(pcm16(samples, level))
        if not len(found):
            return np.full((frames, len(self.names)), -np.log(len(self.names)), np.float32)
        log = found - found.max(1, keepdims=True)
        log = np.maximum(log - np.log(np.exp(log).sum(1, keepdims=True)), -_FLOOR)
        grid = np.arange(frames) / audio.FEATURE_RATE
        low = np.clip(np.searchsorted(time, grid) - 1, 0, max(len(time) - 2, 0))
        high = np.minimum(low + 1, len(time) - 1)
        share = np.clip((grid - time[low]) / np.maximum(time[high] - time[low], 1e-9), 0, 1)[:, None].astype(np.float32)
        return log[low] * (1 - share) + log[high] * share


def pcm16(samples: np.ndarray, level: float) -> bytes:
    """Mono samples (n,) whose speech is at `level` dB re full scale as PocketSphinx wants them: 16 bits, speech at −26 dB, no peak above 0.9."""
    gain = min(10 ** ((-26 - level) / 20), 0.9 / max(float(np.abs(samples).max(initial=0)), 1e-6))
    return (np.clip(np.asarray(samples, np.float32) * gain, -1, 1) * 32767).astype("<i2").tobytes()


@lru_cache(maxsize=1)  # a network that hears phones and `thnerf.bilabials` ask for the same sound one after the other
def _phone_scores(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Times (T,) s and log scores (T, phones), nats, of the best senone of each phone; a block too short to hold a frame has none."""
    import pocketsphinx

    names, owner = senone_phones(Path(pocketsphinx.get_model_path("en-us/en-us")) / "mdef")
    order, size = np.argsort(owner, kind="stable"), 2 * round(BLOCK * audio.RATE)
    starts = np.searchsorted(owner[order], np.arange(len(names)))
    at, scores = [np.zeros(0)], [np.zeros((0, len(names)), np.float32)]
    for block in range(0, len(raw), size):
        with tempfile.TemporaryDirectory() as folder:
            # the phrase to look for does not matter: it is the cheapest search that has all senones scored
            decoder = pocketsphinx.Decoder(lm=None, keyphrase="forward", kws_threshold=1e-20, senlogdir=folder, compallsen=True, loglevel="FATAL")
            decoder.start_utt()
            decoder.process_raw(raw[block : block + size], full_utt=True)
            decoder.end_utt()
            del decoder  # closes the file
            files = list(Path(folder).iterdir())
            rows = read_senones(files[0].read_bytes(), len(owner)) if files else np.zeros((0, len(owner)), np.int16)
        scores.append(np.minimum.reduceat(rows[:, order], starts, axis=1).astype(np.float32) * np.float32(-_NATS))
        at.append(block / 2 / audio.RATE + _PHONE_DELAY + np.arange(len(rows)) / audio.FEATURE_RATE)
    return np.concatenate(at), np.concatenate(scores)


def read_senones(data: bytes, count: int) -> np.ndarray:
    """A PocketSphinx senone log → (T, count) int16 scores, lower is likelier. Raises StageError when it is none."""
    start = data.find(b"endhdr\n")
    if start < 0 or len(data) < start + 11:
        raise StageError("pocketsphinx wrote no senone scores; install the tested version with: pip install pocketsphinx==5.1.1")
    order = "<" if data[start + 7 : start + 11] == struct.pack("<I", 0x11223344) else ">"
    rows = np.frombuffer(data, order + "i2", offset=start + 11, count=(len(data) - start - 11) // (2 * count + 2) * (count + 1)).reshape(-1, count + 1)
    if (rows[:, 0] != count).any():
        raise StageError("pocketsphinx did not score all senones; install the tested version with: pip install pocketsphinx==5.1.1")
    return rows[:, 1:]


@lru_cache(maxsize=1)
def senone_phones(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Phone names of a binary model definition (its header describes the format), and which of them each senone belongs to.

    Raises InputError when it is not one.
    """
    data = path.read_bytes() if path.is_file() else b""
    if data[:4] != b"BMDF":
        raise InputError(f"{path} is not a model definition of PocketSphinx; reinstall pocketsphinx==5.1.1")
    at = 12 + struct.unpack_from("<i", data, 8)[0]
    phones, all_phones, states, _, senones, _, sequences, _, tree, _ = struct.unpack_from("<10i", data, at)
    at += 40
    names = []
    for _ in range(phones):
        end = data.index(b"\0", at)
        names.append(data[at:end].decode())
        at = end + 1
    at = len(data) - 2 * sequences * states - 4 - 12 * all_phones  # from the end: the padding before is not stated
    entry = np.frombuffer(data, np.dtype([("sequence", "<i4"), ("transitions", "<i4"), ("attributes", "u1", 4)]), all_phones, at)
    states_of = np.frombuffer(data, "<i2", sequences * states, len(data) - 2 * sequences * states).reshape(sequences, states)
    base = np.where(np.arange(all_phones) < phones, np.arange(all_phones), entry["attributes"][:, 1])
    owner = np.zeros(senones, int)
    owner[states_of[entry["sequence"]]] = base[:, None]
    return tuple(names), owner


def pitch(samples: np.ndarray, lowest: float = 70.0, highest: float = 400.0) -> np.ndarray:
    """Mono samples (n,) at RATE → (n // 160 + 1, 2) float32: voicing in [0, 1] and pitch in octaves from 140 Hz (0 where unvoiced).

    The highest peak of the normalised autocorrelation of 40 ms windows (Boersma 1993: divided by that of the window).
    """
    size, fft, hop = 640, 2048, audio.RATE // audio.FEATURE_RATE
    count = len(samples) // hop + 1
    padded = np.pad(np.asarray(samples, np.float32), (size // 2, size))
    window = np.hanning(size).astype(np.float32)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, fft)) ** 2)
    lags = slice(int(audio.RATE / highest), int(audio.RATE / lowest) + 1)
    out = np.zeros((count, 2), np.float32)
    for a in range(0, count, 2048):
        b = min(a + 2048, count)
        frames = np.lib.stride_tricks.sliding_window_view(padded[a * hop : (b - 1) * hop + size], size)[::hop]
        frames = (frames - frames.mean(1, keepdims=True)) * window
        power = np.fft.irfft(np.abs(np.fft.rfft(frames, fft)) ** 2)
        likeness = power[:, lags] / (power[:, :1] + 1e-6) * (own[0] / own[lags])
        best = likeness.argmax(1)
        voiced = np.clip(likeness[np.arange(b - a), best], 0, 1)
        out[a:b, 0] = voiced
        out[a:b, 1] = np.log2(audio.RATE / (best + lags.start) / 140) * (voiced > 0.5)
    return out


# ---- wav2vec 2.0 and HuBERT -----------------------------------------------------------------------------------------

_CHECKPOINT = ("config.json", "model.safetensors")
_SPAN, _MARGIN = 20.0, 2.0  # s heard at a time, and overlap on either side


class Transformer:
    """Hidden states of a wav2vec 2.0 (Baevski et al. 2020) or HuBERT (Hsu et al. 2021) checkpoint in a local folder, as transformers writes it.

    The folder needs config.json and model.safetensors (or pytorch_model.bin). Nothing is downloaded. layer: which hidden state;
    by default two thirds up, where phones are told apart best (Pasad et al. 2021).
    """

    lookahead_seconds = math.inf

    def __init__(self, folder: Path, layer: int | None = None) -> None:
        for name in _CHECKPOINT:
            if not (folder / name).is_file() and not (name == "model.safetensors" and (folder / "pytorch_model.bin").is_file()):
                raise InputError(f"{folder / name} is missing; copy the whole checkpoint of the wav2vec 2.0 or HuBERT model into that folder")
        try:
            import transformers
        except ImportError:
            raise InputError("wav2vec 2.0 and HuBERT need the package transformers; install it with: pip install transformers") from None
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            kinds = {"wav2vec2": transformers.Wav2Vec2Model, "hubert": transformers.HubertModel}
            if config.model_type not in kinds:
                raise InputError(f"{folder} holds a {config.model_type} model; the speech encoder takes wav2vec2 or hubert")
            self.model = kinds[config.model_type].from_pretrained(str(folder), local_files_only=True).eval()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise InputError(f"{folder} is not a readable checkpoint ({' '.join(str(error).split())[:150]}); copy it again") from None
        self.name, self.width = str(folder), int(config.hidden_size)
        self.layer = round(2 / 3 * config.num_hidden_layers) if layer is None else layer
        self.hop = math.prod(config.conv_stride)
        self.field = 1 + sum((k - 1) * math.prod(config.conv_stride[:i]) for i, k in enumerate(config.conv_kernel))

    def encode(self, samples: np.ndarray, level: float | None = None) -> np.ndarray:
        """See `Encoder`. The level does not matter: every block is brought to unit variance, as in training."""
        import torch

        samples = np.asarray(samples, np.float32)
        count, span, margin = len(samples) // 160 + 1, round(_SPAN * audio.RATE), round(_MARGIN * audio.RATE)
        grid = np.arange(count) / audio.FEATURE_RATE
        out = np.empty((count, self.width), np.float32)
        for a in range(0, max(len(samples), 1), span):
            first = max(0, a - margin)
            part = samples[first : a + span + margin]
            part = np.pad(part, (0, max(0, self.field + self.hop - len(part))))
            part = (part - part.mean()) / np.sqrt(part.var() + 1e-7)
            with torch.no_grad():
                hidden = self.model(torch.from_numpy(part)[None], output_hidden_states=True).hidden_states[self.layer][0].numpy()
            time = (first + self.field / 2 + self.hop * np.arange(len(hidden))) / audio.RATE
            mine = (grid >= a / audio.RATE) & ((grid < (a + span) / audio.RATE) | (a + span >= len(samples)))
            out[mine] = _interpolate(time, hidden, grid[mine])
        return out


def _interpolate(time: np.ndarray, rows: np.ndarray, at: Sequence[float] | np.ndarray) -> np.ndarray:
    """Linear interpolation of (N, C) rows at rising times (N,), held at both ends."""
    place = np.clip(np.interp(at, time, np.arange(len(time))), 0, len(time) - 1)
    low = np.minimum(place.astype(int), max(len(time) - 2, 0))
    share = (place - low)[:, None].astype(np.float32)
    return rows[low] * (1 - share) + rows[np.minimum(low + 1, len(time) - 1)] * share
