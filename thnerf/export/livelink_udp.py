"""Live Link Face over UDP, as the iOS app streams it (protocol version 6) and Unreal's Live Link receives it on port 11111.

One packet a frame, big-endian: version (1 byte), device id and subject name (each a 4-byte length and UTF-8), frame (int32), part of the
frame (float32), frames per second as numerator and denominator (int32 each), the number of values (1 byte, 61), the values (float32). They are those
of the CSV (`thnerf.export.livelink`), but with JawLeft before JawRight and MouthLeft before MouthRight. Layout and order were compared with the
engine's packet definition and with receivers of the app's packets.
"""

from __future__ import annotations

import socket
import struct
import uuid
from dataclasses import dataclass
from fractions import Fraction
from typing import Mapping

import numpy as np

from recon.lines import MotionFrame
from render.files import InputError
from render.rotations import head_angles
from thnerf.export.livelink import ANGLES, APP_SIGNS, BLEND_SHAPES
from thnerf.export.options import ExportOptions, check_fps

VERSION = 6
PORT = 11111
_SWAPPED = {"JawRight": "JawLeft", "JawLeft": "JawRight", "MouthRight": "MouthLeft", "MouthLeft": "MouthRight"}
UDP_SHAPES: tuple[str, ...] = tuple(_SWAPPED.get(name, name) for name in BLEND_SHAPES)
"""The 52 weights in the order of the packets."""
MAX_NAME = 256


@dataclass(frozen=True)
class Packet:
    """One frame. values (61,): the weights in the order of UDP_SHAPES, then ANGLES."""

    device: str
    subject: str
    frame: int
    part: float
    fps: Fraction
    values: np.ndarray

    def encode(self) -> bytes:
        """The bytes of the packet."""
        names = b"".join(struct.pack(">i", len(raw)) + raw for raw in (_short(self.device), _short(self.subject)))
        time = struct.pack(">ifii", self.frame, self.part, self.fps.numerator, self.fps.denominator)
        values = np.asarray(self.values, ">f4")
        return struct.pack(">B", VERSION) + names + time + struct.pack(">B", len(values)) + values.tobytes()


def decode(data: bytes) -> Packet:
    """The inverse of `Packet.encode`. Raises InputError for anything else."""
    try:
        if data[0] != VERSION:
            raise InputError(f"this is a Live Link packet of version {data[0]}, not {VERSION}")
        at, names = 1, []
        for _ in range(2):
            (length,) = struct.unpack_from(">i", data, at)
            if not 0 <= length <= 4 * MAX_NAME or at + 4 + length > len(data):
                raise ValueError("a name is longer than the packet")
            names.append(data[at + 4 : at + 4 + length].decode("utf-8"))
            at += 4 + length
        frame, part, numerator, denominator = struct.unpack_from(">ifii", data, at)
        (count,) = struct.unpack_from(">B", data, at + 16)
        values = np.frombuffer(data, ">f4", count, at + 17).astype(np.float64)
        if at + 17 + 4 * count != len(data) or count != len(UDP_SHAPES) + len(ANGLES) or not np.isfinite(values).all():
            raise ValueError(f"{count} values")
        return Packet(names[0], names[1], frame, part, Fraction(numerator, denominator), values)
    except InputError:
        raise
    except (IndexError, ValueError, struct.error, ZeroDivisionError) as error:
        raise InputError(f"this is no Live Link Face packet ({error})") from None


def _short(name: str) -> bytes:
    """UTF-8 of a name, cut to what receivers take."""
    return name.encode("utf-8")[:MAX_NAME].decode("utf-8", "ignore").encode("utf-8")


def packet_values(expression: Mapping[str, float], rotation: np.ndarray, gaze: np.ndarray, options: ExportOptions = ExportOptions()) -> np.ndarray:
    """The 61 values of one frame: expression by ARKit name (what is absent is 0), rotation (3,) rad model → world, gaze (2,2) rad."""
    weights = {name.lower(): float(value) for name, value in expression.items()}
    signs = APP_SIGNS if options.signs == "livelink" else np.ones(3)
    eyes = np.concatenate([np.asarray(gaze, np.float64), np.zeros((2, 1))], 1) * signs
    head = head_angles(np.asarray(rotation)[None])[0] * signs
    return np.concatenate([[weights.get(name.lower(), 0.0) for name in UDP_SHAPES], head, eyes.ravel()])


def parse_target(text: str) -> tuple[str, int]:
    """'HOST:PORT' or 'HOST' (port 11111), also '[::1]:11111' → host, port. Raises InputError for anything else."""
    host, port = text.strip(), str(PORT)
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else port if not rest else "-"
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"--livelink takes HOST:PORT, for example 127.0.0.1:{PORT}, not {text!r}")
    return host, int(port)


class LiveLinkSink:
    """Sends frames of motion to Unreal as they come; a context manager. Lost packets are lost, as with the app."""

    def __init__(self, target: str, fps: float, subject: str = "thnerf", options: ExportOptions = ExportOptions()) -> None:
        """target: HOST:PORT. fps: that the frame numbers count in. subject: name in Unreal's Live Link window.

        Raises InputError for a bad target, an unknown host, or a frame rate that cannot be.
        """
        host, port = parse_target(target)
        check_fps(fps)
        try:
            family, kind, protocol, _, self.address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise InputError(f"--livelink cannot find the host {host!r} ({error.strerror or error})") from None
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        self.fps, self.subject, self.options = Fraction(fps).limit_denominator(1001), subject, options
        self.device = str(uuid.uuid5(uuid.NAMESPACE_DNS, subject)).upper()
        self.sent = self.lost = 0

    def send(self, motion: MotionFrame) -> None:
        """One frame, by its time. Never waits: what the network does not take at once is counted in `lost`.

        Raises InputError when the first frame lacks ARKit weights.
        """
        if not self.sent + self.lost and (missing := set(n.lower() for n in UDP_SHAPES) - {n.lower() for n in motion.expression}):
            raise InputError(f"Live Link carries the 52 ARKit weights and this face model lacks {len(missing)} of them; use one that has them, such as the default")
        at = motion.time * float(self.fps)
        frame = int(np.floor(at + 1e-6))
        values = packet_values(motion.expression, motion.rotation, motion.gaze, self.options)
        packet = Packet(self.device, self.subject, frame, float(max(at - frame, 0.0)), self.fps, values)
        try:
            self.socket.sendto(packet.encode(), self.address)
            self.sent += 1
        except OSError:  # nobody listens there yet, or the buffer is full: the next frame comes soon
            self.lost += 1

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def __enter__(self) -> "LiveLinkSink":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
