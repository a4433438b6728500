"""Speech as it comes, motion as soon as it is certain: the causal mode of the speech network.

A frame is said when `lookahead` features (10 ms each) beyond its own four have been heard; what the network would hear after that is held
at its last value. So any trained run whose networks hear log-mel first streams (by those alone), the latency is a number that is stated, and the output depends on the samples alone, never
on how they were packed. Loudness, pauses and the noise floor are measured from the past only (`Ear`). Head motion, gaze and blinks are
sampled with the seed, one sequence for speech and one for silence, and follow whichever is going on.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, Sequence

import numpy as np

from recon.lines import MotionFrame
from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, check_number
from thnerf import audio
from thnerf.direction import Direction, direct, parse_blink
from thnerf.manner import Manner

LOOKAHEAD = 13
"""Features heard beyond a frame's own four, unless told otherwise: 173 ms from the moment a frame is shown."""
PACKET = 640
"""Bytes read at a time, at most: 20 ms."""
_LEVEL, _GATE = -30.0, -65.0  # dB re full scale: speech until it is known better; below the gate nothing is speech
VOICE, VOICED = 0.4, 0.25
"""Seconds for which a voice counts as going on, and half the probability of speech from which it fully does."""
_HALF_LIFE = 20.0  # s over which the loudness of the past is forgotten by half
_BLOCK, _OVERLAP = 40.0, 0.8  # s of head motion sampled at a time, and cross-fade to the next


