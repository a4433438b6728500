"""Forced alignment: when each phone of a known English text is said, by the acoustic model of `thnerf.encoders.Phones`.

Viterbi search (Rabiner 1989) through the phones of the text in their order, each at least 30 ms long, with silence allowed
between words. Whole texts serve measurements and the building of `speech_prior.safetensors`; `thnerf.bilabials` aligns single words.
"""

from __future__ import annotations

import numpy as np

from render.files import InputError
from thnerf import audio
from thnerf.encoders import Phones

BILABIALS = frozenset("PBM")
SILENCE = "SIL"
_NOISES = ("+NSN+", "+SPN+")
_SHORTEST = 3  # frames of a phone


def forced_alignment(samples: np.ndarray, text: str, encoder: Phones | None = None) -> list[tuple[str, float, float]]:
    """Mono samples (n,) at audio.RATE and what is said in them → [(ARPAbet phone or 'SIL', start s, end s)] that tile the sound.

    Words take their first pronunciation in the dictionary of pocketsphinx. Raises InputError for a word that it lacks, and for a sound
    too short for its text.
    """
    import pocketsphinx

    encoder, dictionary = encoder or Phones(), pocketsphinx.Decoder(lm=None, loglevel="FATAL")
    mel = audio.log_mel(samples)
    score = encoder.posteriors(samples, audio.speech_level(mel), len(mel)).astype(np.float64)
    names = list(encoder.names)
    quiet = names.index(SILENCE)
    score[:, quiet] = score[:, [quiet, *map(names.index, _NOISES)]].max(1)
    phones, optional = [SILENCE], [True]
    for word in text.lower().split():
        said = dictionary.lookup_word(word)
        if said is None:
            raise InputError(f"the dictionary of pocketsphinx has no word {word!r}; spell it otherwise")
        phones += [*said.split(), SILENCE]
        optional += [*[False] * len(said.split()), True]
    owner = np.concatenate([np.full(1 if o else _SHORTEST, k) for k, o in enumerate(optional)])
    path = owner[best_path(score[:, [names.index(phones[k]) for k in owner]], np.array(optional)[owner])]
    edges = np.r_[0, np.flatnonzero(np.diff(path)) + 1, len(path)]
    return [(phones[path[a]], max(0.0, (a - 0.5) / audio.FEATURE_RATE), (b - 0.5) / audio.FEATURE_RATE) for a, b in zip(edges, edges[1:])]


def best_path(score: np.ndarray, optional: np.ndarray) -> np.ndarray:
    """Likeliest left-to-right path (T,) through the states whose log scores are (T, N); the optional (N,) bool ones may be left out.

    Raises InputError where T is less than the states that may not.
    """
    T, N = score.shape
    if T < (~optional).sum():
        raise InputError("the sound is too short for its text; give the words that are said in it")
    padded, back = np.full(N + 2, -1e18), np.zeros((T, N), np.int64)  # two states before the first that nothing is in
    best = padded[2:]
    best[:2] = score[0, :2]
    skips = np.r_[False, False, optional[1:-1] & ~optional[2:]]
    for t in range(1, T):
        options = np.stack([best, padded[1:-1], np.where(skips, padded[:-2], -1e18)])
        back[t] = options.argmax(0)
        best[:] = options.max(0) + score[t]
    state = N - 1 if best[-1] > best[-2] else N - 2
    path = np.empty(T, int)
    for t in range(T - 1, -1, -1):
        path[t] = state
        state -= int(back[t, state])
    return path
