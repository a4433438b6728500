"""How any voice moves the lips: a small network that ships with thnerf, trained on synthetic speech, half of it by voices modelled on people, and ten GRID speakers.

It says, in a neutral style, the ARKit weights of the mouth, where the lips are closed for /p b m/, and where somebody speaks at all
(noise and music are not speech). A subject's own networks may start from its weights (`--motion.prior`); closures and the voice are taken from it as
they are. Data and training: assets/build_speech_prior.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from recon.assets import asset
from render.files import InputError, atomic_path

FILE = "speech_prior.safetensors"
VERSION = 1
SIDED = ("mouthPress", "mouthUpperUp", "mouthLowerDown", "mouthStretch", "mouthSmile")
"""Channels that stand for a Left and a Right expression."""
CLOSING = (0.5, 1.5)
"""Log odds of a bilabial by the network alone at which the lips begin to close, and at which they are closed."""
JOINT_CLOSING = (-1.2, -0.4)
"""The same for the mean of the network's log odds and those of `thnerf.bilabials`."""
HEARD = (0.72, 0.82)
"""Highest probability of speech, over 0.2 s, within a second, from which a sound begins to be speech, and from which it is: chords reach 0.11, noise 0.01;
speech in nine languages stayed above 0.99, with white noise 10 dB below it above 0.96."""
_OPENING = ("mouthLowerDown", "mouthUpperUp", "mouthFunnel", "mouthStretch", "tongueOut", "mouthShrugLower")


@dataclass(frozen=True)
class Said:
    """What the prior makes of a sound: weights (T, C) of its channels, odds (T,) the log odds of a bilabial, voice (T,) probability of speech."""

    weights: np.ndarray
    odds: np.ndarray
    voice: np.ndarray

    @property
    def closed(self) -> np.ndarray:
        """How far the lips are closed for /p b m/, (T,) from 0 to 1, by the network alone."""
        return _ramp(self.odds, CLOSING)

    def closed_with(self, bilabial: np.ndarray | None) -> np.ndarray:
        """The same, by the network and the probability (T,) of a bilabial that `thnerf.bilabials` hears, where there is one."""
        if bilabial is None:
            return self.closed
        heard = np.clip(bilabial, 1e-5, 1 - 1e-3)
        return _ramp(0.5 * (self.odds + np.log(heard / (1 - heard))), JOINT_CLOSING)


@dataclass(frozen=True)
class SpeechPrior:
    """The network and its statistics: channels (C,), mean and spread (bands,) of the features, scale (C,) of the outputs.

    The outputs are C standardised weights, the log odds of closed lips, those of speech, and log odds of visemes that only training uses.
    """

    channels: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray
    scale: np.ndarray
    net: Any
    settings: dict[str, Any]

    @property
    def encoder(self) -> str:
        """Name of the audio encoder that it hears with."""
        return self.settings["encoder"]

    def listen(self, features: np.ndarray, frames: int) -> Said:
        """Features (4 T + any, bands) of `thnerf.audio.hear`, for the first `frames` frames."""
        return self.read(self.net.predict((features - self.mean) / self.spread, frames))

    def read(self, outputs: np.ndarray) -> Said:
        """Outputs (T, …) of the network, of `predict` or `window`, each frame on its own."""
        count = len(self.channels)
        voice = 1 / (1 + np.exp(-np.clip(outputs[:, count + 1], -30, 30)))
        return Said(np.clip(outputs[:, :count] * self.scale, 0, 1), outputs[:, count], voice.astype(np.float32))

    def expression(self, weights: np.ndarray, closed: np.ndarray, rest: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """ARKit weights (T, E) float32 for expressions `names` from channels (T, C): lips brought together where `closed` (T,) is 1, at ease where `rest` (T,) is."""
        weight = dict(zip(self.channels, weights.T.astype(np.float64)))
        for name in _OPENING:
            weight[name] = weight[name] * (1 - closed)
        weight["jawOpen"] = weight["jawOpen"] * (1 - 0.75 * closed)
        for name, share in (("mouthPress", 0.25), ("mouthRollLower", 0.10), ("mouthRollUpper", 0.06)):
            weight[name] = np.maximum(weight[name], share * closed)
        weight["mouthClose"] = weight["jawOpen"] * closed
        awake = 1 - rest
        out = np.zeros((len(weights), len(names)), np.float32)
        for i, name in enumerate(names):
            plain = next((n for n in SIDED if name in (n + "Left", n + "Right")), name)
            if plain in weight:
                out[:, i] = weight[plain] * awake
        return out


def _ramp(odds: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """0 up to the first end, 1 from the second."""
    return np.clip((odds - ends[0]) / (ends[1] - ends[0]), 0, 1).astype(np.float32)


def speaking(voice: np.ndarray, fps: float) -> np.ndarray:
    """Probability of speech (T,) → 1 where somebody speaks within a second, 0 elsewhere, with soft edges: (T,) float32."""
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    wide = maximum_filter1d(uniform_filter1d(np.asarray(voice, np.float32), max(1, round(0.2 * fps)), mode="nearest"), 2 * round(fps) + 1, mode="nearest")
    return uniform_filter1d(np.clip((wide - HEARD[0]) / (HEARD[1] - HEARD[0]), 0, 1), 5, mode="nearest")


@lru_cache(maxsize=2)
def load_prior(path: str | Path | None = None) -> SpeechPrior:
    """The shipped prior, or that of a file. Raises InputError when it is missing or damaged."""
    import torch
    from safetensors import SafetensorError, safe_open

    from thnerf.lipnet import LipNet

    path = Path(path) if path is not None else asset(FILE)
    if not path.is_file():
        raise InputError(f"{path} does not exist; install thnerf again, or build it with assets/build_speech_prior.py")
    try:
        with safe_open(str(path), "np") as stream:
            header = json.loads((stream.metadata() or {})["thnerf"])
            tensors = {k: stream.get_tensor(k).astype(np.float32) for k in stream.keys()}
        if header["version"] != VERSION:
            raise InputError(f"{path} is of another version of thnerf; install thnerf again")
        mean, spread, scale = (tensors.pop(n) for n in ("mean", "spread", "scale"))
        net = LipNet(len(mean), header["outputs"], header["hidden"], header["layers"], 0.0, header["ahead"])
        net.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
        return SpeechPrior(tuple(header["channels"]), mean, spread, scale, net.eval(), header)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); install thnerf again") from None


def save_prior(path: str | Path, prior: SpeechPrior) -> None:
    """Write a prior, weights as 16-bit floats, atomically."""
    from safetensors.numpy import save

    arrays = {k: v.numpy().astype(np.float16) for k, v in prior.net.state_dict().items()}
    arrays |= {n: np.asarray(getattr(prior, n), np.float32) for n in ("mean", "spread", "scale")}
    header = {**prior.settings, "version": VERSION, "channels": list(prior.channels), "outputs": prior.net.out.out_channels}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {"thnerf": json.dumps(header)}))
