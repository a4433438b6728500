"""Speech for `build_speech_prior.py`: what is said, by which voices, and how it is spoilt.

All of it is made here: eSpeak NG and the voices of `recorded_voices` read these sentences and random words, so phonemes and their times are exact,
and the phantom's rules (`thnerf.phantom.visemes`) turn them into mouth shapes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Iterator

import numpy as np

from thnerf.audio import RATE, resample
from thnerf.phantom.speech import Phoneme, speak
from thnerf_assets.recorded_voices import VOICES, read

SENTENCES: dict[str, tuple[str, ...]] = {
    "en": (
        "Maybe Peter bought the big map, but nobody wanted to carry it home.", "We usually have breakfast before the bus comes.",
        "The weather changed quickly, so everybody moved inside.", "My brother paid for the broken window with his own money.",
        "Please put the paper cup on top of the cupboard.", "Seven grey geese flew over the frozen lake.", "Why would you ask me about that again?",
        "Thousands of people watched the ships leave the harbour.", "She sells the best apple jam in the whole valley.",
        "I think the third chapter of this book is rather long.", "Give your father a hand with those heavy boxes.",
        "Number five, blue, at zero, please; now place red by nine again.", "The judge asked how often the machine had failed.",
        "A member of the public may vote by post.", "Children laugh when the clown bumps into the table.", "Nothing beats a warm bath after a long march in the rain.",
        "Could you show me where the museum keeps its old clocks?", "Good evening, and welcome to the programme.", "He whispered something, paused, and then went on.",
        "Our company employs about ninety women and eighty men.", "They voted for change, for hope and for better schools.", "Yes. No. Perhaps tomorrow, if it stops raining."),
    "de": (
        "Am Abend bummeln viele Menschen über die Brücke.", "Mein Bruder möchte bitte noch ein Butterbrot mit Pflaumenmus.", "Das Wetter wird morgen wohl etwas besser.",
        "Könnten Sie mir sagen, wo der Bahnhof liegt?", "Fünf junge Frauen wanderten fröhlich durch den Wald.", "Wir haben gestern lange über Politik gesprochen."),
    "fr": (
        "Ma mère prépare un bon repas pour toute la famille.", "Il pleut beaucoup à Paris, mais nous sommes partis quand même.", "Bonsoir, mes chers amis, merci d'être venus.",
        "Un petit bateau blanc passe devant le vieux pont.", "Je voudrais bien comprendre pourquoi vous partez.", "Le peuple a besoin de paix et de beaucoup de courage."),
    "es": (
        "Mi abuela prepara un buen plato de sopa con pan.", "Buenos días, ¿me puede ayudar con este problema?", "El perro blanco corre por la playa todas las mañanas.",
        "Mañana vamos a comprar fruta en el mercado.", "Nadie sabía por qué el tren había llegado tan tarde."),
    "it": (
        "Buongiorno, vorrei un bicchiere d'acqua, per favore.", "Il bambino gioca con la palla davanti alla porta.", "Mia mamma mi ha comprato un bel libro.",
        "Domani mattina partiamo presto per il mare."),
    "cmn": ("你好,妈妈今天买了很多苹果。", "我们明天早上坐火车去北京。", "请把那本白色的书放在门旁边。", "外面下雨了,朋友们都跑回房间。"),
    "ru": ("Мама мыла раму, а папа читал большую книгу.", "Завтра утром мы поедем в маленький город.", "Почему никто не помог моему брату?"),
    "pl": ("Babcia piekła bardzo dobre placki z jabłkami.", "Proszę mi powiedzieć, kiedy przyjedzie pociąg."),
    "pt": ("Minha mãe comprou um belo pão pela manhã.", "Bom dia, o senhor pode me ajudar, por favor?"),
    "nl": ("Mijn broer bakt op maandag brood met boter.", "Morgen gaan wij met de boot naar het eiland."),
    "hi": ("मेरी माँ बाज़ार से बहुत अच्छे फल लाती है।", "आप मुझे बताइए कि यह बस कब जाएगी।"),
    "ja": ("母は毎朝パンとバターを食べます。", "明日はともだちと海へ行きたいです。"),
}
"""Written for this project. English has most of the weight, and random words besides."""
ENGLISH = ("en-us", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbcwmd")
VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8", "+Annie", "+Andrea", "+belinda", "+caleb", "+david",
            "+edward", "+grandma", "+linda", "+marcelo", "+max", "+michael", "+Mike", "+paul", "+quincy", "+rob", "+steph", "+steph2", "+victor", "+zac",
            "+klatt", "+klatt2", "+klatt3", "+klatt4", "+croak")
_LETTERS = {"en": ("p b m t d k g f v th s z sh ch j h l r w n pl br st sp sm fr".split(), "a e i o u ee ai ow oo ar or ea".split(),
                    ["", "", "", *"p b m t d n k l s ng st mp ft sh ve ld".split()]),
            "cs": ("p b m t d k g f v s z š ž č j h l r n".split(), "a e i o u á é í ou ů".split(), ["", "", "", "m", "n", "s", "k", "t"]),
            "ru": ("п б м т д к г ф в с з ш ж ч х л р н".split(), "а о у э и ы е я".split(), ["", "", "", "м", "н", "с", "к", "т", "п"]),
            "it": ("p b m t d f v s l r n pr br st gn ci gi".split(), "a e i o u ia io".split(), ["", "", "", "n", "l", "r"]),
            "fi": ("p b m t d k v s j h l r n".split(), "a e i o u y aa ee ii uu oo".split(), ["", "", "", "n", "s", "t", "l"]),
            "ca": ("p b m t d f v s l r n g c x ll br pl".split(), "a e i o u ia".split(), ["", "", "", "m", "n", "s", "l", "p"])}
"""What syllables begin with, contain and end in, as each language spells it."""
RECORDED = 0.5  # of the utterances are read by voices made of recorded people


@dataclass
class Utterance:
    """samples (n,) float32 at RATE; phonemes with their times in s."""

    samples: np.ndarray
    phonemes: list[Phoneme]


def random_words(rng: np.random.Generator) -> str:
    """Five to nine made-up English words, so that every sound meets every other."""
    words = [_word("en", rng) for _ in range(rng.integers(5, 10))]
    return (words[0] + " " + " ".join(w + ("," if rng.random() < 0.12 else "") for w in words[1:])).rstrip(",") + "."


def made_up(language: str, rng: np.random.Generator) -> str:
    """The same in a language that `recorded_voices` speak."""
    return " ".join(_word(language, rng) + ("," if rng.random() < 0.12 else "") for _ in range(rng.integers(5, 10))).rstrip(",") + "."


def _word(language: str, rng: np.random.Generator) -> str:
    """One to three syllables."""
    onsets, nuclei, codas = _LETTERS[language]
    return "".join(rng.choice(onsets) + rng.choice(nuclei) + rng.choice(codas) for _ in range(rng.integers(1, 4)))


def utterances(count: int, seed: int) -> Iterator[Utterance]:
    """`count` utterances, none of which repeats voice, rate and pitch of another; the voice is made larger or smaller by resampling."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        kind = rng.random()
        if rng.random() < RECORDED:
            reader = VOICES[rng.integers(len(VOICES))]
            text = made_up(reader.language, rng) if reader.language != "en" else random_words(rng) if kind < 0.5 else str(rng.choice(SENTENCES["en"]))
            samples, phonemes = read(text, reader, float(np.exp(rng.uniform(-0.25, 0.2))))
            rate = RATE
        else:
            language = "en" if kind < 0.7 else str(rng.choice([k for k in SENTENCES if k != "en"]))
            text = random_words(rng) if kind < 0.35 else str(rng.choice(SENTENCES[language]))
            voice = (str(rng.choice(ENGLISH)) if language == "en" else language) + str(rng.choice(VARIANTS))
            samples, rate, phonemes = speak(text, voice, int(rng.integers(115, 225)), int(rng.integers(10, 90)))
        size = float(np.exp(rng.uniform(-0.15, 0.15)))
        samples = resample(samples, int(rate * size), RATE)
        lead, tail = (rng.uniform(0.1, 1.2, 2) * RATE).astype(int)
        shift = lead / RATE
        moved = [("_", 0.0, shift), *((symbol, a / size + shift, b / size + shift) for symbol, a, b in phonemes)]
        total = len(samples) + lead + tail
        yield Utterance(np.pad(samples, (lead, tail)), [*moved, ("_", moved[-1][2], total / RATE)])


