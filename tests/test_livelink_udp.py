"""Live Link over UDP: the bytes, the order, and a loopback."""

import socket
import struct
from fractions import Fraction

import numpy as np
import pytest
from exporting import moving_track

from recon.lines import track_lines
from render.files import InputError
from render.rotations import head_angles
from thnerf.export.livelink_udp import PORT, UDP_SHAPES, LiveLinkSink, Packet, decode, parse_target


@pytest.fixture
def listener():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock


def unpack(data):
    """The engine's layout: version, device id, subject name, frame time, count, floats, all big-endian."""
    (version,) = struct.unpack_from(">B", data)
    at, names = 1, []
    for _ in range(2):
        (n,) = struct.unpack_from(">i", data, at)
        names.append(data[at + 4 : at + 4 + n].decode())
        at += 4 + n
    frame, part, numerator, denominator, count = struct.unpack_from(">ifiiB", data, at)
    return version, names, (frame, part, numerator, denominator), struct.unpack(f">{count}f", data[at + 17 :])


def test_frames_arrive_as_they_were(listener):
    track = moving_track(5)
    with LiveLinkSink(f"127.0.0.1:{listener.getsockname()[1]}", track.fps, "Étienne") as sink:
        for motion in track_lines(track):
            sink.send(motion)
    assert sink.sent == 5 and sink.lost == 0
    for i in range(5):
        version, (device, subject), time, values = unpack(listener.recv(2048))
        assert version == 6 and subject == "Étienne" and len(device) == 36 and time == (i, 0.0, 25, 1) and len(values) == 61
        named = dict(zip(UDP_SHAPES, values))
        assert UDP_SHAPES[14:18] == ("JawForward", "JawLeft", "JawRight", "JawOpen") and UDP_SHAPES[21:23] == ("MouthLeft", "MouthRight")
        for name in track.expression_names:
            assert named[name[0].upper() + name[1:]] == pytest.approx(float(track.column(name)[i]), abs=1e-6)
        yaw, pitch, roll = head_angles(track.rotation)[i]
        np.testing.assert_allclose(values[52:55], [-yaw, -pitch, roll], atol=1e-6)
        left, right = track.gaze[i]
        np.testing.assert_allclose(values[55:], [-left[0], -left[1], 0, -right[0], -right[1], 0], atol=1e-6)


def test_packets_come_back():
    packet = Packet("id", "name", 41, 0.25, Fraction(30000, 1001), np.linspace(-1, 1, 61))
    again = decode(packet.encode())
    assert (again.device, again.subject, again.frame, again.part, again.fps) == ("id", "name", 41, 0.25, Fraction(30000, 1001))
    np.testing.assert_allclose(again.values, packet.values, atol=1e-7)


def test_broken_packets_are_refused():
    good, rng = Packet("id", "name", 41, 0.25, Fraction(60), np.zeros(61)).encode(), np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        data = bytes(data[: rng.integers(len(data) + 1)]) if rng.random() < 0.5 else bytes(data)
        try:
            assert len(decode(data).values) == 61
        except InputError:
            pass


def test_a_sink_never_waits_and_never_fails():
    """Nobody listens: packets are lost, the stream goes on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with LiveLinkSink(f"127.0.0.1:{port}", 25.0) as sink:
        for motion in track_lines(moving_track(8)):
            sink.send(motion)
    assert sink.sent + sink.lost == 8


@pytest.mark.parametrize("text, expected", [("127.0.0.1", ("127.0.0.1", PORT)), ("unreal.local:54321", ("unreal.local", 54321)), ("[::1]:99", ("::1", 99))])
def test_targets(text, expected):
    assert parse_target(text) == expected


@pytest.mark.parametrize("text", ["", "host:", "host:x", "host:0", "host:70000", ":11111", "[::1]x"])
def test_bad_targets(text):
    with pytest.raises(InputError, match="HOST:PORT"):
        parse_target(text)


def test_a_face_without_arkit_weights_is_refused(listener):
    track = moving_track(2).replace(expression_names=tuple(f"e{i}" for i in range(52)))
    with LiveLinkSink(f"127.0.0.1:{listener.getsockname()[1]}", 25.0) as sink, pytest.raises(InputError, match="ARKit"):
        sink.send(next(track_lines(track)))


def test_track_sends_what_it_prints(listener, monkeypatch, capsys):
    """`thnerf track --livelink` hands every frame to the sink."""
    import recon.live
    from thnerf.cli import main

    def track_live(source, stream, also, **rest):
        for motion in track_lines(moving_track(3)):
            also(motion)
        return {"frames": 3}

    monkeypatch.setattr(recon.live, "track_live", track_live)
    assert main(["track", "--camera", "0", "--livelink", f"127.0.0.1:{listener.getsockname()[1]}", "--livelink-fps", "25", "--json"]) == 0
    assert '"livelink_sent": 3' in capsys.readouterr().out
    assert [unpack(listener.recv(2048))[2][0] for _ in range(3)] == [0, 1, 2]
