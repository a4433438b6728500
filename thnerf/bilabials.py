"""When lips must be closed: the probability of /p b m/ from the phones that pocketsphinx hears.

Forward–backward (Rabiner 1989) through a loop of all phones, each three states long at least, with the bigrams of pocketsphinx'
dictionary, over the posteriors of `thnerf.encoders.Phones`. A network trained on synthetic speech alone misses more of the closures of
real voices at the same rate of false ones (tests/benchmarks/bm_motion.py), because that acoustic model was trained on people.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import numpy as np

from thnerf import audio
from thnerf.encoders import Phones

BILABIALS = ("B", "M", "P")
SHARE = 0.5
"""Weight of the acoustic scores and of the bigrams: neighbouring frames are not independent."""
STAY = 0.75  # probability of staying in a state for another 10 ms
_STATES = 3
_EVERY = 7  # of the dictionary's words counts


def heard_bilabials(samples: np.ndarray, fps: float, frames: int) -> np.ndarray | None:
    """`bilabial_probability` where pocketsphinx is installed, else None."""
    return bilabial_probability(samples, fps, frames) if importlib.util.find_spec("pocketsphinx") is not None else None


def bilabial_probability(samples: np.ndarray, fps: float, frames: int) -> np.ndarray:
    """Mono samples (n,) at audio.RATE → (frames,) float32: the highest probability of a bilabial while each frame is shown.

    It depends on the whole sound. Raises InputError when pocketsphinx is not installed.
    """
    encoder = _encoder()
    mel = audio.log_mel(samples)
    score = SHARE * encoder.posteriors(samples, audio.speech_level(mel), len(mel)).astype(np.float64)
    said = phone_probabilities(score, _bigrams())[:, [encoder.names.index(n) for n in BILABIALS]].sum(1)
    first = np.minimum((np.arange(frames) / fps * audio.FEATURE_RATE).astype(int), len(said) - 1)
    last = np.minimum(((np.arange(frames) + 1) / fps * audio.FEATURE_RATE).astype(int), len(said) - 1)
    width = int((last - first).max(initial=0)) + 1
    return said[np.minimum(first[:, None] + np.arange(width), last[:, None])].max(1).astype(np.float32)


def phone_probabilities(score: np.ndarray, follow: np.ndarray) -> np.ndarray:
    """Log scores (T, P) and probabilities (P, P) of one phone following another → probabilities (T, P) given the whole sound."""
    T, P = score.shape
    weight = np.exp(score - score.max(1, keepdims=True))
    ahead, behind = np.empty((T, P, _STATES)), np.empty((T, P, _STATES))
    now = np.full((P, _STATES), 1.0 / (P * _STATES))
    for t in range(T):
        if t:
            moved = now * STAY
            moved[:, 1:] += now[:, :-1] * (1 - STAY)
            moved[:, 0] += now[:, -1] @ follow * (1 - STAY)
            now = moved
        now = now * weight[t][:, None]
        now /= now.sum()
        ahead[t] = now
    later = np.ones((P, _STATES))
    for t in range(T - 1, -1, -1):
        behind[t] = later
        seen = later * weight[t][:, None]
        later = seen * STAY
        later[:, :-1] += seen[:, 1:] * (1 - STAY)
        later[:, -1] += follow @ seen[:, 0] * (1 - STAY)
        later /= later.max()
    both = (ahead * behind).sum(2)
    return both / both.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _encoder() -> Phones:
    return Phones()


@lru_cache(maxsize=1)
def _bigrams() -> np.ndarray:
    """(P, P): how likely each phone follows another inside or between words, tempered by SHARE (rows do not add up to 1)."""
    import pocketsphinx

    index = {name: i for i, name in enumerate(_encoder().names)}
    count = np.full((len(index), len(index)), 0.5)
    with open(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"), encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if number % _EVERY == 0:
                phones = [index["SIL"], *(index[p] for p in line.split()[1:] if p in index), index["SIL"]]
                for a, b in zip(phones, phones[1:]):
                    count[a, b] += 1
    return (count / count.sum(1, keepdims=True)) ** SHARE
