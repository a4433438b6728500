"""Names of expressions across programs: jawOpen, JawOpen, jaw_open, head.jawOpen, browDown_L are the same weights."""

from __future__ import annotations

import re
from typing import Iterable, Sequence

ARKIT: tuple[str, ...] = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight",
    "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight",
    "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower",
    "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut",
)
"""The 52 blend-shape locations of Apple's ARKit, in alphabetical order."""


def plain(name: str) -> str:
    """A name without case, separators and the path or node before it; a last _L or _R is spelt out."""
    last = re.split(r"[.:|/]", name.strip())[-1]
    short = re.sub(r"[_\-\s]+([LlRr])$", lambda m: {"l": "left", "r": "right"}[m[1].lower()], last)
    return re.sub(r"[^a-z0-9]", "", short.lower())


def swap_side(name: str) -> str:
    """The name of the other side, where a name ends in Left or Right (also _L, _R); else the name itself."""
    for a, b in (("Left", "Right"), ("left", "right"), ("_L", "_R"), ("_l", "_r")):
        for one, other in ((a, b), (b, a)):
            if name.endswith(one):
                return name[: -len(one)] + other
    return name


def match(found: Sequence[str], wanted: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """Which of the file's names mean which of the model's: {index in wanted: index in found}, and the names that mean none.

    An exact name wins over a spelling of it; of two spellings of one name the first wins and the other is listed.
    """
    exact = {name: i for i, name in enumerate(wanted)}
    spelt: dict[str, int] = {}
    for i, name in enumerate(wanted):
        spelt.setdefault(plain(name), i)
    pairs: dict[int, int] = {}
    order = sorted(range(len(found)), key=lambda j: found[j] not in exact)
    for j in order:
        i = exact.get(found[j], spelt.get(plain(found[j])))
        if i is not None and i not in pairs:
            pairs[i] = j
    used = set(pairs.values())
    return pairs, [name for j, name in enumerate(found) if j not in used]


def identifiers(names: Iterable[str]) -> list[str]:
    """Names that node attributes may have: letters, digits and _, not beginning with a digit, each once."""
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
        base = "_" + base if base[0].isdigit() else base
        fresh, count = base, 1
        while fresh in taken:
            count += 1
            fresh = f"{base}_{count}"
        taken.add(fresh)
        out.append(fresh)
    return out
