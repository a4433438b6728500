"""Phonemes → mouth shapes over time, as ARKit blend-shape weights with coarticulation.

Coarticulation is the dominance model of Cohen & Massaro 1993 ("Modeling coarticulation in synthetic visual speech"):
every segment pulls every channel towards its target with a strength that decays away from the segment, and the value is
the strength-weighted mean of the targets. Closures that the eye insists on (lips on /p b m/, lower lip to teeth on
/f v/) are applied on top, so that no neighbour can open them.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from thnerf.phantom.speech import Phoneme

# Targets by viseme; a name without side stands for its Left and Right.
VISEMES: dict[str, dict[str, float]] = {
    "sil": {},
    "PP": {"jawOpen": 0.05, "mouthPress": 0.25, "mouthRollLower": 0.10, "mouthRollUpper": 0.06},
    "FF": {"jawOpen": 0.08, "mouthRollLower": 0.38, "mouthUpperUp": 0.39, "mouthShrugLower": 0.12},
    "TH": {"jawOpen": 0.17, "mouthLowerDown": 0.12, "mouthUpperUp": 0.19, "tongueOut": 0.18},
    "DD": {"jawOpen": 0.13, "mouthLowerDown": 0.13, "mouthUpperUp": 0.22},
    "KK": {"jawOpen": 0.18, "mouthLowerDown": 0.06},
    "CH": {"jawOpen": 0.10, "mouthFunnel": 0.48, "mouthPucker": 0.16, "mouthLowerDown": 0.10},
    "SS": {"jawOpen": 0.06, "mouthStretch": 0.22, "mouthSmile": 0.10, "mouthLowerDown": 0.16, "mouthUpperUp": 0.26},
    "RR": {"jawOpen": 0.16, "mouthFunnel": 0.24, "mouthPucker": 0.28},
    "AA": {"jawOpen": 0.46, "mouthLowerDown": 0.12, "mouthUpperUp": 0.19},
    "AE": {"jawOpen": 0.40, "mouthStretch": 0.16, "mouthSmile": 0.10, "mouthLowerDown": 0.14, "mouthUpperUp": 0.26},
    "EH": {"jawOpen": 0.30, "mouthStretch": 0.18, "mouthSmile": 0.12, "mouthLowerDown": 0.13, "mouthUpperUp": 0.19},
    "IH": {"jawOpen": 0.20, "mouthStretch": 0.20, "mouthSmile": 0.18, "mouthLowerDown": 0.13, "mouthUpperUp": 0.16},
    "IY": {"jawOpen": 0.15, "mouthStretch": 0.28, "mouthSmile": 0.30, "mouthLowerDown": 0.14, "mouthUpperUp": 0.16},
    "UH": {"jawOpen": 0.26, "mouthLowerDown": 0.07},
    "OH": {"jawOpen": 0.36, "mouthFunnel": 0.34, "mouthPucker": 0.22},
    "OO": {"jawOpen": 0.15, "mouthFunnel": 0.28, "mouthPucker": 0.62},
}
_VOWELS = frozenset(("AA", "AE", "EH", "IH", "IY", "UH", "OH", "OO"))

# eSpeak mnemonics, longest match first; a diphthong is a sequence. Other languages fall back to their first letter.
_PHONEMES: dict[str, tuple[str, ...]] = {
    "_": ("sil",), "?": ("KK",),
    "p": ("PP",), "b": ("PP",), "m": ("PP",), "f": ("FF",), "v": ("FF",), "T": ("TH",), "D": ("TH",),
    "t": ("DD",), "d": ("DD",), "n": ("DD",), "l": ("DD",), "L": ("DD",), "s": ("SS",), "z": ("SS",),
    "S": ("CH",), "Z": ("CH",), "tS": ("CH",), "dZ": ("CH",), "C": ("CH",), "k": ("KK",), "g": ("KK",), "N": ("KK",), "x": ("KK",),
    "h": ("KK",), "r": ("RR",), "R": ("RR",), "w": ("OO",), "W": ("OO",), "j": ("IY",),
    "a": ("AE",), "A": ("AA",), "a#": ("UH",), "0": ("AA",), "Q": ("AA",), "aI": ("AA", "IH"), "aU": ("AA", "OO"), "A@": ("AA", "RR"),
    "E": ("EH",), "e": ("EH",), "eI": ("EH", "IY"), "e@": ("EH", "RR"), "I": ("IH",), "i": ("IY",), "i@": ("IY", "RR"), "y": ("OO",), "Y": ("OO",),
    "O": ("OH",), "o": ("OH",), "oU": ("OH", "OO"), "OI": ("OH", "IH"), "O@": ("OH", "RR"), "U": ("OO",), "U@": ("OO", "RR"), "u": ("OO",),
    "V": ("UH",), "@": ("UH",), "3": ("RR",), "&": ("AE",),
}
_SIDED = ("mouthPress", "mouthUpperUp", "mouthLowerDown", "mouthStretch", "mouthSmile")
CHANNELS = tuple(dict.fromkeys(name for target in VISEMES.values() for name in target))
_ROUNDING = ("mouthFunnel", "mouthPucker")
_OPENING = ("mouthLowerDown", "mouthUpperUp", "mouthFunnel", "mouthStretch", "tongueOut", "mouthShrugLower")


def viseme_sequence(symbol: str) -> tuple[str, ...]:
    """The mouth shapes of one eSpeak phoneme symbol; unknown symbols get the relaxed vowel."""
    for length in range(len(symbol), 0, -1):
        if symbol[:length] in _PHONEMES:
            return _PHONEMES[symbol[:length]]
    return ("UH",)


def segments(phonemes: Sequence[Phoneme]) -> list[Phoneme]:
    """Phonemes → [(viseme, start s, end s)]; diphthongs are split 55 : 45."""
    out: list[Phoneme] = []
    for symbol, start, end in phonemes:
        sequence = viseme_sequence(symbol)
        cut = start + 0.55 * (end - start)
        bounds = [start, end] if len(sequence) == 1 else [start, cut, end]
        out += [(viseme, a, b) for viseme, a, b in zip(sequence, bounds, bounds[1:])]
    return out


def mouth_weights(phonemes: Sequence[Phoneme], loudness: np.ndarray, rate: float) -> dict[str, np.ndarray]:
    """Mouth channels over time.

    loudness: (N,) speech level sampled at `rate` Hz, about 1 in ordinary speech, 0 in silence; it scales the openings.
    Returns ARKit name → (N,) float64 weights in [0, 1].
    """
    times = np.arange(len(loudness)) / rate
    parts = segments(phonemes)
    raw = _dominance(parts, times)
    # the jaw is heavy, the lips are quick: Gaussians without lag (standard deviation in seconds)
    smooth = {name: _gaussian(value, (0.030 if name == "jawOpen" else 0.018) * rate) for name, value in raw.items()}
    gain = 0.72 + 0.28 * np.clip(loudness, 0, 1.6)
    for name in ("jawOpen", "mouthLowerDown", "mouthUpperUp"):
        smooth[name] = smooth[name] * gain
    _bite(smooth, parts, times)
    closure = bilabial_envelope(parts, times)
    for name in _OPENING:
        smooth[name] = smooth[name] * (1 - closure)
    for name, share in (("mouthPress", 0.25), ("mouthRollLower", 0.10), ("mouthRollUpper", 0.06)):
        smooth[name] = np.maximum(smooth[name] * (1 - closure), share * closure)
    smooth["jawOpen"] = smooth["jawOpen"] * (1 - 0.75 * closure)
    smooth["mouthClose"] = smooth["jawOpen"] * closure
    out: dict[str, np.ndarray] = {}
    for name, value in smooth.items():
        for sided in ((name + "Left", name + "Right") if name in _SIDED else (name,)):
            out[sided] = np.clip(value, 0, 1)
    return out


def _dominance(parts: list[Phoneme], times: np.ndarray) -> dict[str, np.ndarray]:
    """Strength-weighted mean of the segments' targets, channel by channel (Cohen & Massaro 1993)."""
    total = {name: np.full(len(times), 1e-6) for name in CHANNELS}
    value = {name: np.zeros(len(times)) for name in CHANNELS}
    for viseme, start, end in parts:
        silent, length = viseme == "sil", end - start
        inset = min(0.05, 0.3 * length) if silent else 0.3 * length
        away = np.maximum(0, np.maximum(start + inset - times, times - end + inset))
        strength = (min(2.5, length / 0.08) if silent else 1.0) * np.exp(-away / (0.035 if silent else 0.045))
        # rounding is anticipated earlier and outlasts its segment
        rounded = np.exp(-away / 0.075)
        for name in CHANNELS:
            specified = silent or viseme in _VOWELS or name in VISEMES[viseme]
            pull = (rounded if name in _ROUNDING and name in VISEMES[viseme] else strength) * (1.0 if specified else 0.12)
            total[name] += pull
            value[name] += pull * VISEMES[viseme].get(name, 0.0)
    return {name: value[name] / total[name] for name in CHANNELS}


