"""OpenEXR pictures without a library: scan-line files of 32-bit float channels with ZIP compression, readable by every compositor.

The layout is that of the OpenEXR file format, version 2 (openexr.com, "OpenEXR File Layout"). `read_exr` reads what `write_exr` writes.
"""

from __future__ import annotations

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Mapping

import numpy as np

from render.files import InputError

_MAGIC, _LINES = b"\x76\x2f\x31\x01\x02\x00\x00\x00", 16  # 16 scan lines are compressed together


def write_exr(path: str | os.PathLike[str], image: np.ndarray, notes: Mapping[str, str] = {}, fps: float = 0.0, names: str = "") -> None:
    """Write (H,W,C) float32 as it is. names: one letter a channel, by default RGB, RGBA, or Z for one channel."""
    height, width, count = image.shape
    names = names or {1: "Z", 2: "ZA", 3: "RGB", 4: "RGBA"}[count]
    order = sorted(range(count), key=lambda i: names[i])  # channels lie in alphabetical order
    channels = b"".join(names[i].encode() + b"\0" + struct.pack("<iB3xii", 2, 0, 1, 1) for i in order) + b"\0"
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = [("channels", "chlist", channels), ("compression", "compression", b"\x03"), ("dataWindow", "box2i", window), ("displayWindow", "box2i", window),
                  ("lineOrder", "lineOrder", b"\0"), ("pixelAspectRatio", "float", struct.pack("<f", 1)), ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
                  ("screenWindowWidth", "float", struct.pack("<f", 1))]
    if fps:
        rate = Fraction(fps).limit_denominator(100000)
        attributes.append(("framesPerSecond", "rational", struct.pack("<iI", rate.numerator, rate.denominator)))
    attributes += [(name, "string", text.encode()) for name, text in notes.items()]
    header = _MAGIC + b"".join(n.encode() + b"\0" + t.encode() + b"\0" + struct.pack("<i", len(v)) + v for n, t, v in attributes) + b"\0"
    lines = np.ascontiguousarray(np.moveaxis(image[..., order], 2, 1), "<f4")  # (H, channels, W)
    blocks = [_squeeze(lines[y : y + _LINES].tobytes()) for y in range(0, height, _LINES)]
    starts, at = [], len(header) + 8 * len(blocks)
    for block in blocks:
        starts.append(at)
        at += 8 + len(block)
    with open(path, "wb") as stream:
        stream.write(header + struct.pack(f"<{len(starts)}Q", *starts))
        for i, block in enumerate(blocks):
            stream.write(struct.pack("<2i", i * _LINES, len(block)) + block)


def _squeeze(raw: bytes) -> bytes:
    """One block: bytes of even and odd place apart, differences, deflate; as it is where that is no smaller."""
    data = np.frombuffer(raw, np.uint8)
    data = np.concatenate([data[::2], data[1::2]]).astype(np.int16)
    data[1:] = data[1:] - data[:-1] + 128
    packed = zlib.compress(data.astype(np.uint8).tobytes(), 4)
    return packed if len(packed) < len(raw) else raw


def _unsqueeze(block: bytes, size: int) -> bytes:
    if len(block) == size:
        return block
    data = np.frombuffer(zlib.decompress(block), np.uint8).astype(np.int64)
    data[1:] -= 128
    data = np.cumsum(data).astype(np.uint8)
    out = np.empty(size, np.uint8)
    out[::2], out[1::2] = data[: (size + 1) // 2], data[(size + 1) // 2 :]
    return out.tobytes()


def read_exr(path: str | os.PathLike[str]) -> tuple[np.ndarray, str]:
    """(H,W,C) float32 and the channels' letters (alphabetical) of a file of `write_exr`. Raises InputError for any other file."""
    data = Path(path).read_bytes()
    try:
        if data[:8] != _MAGIC:
            raise ValueError("it is no plain scan-line EXR")
        at, attributes = 8, {}
        while data[at]:
            name, kind, at = *(data[at:].split(b"\0", 2)[:2]), at
            at += len(name) + len(kind) + 2
            (size,) = struct.unpack_from("<i", data, at)
            attributes[name.decode()], at = data[at + 4 : at + 4 + size], at + 4 + size
        names, rest = "", attributes["channels"]
        while rest[0]:
            names, pixel, rest = names + chr(rest[0]), struct.unpack_from("<i", rest, 2)[0], rest[18:]
            if pixel != 2 or rest is None:
                raise ValueError("its channels are not 32-bit float")
        x0, y0, x1, y1 = struct.unpack("<4i", attributes["dataWindow"])
        width, height = x1 - x0 + 1, y1 - y0 + 1
        starts = struct.unpack_from(f"<{-(-height // _LINES)}Q", data, at + 1)
        out = np.empty((height, len(names), width), np.float32)
        for start in starts:
            y, size = struct.unpack_from("<2i", data, start)
            lines = out[y : y + _LINES]
            lines[:] = np.frombuffer(_unsqueeze(data[start + 8 : start + 8 + size], lines.nbytes), "<f4").reshape(lines.shape)
    except (ValueError, KeyError, IndexError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is not an EXR of thnerf ({error})") from None
    return np.moveaxis(out, 1, 2), names
