"""Houdini's ASCII .clip for a File CHOP: named channels with sample rate and start.

Channels: tx ty tz rx ry rz of the head, eye_left_rx … eye_right_rz, then the expressions. Degrees, rotation order XYZ (Houdini's default). One block
with rate, start, tracklength and tracks, then one block a channel with its name and data; a run of n equal values may stand as @n value.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.curves import assemble
from thnerf.export.names import identifiers
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.space import Space, to_euler
from thnerf.export.text import MAX_FRAMES, read_text

UNIT = "m"
ORDER = "xyz"


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write a .clip, atomically."""
    track, space = scene.track, scene.space(options, UNIT)
    matrix, position = space.head(track.rotation, track.translation)
    channels = dict(zip(("tx", "ty", "tz", "rx", "ry", "rz"), np.concatenate([position, to_euler(matrix, ORDER)], 1).T))
    if options.eyes == "rotation":
        turns = space.eyes(scene.gaze(options))
        for side, eye in enumerate(("eye_right", "eye_left") if options.sides == "viewer" else ("eye_left", "eye_right")):
            channels |= dict(zip((f"{eye}_r{a}" for a in "xyz"), to_euler(turns[:, side], ORDER).T))
    names = identifiers([*channels, *scene.names(options)])  # an expression of the same name gets another one
    values = [*channels.values(), *track.expression.T]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.write(f"{{\n   rate = {track.fps:.10g}\n   start = {options.first_frame(track.fps)}\n   tracklength = {len(track)}\n   tracks = {len(values)}\n")
        for name, samples in zip(names, values):
            data = " ".join(f"{v:.7f}" for v in (np.round(samples.astype(np.float64), 7) + 0.0).tolist())
            stream.write(f"   {{\n      name = {name}\n      data = {data}\n   }}\n")
        stream.write("}\n")


def read(path: Path, options: ExportOptions) -> Imported:
    """Read a .clip: head and eyes from the channels above, everything else as expressions. Raises InputError."""
    head, tracks = parse(read_text(path), str(path))
    nodes: dict[str, dict[str, np.ndarray]] = {}
    weights: dict[str, np.ndarray] = {}
    for name, data in tracks.items():
        match = re.fullmatch(r"(?:(\w+?)_|(.+)[:/])?([tr][xyz])", name)
        if match and plain_node(match[1] or match[2]) in ("head", "eye_left", "eye_right"):
            nodes.setdefault(plain_node(match[1] or match[2]), {})[match[3]] = data
        else:
            weights[name] = data
    fps = head.get("rate")
    return assemble(fps, weights, nodes, Space(options.scale(UNIT), options.up), options, str(path), ORDER)


def plain_node(name: str | None) -> str:
    """The object that a channel's prefix means; none means the head."""
    return "head" if not name else name.strip("/").rsplit("/", 1)[-1].lower()


def parse(text: str, what: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Numbers of the outer block and the samples of each channel. Raises InputError when it is no .clip."""
    inner = re.findall(r"\{([^{}]*)\}", text)
    outer = re.sub(r"\{[^{}]*\}", "", text)
    if not outer.strip().startswith("{") or not inner:
        raise InputError(f"{what} is no ASCII .clip with channels; save it from a CHOP as .clip (not .bclip)")
    head: dict[str, float] = {}
    for key, value in re.findall(r"^\s*(rate|start|tracklength|tracks)\s*=\s*(\S+)\s*$", outer, re.M):
        try:
            head[key] = float(value)
        except ValueError:
            raise InputError(f"{what}: {key} is {value[:40]!r} and no number") from None
    length = head.get("tracklength", 0)
    if not 1 <= length <= MAX_FRAMES or length != int(length):
        raise InputError(f"{what} has no tracklength between 1 and {MAX_FRAMES}")
    if length * len(inner) > 3e7:
        raise InputError(f"{what} has more samples than can be read; cut it into parts")
    tracks: dict[str, np.ndarray] = {}
    for block in inner:
        name = re.search(r"^\s*name\s*=\s*(.+?)\s*$", block, re.M)
        data = re.search(r"^\s*data(?:_rle)?\s*=\s*([^=]*?)\s*(?:^\s*\w+\s*=|\Z)", block, re.M | re.S)
        if name and data:
            tracks.setdefault(name[1], _samples(data[1], int(length), f"{what}: channel {name[1][:60]}"))
    return head, tracks


def _samples(text: str, length: int, what: str) -> np.ndarray:
    """Samples (length,) with runs written out. Raises InputError when there are more or fewer, or they are no numbers."""
    out: list[float] = []
    words = iter(text.split())
    try:
        for word in words:
            if word.startswith("@"):
                count = int(word[1:])
                if not 0 <= count <= length - len(out):
                    raise InputError(f"{what} has a run that is longer than the clip")
                out += [float(next(words, "nan"))] * count
            else:
                out.append(float(word))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{what} has something other than numbers ({error})") from None
    if len(out) != length or not np.isfinite(out).all():
        raise InputError(f"{what} has {len(out)} finite samples instead of {length}")
    return np.array(out)