def _bite(channels: dict[str, np.ndarray], parts: list[Phoneme], times: np.ndarray) -> None:
    """Bring the lower lip to the upper teeth on /f v/, whatever the neighbours want. Changes `channels`."""
    contact = _envelope(parts, times, "FF", hold=0.05)
    for name in CHANNELS:
        target = VISEMES["FF"].get(name)
        if target is not None:
            channels[name] = channels[name] * (1 - contact) + target * contact
        elif name in ("mouthLowerDown", "tongueOut"):
            channels[name] = channels[name] * (1 - contact)


def bilabial_envelope(parts: list[Phoneme], times: np.ndarray) -> np.ndarray:
    """How far the lips of `segments` must be closed at `times` (N,) s, from 0 to 1."""
    return _envelope(parts, times, "PP", hold=0.062)


def _envelope(parts: list[Phoneme], times: np.ndarray, viseme: str, hold: float) -> np.ndarray:
    """0…1 over time: 1 for at least `hold` seconds around each segment of `viseme`, with 70 ms raised-cosine flanks."""
    out = np.zeros(len(times))
    for name, start, end in parts:
        if name == viseme:
            centre, half = 0.5 * (start + end), max(hold, 0.7 * (end - start)) / 2
            away = np.clip((np.abs(times - centre) - half) / 0.07, 0, 1)
            out = np.maximum(out, 0.5 + 0.5 * np.cos(np.pi * away))
    return out


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing along time, edges repeated."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, sigma, mode="nearest")