class Ear:
    """Samples in packets of any size → features as the network wants them, and how silent it is, from the past alone.

    Row j is centred at j / 100 s and is there as soon as 12.5 ms more have been heard.
    """

    def __init__(self) -> None:
        """Nothing heard yet."""
        self.held, self.rows = np.zeros(0, np.float32), 0
        self.heard = 0
        self.histogram = np.zeros(160)  # of loudness, 1 dB each from −140 dB
        self.voiced, self.loud, self.level, self.silence = 0.0, -140.0, _LEVEL, math.inf

    def push(self, samples: np.ndarray, last: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Samples (n,) float32 at audio.RATE → finished rows: features (m, bands), seconds of silence so far (m,), activity (m,) of the voice."""
        hop, reach = audio.RATE // audio.FEATURE_RATE, audio.WINDOW // 2
        self.held, self.heard = np.concatenate([self.held, samples]), self.heard + len(samples)
        done = self.heard // hop + 1 if last else max(0, (self.heard - reach) // hop + 1)
        count = done - self.rows
        if count <= 0:
            return np.zeros((0, audio.BANDS), np.float32), np.zeros(0), np.zeros(0)
        begin = max(0, self.rows - 2)  # two rows of context; the held samples begin there
        mel = audio.log_mel(self.held)[self.rows - begin : done - begin]
        self.held = self.held[(max(0, done - 2) - begin) * hop :]
        self.rows = done
        out = [self._row(m) for m in mel]
        return np.stack([x for x, _, _ in out]), np.array([s for _, s, _ in out]), np.array([a for _, _, a in out])

    def _row(self, mel: np.ndarray) -> tuple[np.ndarray, float, float]:
        """One row: normalised features, seconds of silence, activity."""
        now = 10 * math.log10(max(float((10 ** (mel.astype(np.float64) / 10)).sum()), 1e-14))
        self.loud += 0.5 * (now - self.loud)
        self.histogram *= 0.5 ** (1 / (_HALF_LIFE * audio.FEATURE_RATE))
        self.histogram[min(max(int(now + 140), 0), 159)] += 1
        self.voiced += now > _GATE
        share = np.cumsum(self.histogram) / self.histogram.sum()
        floor, quiet, top = (int(np.searchsorted(share, q)) - 139.5 for q in (0.03, 0.1, 0.99))
        speech = np.where(np.arange(160) - 139.5 >= max(top - 25, _GATE), self.histogram, 0)
        if speech.sum() > 0:
            typical = int(np.searchsorted(np.cumsum(speech), 0.5 * speech.sum())) - 139.5
            spread = min(max((top - quiet - 8) / 12, 0.0), 1.0)  # steady noise is no speech, however long it lasts
            sure = (1 - math.exp(-self.voiced / 30)) * spread * spread * (3 - 2 * spread)
            self.level = sure * typical + (1 - sure) * _LEVEL
        steady = top - quiet < 8 and self.rows > audio.FEATURE_RATE  # a fan, a hiss: however loud, nobody speaks
        silent = self.loud < max(self.level - 30, floor + 6 if steady else min(floor + 6, self.level - 15), _GATE)
        self.silence = self.silence + 1 / audio.FEATURE_RATE if silent else 0.0
        activity = 0.0 if silent else min(max((self.loud - self.level + 30) / 40, 0.0), 1.2)
        return np.maximum(mel - np.float32(self.level - audio.SPAN), 0) / np.float32(10), self.silence, activity


class LiveMotion:
    """Head states (D,) of `thnerf.pose` one after another, for ever: sampled block by block with the seed, cross-faded, for speech and for silence."""

    def __init__(self, model: Any, seed: int, options: dict[str, Any]) -> None:
        """model: a PoseModel. options: passed on to its `sample`."""
        self.model, self.seed, self.options, self.block = model, seed, options, -1
        self.length, self.overlap = round(_BLOCK * model.fps), max(1, round(_OVERLAP * model.fps))
        self.current: np.ndarray | None = None
        self.following = self._sampled(0)

    def _sampled(self, block: int) -> np.ndarray:
        """(2, length + overlap, D): a block while silent and while speaking, with the same blinks."""
        seed, frames = self.seed * 100_003 + block, self.length + self.overlap
        both = []
        for activity in (0.0, 0.6):
            states = self.model.sample(np.full(frames, activity, np.float32), seed, **self.options)
            both.append(self.model.with_blinks(states, seed))
        return np.stack(both)

    def at(self, index: int, activity: float) -> np.ndarray:
        """The state of frame `index`; frames are asked for in order. activity from 0 (silence) to 1."""
        block, place = divmod(index, self.length)
        if block != self.block:
            self.block, tail = block, None if self.current is None else self.current[:, self.length :]
            self.current, self.following = self.following, self._sampled(block + 1)
            if tail is not None:
                weight = (0.5 - 0.5 * np.cos(np.pi * (np.arange(self.overlap) + 0.5) / self.overlap))[None, :, None]
                self.current[:, : self.overlap] = weight * self.current[:, : self.overlap] + (1 - weight) * tail
        quiet, speaking = self.current[:, place]
        return (1 - activity) * quiet + activity * speaking


class Streamer:
    """A subject that speaks as it hears: `push` samples, get the frames that are certain; `finish` gives the rest.

    latency: seconds from the moment that a frame is shown (index / fps) to the last sample that it depends on.
    """

    def __init__(self, subject: Subject, run_dir: Path, direction: Direction = Direction(), lookahead: int | None = None) -> None:
        """lookahead: features (10 ms) heard beyond a frame; LOOKAHEAD, or what the network was trained with where that is less, by default.

        Raises InputError for a run that cannot be streamed, and for direction that needs the whole performance.
        """
        from thnerf.drive import face_model
        from thnerf.encoders import columns_of
        from thnerf.motion import Speaker
        from thnerf.performance import POSES

        if direction.text is not None or direction.drive is not None:
            raise InputError("thnerf stream speaks what it hears; leave out --text and --drive")
        blink = parse_blink(direction.blink)
        if isinstance(blink, Path) or "source" in (direction.blink, direction.gaze) or direction.gaze.lower().endswith(".npz"):
            raise InputError("thnerf stream takes --blink auto or a number, and --gaze auto, camera or YAW,PITCH")
        if direction.pose not in (None, *POSES) and Path(direction.pose).suffix != ".npz":
            raise InputError(f"thnerf stream takes --pose {', '.join(POSES)} or a Track .npz, not {direction.pose!r}; fit a video first (thnerf fit) and give its track.npz")
        self.speaker, self.home, self.fps = Speaker(subject, run_dir), subject.track, subject.track.fps
        if next(iter(columns_of(self.speaker.encoder))) != "logmel":
            raise InputError(f"this run hears through {self.speaker.encoder.name}, which needs whole utterances; train one to stream with --motion.encoder logmel+phones")
        self.model = face_model(subject)
        self.direction, self.manner = replace(direction, blink="auto"), Manner.of(subject.track, self.model)
        direction.offsets(subject.track.expression_names)
        self.left = self.speaker.left
        self.lookahead = min(self.speaker.right, LOOKAHEAD if lookahead is None else lookahead)
        pose = self.speaker.pose
        if isinstance(blink, float):
            pause = 60 / blink if blink else 1e9
            pose = replace(pose, interval=np.array([pause, 0.6 * pause]))
        self.sampled = LiveMotion(pose, direction.seed, {} if direction.liveliness == 1 else {"liveliness": direction.liveliness})
        self.fixed = self._fixed_pose(direction, subject)
        self.ear = Ear()
        self.features, self.first = np.zeros((0, audio.BANDS), np.float32), 0  # rows at 4 fps from number `first` on
        self.recent: list[tuple[np.ndarray, float, float]] = []  # rows at 100 Hz from number `base` on
        self.base = self.made = self.said = 0
        self.pause = self.rest = self.activity = 0.0
        self.voices: deque[float] = deque([1.0], maxlen=max(3, round(VOICE * self.fps)))
        self.latency = (3 + self.lookahead) / (4 * self.fps) + audio.WINDOW / 2 / audio.RATE

    def _fixed_pose(self, direction: Direction, subject: Subject) -> Any:
        """A function of the frame's number that gives the pose (6,) and shoulders (K,), None where they are sampled."""
        from thnerf.performance import pose_source
        from thnerf.pose import source_states

        if direction.pose in (None, "audio"):
            return None
        head, pose = pose_source(direction.pose, subject), self.speaker.pose
        if head == "still":
            states = np.median(pose.states, 0)[None].astype(np.float64)
        else:
            track = subject.track if head == "source" else head
            states = source_states(track, max(1, 2 * len(track) - 2))  # there and back, then the same again
        torso = pose.layout.torso
        wide = np.zeros((len(states), pose.states.shape[1]))
        wide[:, :6] = states[:, :6]
        states = np.concatenate([states[:, :6], pose.torso_for(wide) if head != "still" else states[:, 10 : 10 + torso]], 1)
        return lambda index: states[index % len(states)]

    def push(self, samples: np.ndarray) -> Iterator[MotionFrame]:
        """Samples (n,) float32 in [-1, 1] at audio.RATE → the frames that are certain now."""
        self._hear(samples, False)
        ready = (self.first + len(self.features) - 4 - self.lookahead) // 4 + 1
        yield from self._say(ready)

    def finish(self) -> Iterator[MotionFrame]:
        """The frames that are left: as many in all as the sound is long, at least one."""
        total = max(1, round(self.ear.heard / audio.RATE * self.fps))
        self._hear(np.zeros(0, np.float32), True)
        missing = 4 * total + self.lookahead - (self.first + len(self.features))
        if missing > 0:
            self.features = np.concatenate([self.features, np.repeat(self.features[-1:], missing, 0)])
        yield from self._say(total)

    def _hear(self, samples: np.ndarray, last: bool) -> None:
        """Rows at 100 Hz, then the features at four a frame between them."""
        self.recent += list(zip(*self.ear.push(np.asarray(samples, np.float32), last)))
        end, step = self.base + len(self.recent), audio.FEATURE_RATE / (4 * self.fps)
        made = []
        while True:
            place = self.made * step
            low = int(place + 1e-9)
            share = np.float32(max(place - low, 0.0)) if place - low > 1e-6 else np.float32(0)
            if low + (share > 0) >= end:
                break
            row = self.recent[low - self.base][0]
            made.append(row if not share else row + share * (self.recent[low + 1 - self.base][0] - row))
            self.made += 1
        if made:
            if not self.made - len(made):
                made = [made[0]] * self.left + made
                self.first = -self.left
            self.features = np.concatenate([self.features, np.stack(made)])

    def _say(self, until: int) -> Iterator[MotionFrame]:
        """Frames from `said` to `until`."""
        while self.said < until:
            count = min(until - self.said, 256)
            low = 4 * self.said - self.left - self.first
            for k in range(count):
                yield self._frame(*self.speaker.window(self._window(low + 4 * k)), self.said + k)
            self.said += count
            keep = 4 * self.said - self.left - self.first
            self.features, self.first = self.features[keep:], self.first + keep
            oldest = int(self.said / self.fps * audio.FEATURE_RATE) - 2
            keep = min(max(0, oldest - self.base), max(0, int(self.made * audio.FEATURE_RATE / (4 * self.fps)) - self.base))
            self.recent, self.base = self.recent[keep:], self.base + keep

    def _window(self, low: int) -> np.ndarray:
        """(left + 4 + right, bands): what the network hears of one frame; the last of the look-ahead is held."""
        rows = self.features[low : low + self.left + 4 + self.lookahead]
        return np.concatenate([rows, np.repeat(rows[-1:], self.speaker.right - self.lookahead, 0)])

    def _frame(self, z: np.ndarray, closed: np.ndarray, voice: np.ndarray, index: int) -> MotionFrame:
        """Frame `index` from its modes (1,K), closed lips (1,) and probability of speech (1,)."""
        heard = min(int((4 * index + 3 + self.lookahead) * audio.FEATURE_RATE / (4 * self.fps) + 1e-9), self.base + len(self.recent) - 1)
        _, silence, active = self.recent[max(0, heard - self.base)]
        self.voices.append(float(voice[0]))
        speaks = min(max(max(self.voices) / VOICED - 1, 0.0), 1.0)
        self.pause = self._moved(self.pause, float(silence >= audio.PAUSE), 0.16)
        self.rest = self._moved(self.rest, max(float(silence >= audio.REST), 1 - speaks), 0.16)
        self.activity = self._moved(self.activity, min(active / 0.6, 1.0), 1.0)
        states = self.sampled.at(index, self.activity)
        if self.fixed is not None:
            given, k = self.fixed(index), 10 + self.speaker.pose.layout.torso
            states = np.concatenate([given[:6], states[6:10], given[6:], states[k:]])
        parts = self.speaker.pose.layout.unpack(states[None])
        expression = self.speaker.t["rest"][None].astype(np.float64)
        expression[:, self.speaker.columns] = self.speaker.mouth(z, closed, np.array([self.rest]), np.array([self.pause]))
        expression[:, self.speaker.upper] = parts.pop("upper")
        home = self.home
        camera = Camera(home.camera.K, home.camera.world_to_camera[:1], home.camera.width, home.camera.height)
        track = home[:1].replace(camera=camera, expression=expression, valid=np.ones(1, bool), meta={}, **parts)
        self.track = direct(track, self.direction, home, self.model, manner=self.manner, start=index / self.fps)
        names = dict(zip(home.expression_names, self.track.expression[0].tolist()))
        return MotionFrame(index / self.fps, names, self.track.rotation[0], self.track.translation[0], self.track.gaze[0])


    def _moved(self, value: float, wanted: float, seconds: float) -> float:
        """`value` on its way to `wanted`: all the way up in `seconds`, down in 0.08 s, for a mouth opens faster than it comes to rest."""
        return value + min(max(wanted - value, -1 / (min(seconds, 0.08) * self.fps)), 1 / (seconds * self.fps))


def pcm_packets(stream: BinaryIO, size: int = PACKET) -> Iterator[np.ndarray]:
    """Little-endian 16-bit samples of a stream as they come → float32 in [-1, 1].

    Warns when the stream ends in the middle of a sample. Raises InputError when nothing comes at all.
    """
    left, seen = b"", 0
    read = getattr(stream, "read1", stream.read)
    while data := read(size):
        seen += len(data)
        data = left + data
        whole = len(data) - len(data) % 2
        left = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768
    if not seen:
        raise InputError("no sound came in; send 16-bit little-endian mono samples at 16000 Hz, for example from: ffmpeg -i speech.mp3 -f s16le -ac 1 -ar 16000 -")
    if left:
        warnings.warn("the sound ends in the middle of a sample (an odd number of bytes); check that it is 16-bit mono at 16000 Hz", stacklevel=2)


def sound_packets(path: Path) -> Iterator[np.ndarray]:
    """A sound file in packets, as if it came live but as fast as it can be taken."""
    samples = audio.load_audio(path)
    for begin in range(0, len(samples), PACKET // 2):
        yield samples[begin : begin + PACKET // 2]


def stream_speech(subject: Subject, packets: Iterable[np.ndarray], sinks: Sequence[Any], run: str = "default", direction: Direction = Direction(),
                  latency: float | None = None) -> dict[str, Any]:
    """Drive `sinks` (each with `send(motion)`, and `hear(samples)` and `show(track)` where it wants them) from sound as it comes, until it ends or Ctrl-C.

    latency: ms, what the look-ahead may cost. Returns {frames, seconds (of sound), latency_ms, ms_per_frame (of work), ms_p95}.
    Raises InputError as `Streamer`, and for a latency below what one frame needs; BrokenPipeError, once all sinks are closed, when a reader has gone.
    """
    lookahead = None
    if latency is not None:
        least = math.ceil(1000 * ((3 + 5) / (4 * subject.track.fps) + audio.WINDOW / 2 / audio.RATE))
        check_number("--latency", latency, least, math.inf, " ms: a frame needs its own sound and what the first layers hear around it")
        lookahead = math.floor((latency / 1000 - audio.WINDOW / 2 / audio.RATE) * 4 * subject.track.fps + 1e-6) - 3
    streamer = Streamer(subject, subject.run(run), direction, lookahead)
    if lookahead is not None and lookahead > streamer.lookahead:
        _say(f"--latency {latency:g} is more than this run's network hears ahead; it is limited to {1000 * streamer.latency:.0f} ms")
    _say(f"a frame comes {1000 * streamer.latency:.0f} ms after the moment it shows")
    spent: list[float] = []

    def handed(frames: Iterator[MotionFrame]) -> None:
        begun = time.perf_counter()
        for motion in frames:
            for sink in sinks:
                sink.send(motion)
                if hasattr(sink, "show"):
                    sink.show(streamer.track)
            spent.append(time.perf_counter() - begun)
            begun = time.perf_counter()

    gone = None
    with ExitStack() as stack, suppress(KeyboardInterrupt):  # Ctrl-C is the way to end it
        for sink in sinks:
            stack.enter_context(sink)
        try:
            for packet in packets:
                for sink in sinks:
                    if hasattr(sink, "hear"):
                        sink.hear(packet)
                handed(streamer.push(packet))
            handed(streamer.finish())
        except BrokenPipeError as error:  # nobody reads the lines any more; what went into files is kept
            gone = error
    if gone is not None:
        raise gone
    work = 1000 * np.array(spent or [0.0])
    return {"frames": len(spent), "seconds": streamer.ear.heard / audio.RATE, "latency_ms": 1000 * streamer.latency, "ms_per_frame": float(np.median(work)),
            "ms_p95": float(np.percentile(work, 95))}


def _say(text: str) -> None:
    """A note for the user on stderr."""
    if os.environ.get("THNERF_QUIET") != "1":
        print(f"stream: {text}", file=sys.stderr, flush=True)