def noise(rng: np.random.Generator, count: int) -> np.ndarray:
    """Background (count,) of about unit power: coloured noise that swells, hum, clicks or music."""
    kind = rng.integers(4)
    time = np.arange(count) / RATE
    if kind == 3:
        return music(rng, count)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0)
    sound = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1.2), count)
    sound *= 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.1, 3) * time + rng.uniform(0, 6)) * rng.random()
    if kind == 1:
        base = rng.choice([50, 60, 100, 120])
        sound = 0.3 * sound / sound.std() + sum(rng.random() / k * np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) for k in range(1, 9))
    if kind == 2:
        clicks = np.zeros(count)
        clicks[rng.integers(0, count, rng.integers(2, 12))] = rng.uniform(3, 30)
        ring = np.exp(-np.arange(400) / rng.uniform(10, 120)) * rng.standard_normal(400)
        sound = sound / sound.std() + np.convolve(clicks, ring)[:count]
    return sound / (sound.std() + 1e-9)


def music(rng: np.random.Generator, count: int) -> np.ndarray:
    """Plucked or held chords with overtones, and sometimes drums: unit power (count,)."""
    sound, at, time = np.zeros(count), 0, np.arange(count) / RATE
    beat = int(rng.uniform(0.2, 0.7) * RATE)
    decay, held = rng.uniform(0.15, 1.0), rng.random() < 0.4
    root = 110 * 2 ** rng.uniform(0, 1.5)
    while at < count:
        n = min(count - at, 3 * beat)
        local = time[:n]
        shape = np.minimum(1, local / 0.05) * np.clip((local[-1] - local) / 0.05, 0, 1) if held else np.minimum(1, local / 0.005) * np.exp(-local / decay)
        for step in rng.choice([0, 3, 4, 5, 7, 9, 12, 16], rng.integers(1, 4), replace=False):
            pitch = root * 2 ** (step / 12)
            vibrato = 0.4 * np.sin(2 * np.pi * 5 * local) * (rng.random() < 0.3)
            sound[at : at + n] += shape * sum(np.sin(2 * np.pi * pitch * k * local + vibrato * k + rng.uniform(0, 6)) / k ** rng.uniform(1, 2) for k in range(1, 7))
        if rng.random() < 0.5:
            m = min(n, 2400)
            sound[at : at + m] += 2 * rng.standard_normal(m) * np.exp(-np.arange(m) / rng.uniform(100, 900))
        at += beat
    return sound / (sound.std() + 1e-9)


