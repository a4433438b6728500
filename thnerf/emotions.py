"""Emotions as offsets of ARKit weights: named, scaled, timed from a CSV, and added so that lips keep articulating.

An offset o moves a weight x towards a bound by a share: x + o·(1 − x) upwards, x + o·x downwards. So a weight in [0, 1] stays
there, nothing saturates abruptly, and speech keeps moving on top. What would part the lips fades where speech closes them.
The combinations follow the action units that go with each emotion (Ekman & Friesen, Facial Action Coding System, 1978).
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from render.files import InputError
from thnerf.manner import Manner

EASE = 0.4
"""Seconds over which a timed emotion comes and goes, at most half its length."""
STRONGEST = 2.0
_OPENS = 0.15  # mm of lip gap from which an offset counts as parting the lips
_CLOSED = 0.3  # share of the subject's usual opening below which such offsets fade

_SIDES = ("Left", "Right")
_BOTH = {
    "happy": {"mouthSmile": 0.4, "cheekSquint": 0.35, "eyeSquint": 0.2, "mouthDimple": 0.12, "mouthUpperUp": 0.06, "browOuterUp": 0.08, "mouthFrown": -0.8, "browDown": -0.4},
    "sad": {"mouthFrown": 0.4, "eyeBlink": 0.1, "mouthSmile": -0.8, "mouthStretch": 0.08, "browDown": 0.1, "browOuterUp": -0.6, "eyeWide": -0.8},
    "angry": {"browDown": 0.65, "noseSneer": 0.3, "eyeSquint": 0.2, "mouthPress": 0.12, "mouthFrown": 0.15, "mouthSmile": -0.7, "browOuterUp": -0.5, "eyeWide": 0.15},
    "surprised": {"browOuterUp": 0.65, "eyeWide": 0.5, "browDown": -0.9, "eyeSquint": -0.8, "mouthSmile": -0.3},
}
_SINGLE = {
    "sad": {"browInnerUp": 0.6, "mouthShrugLower": 0.15},
    "angry": {"browInnerUp": -0.6, "jawForward": 0.15},
    "surprised": {"browInnerUp": 0.55, "jawOpen": 0.14, "mouthFunnel": 0.05},
}
EMOTIONS: dict[str, dict[str, float]] = {"neutral": {}, **{
    name: {**{stem + side: value for stem, value in both.items() for side in _SIDES}, **_SINGLE.get(name, {})} for name, both in _BOTH.items()}}
"""Offsets of ARKit weights by emotion, at strength 1."""


@dataclass(frozen=True)
class TimedEmotion:
    """One emotion from start to end (s); strength 1 is the usual one."""

    start: float
    end: float
    name: str
    strength: float = 1.0

    def weight(self, times: np.ndarray) -> np.ndarray:
        """How much of it shows at times (T,) s: strength inside, eased in and out; without bounds always."""
        if math.isinf(self.end):
            return np.full(len(times), self.strength)
        ease = min(EASE, (self.end - self.start) / 2)
        t = np.clip(np.minimum(times - self.start, self.end - times) / ease, 0, 1)
        return self.strength * t * t * (3 - 2 * t)


def _checked(name: str, strength: str, where: str) -> tuple[str, float]:
    """A known emotion and a usable strength. Raises InputError that begins with `where`."""
    name = name.strip().lower()
    if name not in EMOTIONS:
        from difflib import get_close_matches

        near = get_close_matches(name, EMOTIONS, 1, 0.6)
        raise InputError(f"{where} names the emotion {name!r}; choose {', '.join(EMOTIONS)}" + (f" (did you mean {near[0]}?)" if near else ""))
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not 0 <= value <= STRONGEST:
        raise InputError(f"{where} has the strength {strength.strip()!r}; it takes a number from 0 to {STRONGEST:g}, 1 being the usual one")
    return name, value


def parse_emotion(text: str) -> list[TimedEmotion]:
    """What `--emotion` means: NAME, NAME:STRENGTH, or a CSV file (see `read_emotions`). Raises InputError."""
    if text.lower().endswith(".csv") or ("." in text and Path(text).is_file()):
        return read_emotions(text)
    name, _, strength = text.partition(":")
    name, value = _checked(name, strength if ":" in text else "1", "--emotion")
    return [] if name == "neutral" or value == 0 else [TimedEmotion(-math.inf, math.inf, name, value)]


def read_emotions(path: str | Path) -> list[TimedEmotion]:
    """Timed emotions of a CSV: start, end (s), emotion and, optionally, strength; a heading and lines that begin with # may be there.

    Overlapping ones add up. Raises InputError with the line's number for anything else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a CSV with start,end,emotion,strength, or an emotion by name") from None
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path} is not a readable CSV; save it again as UTF-8 text") from None
    found: list[TimedEmotion] = []
    try:
        for number, row in enumerate(csv.reader(text.splitlines()), 1):
            cells = [c.strip() for c in row]
            if not any(cells) or cells[0].startswith("#") or (not found and cells[0].lower() == "start"):
                continue
            where = f"{path} line {number}"
            if len(cells) not in (3, 4):
                raise InputError(f"{where} has {len(cells)} values; each line is start,end,emotion or start,end,emotion,strength")
            try:
                start, end = float(cells[0]), float(cells[1])
            except ValueError:
                start = end = math.nan
            if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
                raise InputError(f"{where} lasts from {cells[0]!r} to {cells[1]!r}; give seconds from the beginning, the end after the start")
            found.append(TimedEmotion(start, end, *_checked(cells[2], cells[3] if len(cells) == 4 and cells[3] else "1", where)))
    except csv.Error as error:
        raise InputError(f"{path} is not a readable CSV ({error}); save it again as UTF-8 text") from None
    if not found:
        raise InputError(f"{path} has no line with an emotion; write start,end,emotion,strength, for example 1.5,4,happy,0.8")
    return found


def add_emotions(expression: np.ndarray, emotions: list[TimedEmotion], fps: float, manner: Manner, start: float = 0.0) -> np.ndarray:
    """ARKit weights (T,E) with emotions added, float64; without emotions, or with strength 0, exactly what came in. start: when the first frame is shown, s.

    Raises InputError when the face model has no ARKit weights.
    """
    x = np.asarray(expression, np.float64)
    if not emotions:
        return x
    missing = sorted({n for e in emotions for n in EMOTIONS[e.name]} - set(manner.names))
    if "jawOpen" not in manner.names or len(missing) > 4:
        raise InputError("--emotion moves ARKit weights, which this subject's face model does not have; use --expression-offset with its own names")
    times = start + (np.arange(len(x)) + 0.5) / fps
    total = np.zeros_like(x)
    for emotion in emotions:
        weight = emotion.weight(times)
        for name, offset in EMOTIONS[emotion.name].items():
            if name in manner.names:
                total[:, manner.names.index(name)] += weight * offset
    shut = np.clip(manner.gap(x) / (_CLOSED * manner.reach), 0, 1)
    shut = shut * shut * (3 - 2 * shut)
    parting = np.abs(total).max(0) * manner.opening > _OPENS
    total[:, parting & (total.max(0) > 0)] *= shut[:, None]
    total = np.clip(total, -1, 1)
    return np.where(total > 0, x + total * (1 - x), x + total * x)
