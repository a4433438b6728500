"""When lips must be closed: the probability of /p b m/ from the phones that pocketsphinx hears.

Forward–backward (Rabiner 1989) through a loop of all phones, each three states long at least, with the bigrams of pocketsphinx'
dictionary, over the posteriors of `thnerf.encoders.Phones`. A network trained on synthetic speech alone misses more of the closures of
real voices at the same rate of false ones (tests/benchmarks/bm_motion.py), because that acoustic model was trained on people.

Words help where phones alone are doubtful: pocketsphinx' language model finds likely words, each is aligned to the sound, and its bilabials
count as much as it and the words around it are sure, by their posterior probability in the word lattice (Wessel et al. 2001). Even wrong words
share most of their sounds with what was said. In a Mandarin and a French clip the words found are less sure (0.4 on average, in read English 0.7), so
little changes there; bilabials of such sounds are heard less.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import numpy as np

from thnerf import audio
from thnerf.alignment import best_path
from thnerf.encoders import BLOCK, Phones, pcm16

BILABIALS = ("B", "M", "P")
SHARE = 0.5
"""Weight of the acoustic scores and of the bigrams: neighbouring frames are not independent."""
STAY = 0.75  # probability of staying in a state for another 10 ms
WORD_HAS, WORD_LACKS = 8.0, -3.0
"""Log likelihood ratio of a bilabial where a word has one, and where it has none, were all words sure. A sure word in read English, whose words are sure
by 0.7 on average, has 5.6 and -2.1: about the log of the shares of bilabials and of other frames in which words had one (0.92 to 0.005) or none."""
KNOWN, DOUBT = (0.44, 0.56), 6.0
"""How sure words are, on average over a sound, up to which it is hardly the English that the acoustic model knows, and from which it is (Mandarin 0.37, French 0.43; English
from 0.57 on in four voices); by how much log odds are lowered in the first case, for such a voice shuts the lips at the wrong times."""
EXPECTED = 100
"""Rows of 10 ms, of hardly any English, that every sound is taken to have beside its own: a word or two say little."""
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
    level = audio.speech_level(mel)
    score = encoder.posteriors(samples, level, len(mel)).astype(np.float64)
    heard = np.clip(phone_probabilities(SHARE * score, _bigrams())[:, _columns()].sum(1), 1e-3, 1 - 1e-3)
    evidence, doubt = word_evidence(pcm16(samples, level), score)
    said = 1 / (1 + (1 - heard) / heard * np.exp(doubt - evidence))
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


def word_evidence(raw: bytes, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """16-bit samples at audio.RATE and log scores (T, phones) at 100 Hz → (T,) log likelihood ratio of a bilabial by the words in them, 0 where there are none,
    and by how much (T,) all of it is doubted because the words are no English."""
    decoder, names, out, doubt = _recogniser(), _encoder().names, np.zeros(len(score)), np.zeros(len(score))
    size = 2 * round(BLOCK * audio.RATE)
    for block in range(0, len(raw), size):
        decoder.reinit_feat()  # forgets the noise of what it heard before: the same sound gives the same words
        decoder.start_utt()
        decoder.process_raw(raw[block : block + size], full_utt=True)
        decoder.end_utt()
        first = block // 320 + 1  # a frame of PocketSphinx is centred 13 ms after its start
        words = [w for w in decoder.seg() if w.word[0] not in "<[+"] if decoder.hyp() is not None else []  # without silence and noises
        length = np.array([w.end_frame - w.start_frame + 1 for w in words])
        sure = np.minimum([w.prob for w in words], 1.0)
        certain = length @ sure / max(length.sum(), 1)
        known = (length @ sure + EXPECTED * KNOWN[0]) / (length.sum() + EXPECTED)
        doubt[first - 1 : first - 1 + size // 320] = DOUBT * np.clip((KNOWN[1] - known) / (KNOWN[1] - KNOWN[0]), 0, 1)
        for word, weight in zip(words, sure * certain):
            part = slice(first + word.start_frame, first + word.end_frame + 1)
            states = np.repeat([names.index(p) for p in decoder.lookup_word(word.word).split()], _STATES)
            if len(score[part]) >= len(states):
                path = states[best_path(score[part][:, states], np.zeros(len(states), bool))]
                out[part] = weight * np.where(np.isin(path, _columns()), WORD_HAS, WORD_LACKS)
    return out, doubt


@lru_cache(maxsize=1)
def _encoder() -> Phones:
    return Phones()


def _columns() -> list[int]:
    return [_encoder().names.index(n) for n in BILABIALS]


@lru_cache(maxsize=1)
def _recogniser() -> Any:
    """pocketsphinx with its US-English language model, in one pass: narrower beams are quicker still, but leave out the words that rival others, so all seem sure."""
    import pocketsphinx

    return pocketsphinx.Decoder(fwdflat=False, maxhmmpf=1500, maxwpf=20, loglevel="FATAL")


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