def spoil(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech (n,) through a room, a microphone, noise and a telephone or codec, each only sometimes; never delayed."""
    x = np.asarray(samples, np.float64)
    level = np.sqrt(np.mean(x[np.abs(x) > 0.02 * np.abs(x).max()] ** 2)) if np.abs(x).max() > 0 else 1.0
    if rng.random() < 0.4:
        length = int(rng.uniform(0.1, 0.6) * RATE)
        tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
        tail[: int(0.004 * RATE)] = 0
        tail *= rng.uniform(0.15, 0.9) / np.sqrt((tail**2).sum())
        tail[0] = 1
        x = _convolve(x, tail)
    if rng.random() < 0.7:
        spectrum, bands = np.fft.rfft(x), rng.normal(0, 4, 8)
        grid = np.linspace(0, 1, 8)
        x = np.fft.irfft(spectrum * 10 ** (np.interp(np.linspace(0, 1, len(spectrum)) ** 0.6, grid, bands) / 20), len(x))
    if rng.random() < 0.75:
        x = x + noise(rng, len(x)) * level * 10 ** (-rng.uniform(6, 45) / 20)
    if rng.random() < 0.3:
        x = telephone(x, str(rng.choice(["ULAW", "ALAW", "GSM610", "IMA_ADPCM"])), 8000 if rng.random() < 0.6 else RATE)
    return (0.5 * x / (np.abs(x).max() + 1e-9)).astype(np.float32)


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    from scipy.signal import fftconvolve

    return fftconvolve(x, kernel)[: len(x)]


def telephone(x: np.ndarray, codec: str, rate: int) -> np.ndarray:
    """Samples (n,) through a waveform codec of libsndfile at `rate` Hz and back, without delay."""
    import soundfile

    rate = 8000 if codec == "GSM610" else rate
    narrow = resample((0.8 * x / (np.abs(x).max() + 1e-9)).astype(np.float32), RATE, rate)
    file = io.BytesIO()
    soundfile.write(file, narrow, rate, format="WAV", subtype=codec)
    file.seek(0)
    back = resample(soundfile.read(file, dtype="float32")[0], rate, RATE)[: len(x)]
    return np.pad(back, (0, len(x) - len(back))).astype(np.float64)
