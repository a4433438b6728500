"""Direction: what a user may ask of a performance, and how a Track follows it.

`Direction` is the one set of options that every command shares. `direct` applies those that change a Track, in this order: blinks,
gaze, mouth amplitude, emotions, offsets. Asked for nothing, it changes nothing.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Optional

import numpy as np

from recon.model import MorphableModel
from recon.track import Track
from render.files import InputError
from render.rotations import axis_angle_to_matrix
from thnerf.emotions import add_emotions, parse_emotion
from thnerf.manner import Manner, lid_columns, mouth_columns, within

WIDEST_GAZE = 40.0
"""Degrees to any side that eyes are turned at most."""
GAZE_MARGIN = 4.0
"""Degrees by which eyes may go beyond what the footage shows."""
MOST_BLINKS = 60.0
LOUDEST = 3.0
_SPREAD = 0.6  # standard deviation of the time between blinks, in parts of its mean
_EYES = np.array([[31.0, 27.0, 35.0], [-31.0, 27.0, 35.0]])  # mm, [left, right], where a face model has no eyeballs


@dataclass(frozen=True)
class Wishes:
    """What may be wished of any performance, also of one that nobody knows yet."""

    emotion: str = "neutral"
    """neutral, happy, sad, angry or surprised, as NAME or NAME:STRENGTH (1 is usual, at most 2), or a CSV of start,end,emotion,strength (s)."""
    mouth_amplitude: float = 1.0
    """How far the mouth moves, against the subject's own: 0 keeps it closed, 0.7 mumbles, 1.3 speaks up."""
    expression_offset: tuple[str, ...] = ()
    """Add to an expression all along, NAME=VALUE; a name without Left or Right means both sides. May be given several times."""
    liveliness: float = 1.0
    """How much predicted head motion, brows and gaze move, against the subject's own; 0 keeps them still."""
    seed: int = 0
    """Seed of the predicted head motion, blinks and gaze; the lips do not depend on it."""


@dataclass(frozen=True)
class Direction(Wishes):
    """How the performance is to be given."""

    text: Optional[str] = None
    """Say this text, or that of a text file, instead of a sound file."""
    voice: str = "en-us"
    """Who says --text: a voice or language of eSpeak NG (en-us, en-gb-x-rp, de, fr, en-us+f3 …), or piper:MODEL.onnx."""
    drive: Optional[Path] = None
    """Take expression, head motion and blinks from another video (or a fitted subject folder); its sound is heard unless --audio is given."""
    pose: Optional[str] = None
    """Head pose: audio (predicted, the default), source (the footage's), still, a Track .npz, or a video whose head is followed."""
    blink: str = "auto"
    """Blinks: auto (the subject's own rate), source (the footage's), a number a minute, or a Track .npz."""
    gaze: str = "auto"
    """Gaze: auto, camera (eye contact whatever the head does), source, YAW,PITCH in degrees against the head (+ to the subject's left, + up; write
    --gaze=-10,0 when it begins with a minus), or a Track .npz."""

    def __post_init__(self) -> None:
        """Raises InputError for numbers that cannot be, and for wishes that exclude each other."""
        if not 0 <= self.mouth_amplitude <= LOUDEST:
            raise InputError(f"--mouth-amplitude takes a number from 0 to {LOUDEST:g}, not {self.mouth_amplitude:g}")
        if not 0 <= self.liveliness <= 3:
            raise InputError(f"--liveliness takes a number from 0 to 3, not {self.liveliness:g}")
        if self.seed < 0:
            raise InputError(f"--seed takes a number from 0 on, not {self.seed}")
        if self.text is not None and self.drive is not None:
            raise InputError("--drive moves the mouth as the driving video does, so nobody would say --text; leave out one of the two")
        if self.text is None and self.voice != Direction.voice:
            raise InputError("--voice says who speaks --text; give --text, or leave out --voice")
        parse_blink(self.blink)
        parse_gaze(self.gaze)
        parse_emotion(self.emotion)

    def offsets(self, names: tuple[str, ...]) -> dict[int, float]:
        """`expression_offset` as {column: value}. Raises InputError for an unknown name, with those most like it, or no number."""
        found: dict[int, float] = {}
        lower = {n.lower(): i for i, n in enumerate(names)}
        for text in self.expression_offset:
            name, equals, value = (p.strip() for p in text.partition("="))
            columns = [lower[n] for n in (name.lower(),) if n in lower] or [lower[n] for s in ("left", "right") if (n := name.lower() + s) in lower]
            if not columns:
                near = [names[lower[n]] for n in get_close_matches(name.lower(), lower, 3, 0.5)]
                raise InputError(f"--expression-offset: there is no expression {name!r}; " + (f"near it are {', '.join(near)}" if near else f"the names are {', '.join(names)}"))
            try:
                amount = float(value) if equals else math.nan
            except ValueError:
                amount = math.nan
            if not abs(amount) <= 10:
                raise InputError(f"--expression-offset takes NAME=VALUE with a number, for example {names[columns[0]]}=0.2, not {text!r}")
            for column in columns:
                found[column] = found.get(column, 0.0) + amount
        return found

    @property
    def changes_track(self) -> bool:
        """Whether `direct` has anything to do."""
        plain = Direction()
        return any(getattr(self, n) != getattr(plain, n) for n in ("blink", "gaze", "emotion", "mouth_amplitude", "expression_offset"))


def parse_blink(text: str) -> str | float | Path:
    """'auto', 'source', a rate (blinks a minute), or the path of a Track. Raises InputError for anything else."""
    if text in ("auto", "source"):
        return text
    if text.lower().endswith(".npz"):
        return Path(text)
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= MOST_BLINKS:
        raise InputError(f"--blink takes auto, source, a number a minute up to {MOST_BLINKS:g}, or a Track .npz, not {text!r}")
    return rate


def parse_gaze(text: str) -> str | tuple[float, float] | Path:
    """'auto', 'camera', 'source', (yaw, pitch) in rad, or the path of a Track. Raises InputError for anything else."""
    if text in ("auto", "camera", "source"):
        return text
    if text.lower().endswith(".npz"):
        return Path(text)
    try:
        yaw, pitch = (float(p) for p in text.split(","))
    except ValueError:
        yaw = pitch = math.nan
    if not max(abs(yaw), abs(pitch)) <= WIDEST_GAZE:
        raise InputError(f"--gaze takes auto, camera, source, YAW,PITCH within {WIDEST_GAZE:g} degrees (as in 10,-5), or a Track .npz, not {text!r}")
    return math.radians(yaw), math.radians(pitch)


def direct(track: Track, direction: Direction, home: Track | None = None, model: MorphableModel | None = None, seen: bool = False,
           manner: Manner | None = None, start: float = 0.0) -> Track:
    """The track as it is directed. home: the subject's own footage, from which neutral, amplitude and blinks are taken; model: its face model.

    Without `home` (a face that has no footage) 'source' cannot be asked for, and the track is measured itself. seen: keep the eyes within what
    `home` shows and a little more, for a field that has learned nothing else (a note says where that changes what was asked for). manner: that of `home`, where it was measured
    before. start: when the track begins, s, for timed emotions.
    Raises InputError for wishes that the face model or the files cannot meet.
    """
    offsets = direction.offsets(track.expression_names)
    if not direction.changes_track or not len(track):
        return track
    if home is None and "source" in (direction.blink, direction.gaze):
        raise InputError("--blink source and --gaze source need a subject with footage; choose auto, a number or a Track")
    manner = Manner.of(home if home is not None else track, model) if manner is None else manner
    x, gaze = track.expression.astype(np.float64), track.gaze.astype(np.float64)
    x = _blinked(x, track, direction, home)
    gaze = _looking(gaze, track, direction, home, model)
    if not np.array_equal(gaze, track.gaze):
        if seen:
            gaze = _seen(gaze, manner)
        from recon.gaze import looks_of

        looks = looks_of(track.expression_names, gaze)
        x = np.where(np.isfinite(looks), looks, x)
    if direction.mouth_amplitude != 1:
        mouth = mouth_columns(track.expression_names)
        x[:, mouth] = manner.neutral[mouth] + direction.mouth_amplitude * (x[:, mouth] - manner.neutral[mouth])
        x = manner.bounded(x)
    x = add_emotions(x, parse_emotion(direction.emotion), track.fps, manner, start)
    if offsets:
        x = x.copy()
        for column, amount in offsets.items():
            x[:, column] += amount
        x = manner.bounded(x)
    return track.replace(expression=x, gaze=gaze, meta={**track.meta, "direction": {
        n: getattr(direction, n) for n in ("blink", "gaze", "emotion", "mouth_amplitude", "expression_offset") if getattr(direction, n) != getattr(Direction(), n)}})


def _blinked(x: np.ndarray, track: Track, direction: Direction, home: Track | None) -> np.ndarray:
    """Expressions (T,E) with the lids that are asked for."""
    wish = parse_blink(direction.blink)
    if wish == "auto":
        return x
    lids = lid_columns(track.expression_names)
    if not len(lids):
        raise InputError(f"--blink needs eyeBlinkLeft and eyeBlinkRight, which the face model {track.model_id} does not have; leave it out")
    x = x.copy()
    if isinstance(wish, float):
        x[:, lids] = _blinks_at(wish, track, home if home is not None else track, direction.seed)
        return x
    source = home.resample(track.fps) if wish == "source" else _loaded(wish, "--blink").resample(track.fps)
    columns = lid_columns(source.expression_names)
    if len(columns) != len(lids):
        raise InputError(f"--blink: the track {wish} has no eyeBlinkLeft and eyeBlinkRight; take one with ARKit weights")
    x[:, lids] = source.expression[_back_and_forth(len(x), len(source))][:, columns]
    return x


def _blinks_at(rate: float, track: Track, home: Track, seed: int) -> np.ndarray:
    """Lids (T,2) of a track without its own blinks, with `rate` a minute of the subject's (home's) shape."""
    from thnerf.pose import fit_pose

    every = lambda t: (np.arange(len(t)), np.zeros(len(t), np.float32))  # noqa: E731
    calm = fit_pose(track.replace(clip_starts=(0,)), *every(track))
    states = calm.states.astype(np.float64)
    own = fit_pose(home.resample(track.fps), *every(home.resample(track.fps)))
    if rate > 0:
        pause = 60 / rate
        lids = own.layout.blinks
        rest = np.median(own.states[:, lids], 0)  # a shape is measured against the open lid
        low, high = own.low.copy(), own.high.copy()
        low[lids], high[lids] = np.minimum(low[lids], states[:, lids].min(0)), np.maximum(high[lids], rest + own.blink.max(0))
        states = replace(own, interval=np.array([pause, _SPREAD * pause]), low=low, high=high).with_blinks(states, seed)
    return states[:, calm.layout.blinks]


def _looking(gaze: np.ndarray, track: Track, direction: Direction, home: Track | None, model: MorphableModel | None) -> np.ndarray:
    """Gaze (T,2,2) rad as asked for."""
    wish = parse_gaze(direction.gaze)
    if wish == "auto":
        return gaze
    if wish == "camera":
        return camera_gaze(track, model)
    if isinstance(wish, tuple):
        return np.broadcast_to(np.array(wish), gaze.shape).copy()
    source = home.resample(track.fps) if wish == "source" else _loaded(wish, "--gaze").resample(track.fps)
    return source.gaze[_back_and_forth(len(gaze), len(source))].astype(np.float64)


def _seen(gaze: np.ndarray, manner: Manner) -> np.ndarray:
    """Gaze (T,2,2) within the footage's range, softly up to GAZE_MARGIN beyond."""
    margin = np.full((2, 2), math.radians(GAZE_MARGIN))
    kept = within(gaze, manner.gaze_least, manner.gaze_most, margin)
    lost = math.degrees(np.abs(kept - gaze).max())
    if lost > GAZE_MARGIN:
        low, high = np.degrees(manner.gaze_least.min(0)), np.degrees(manner.gaze_most.max(0))
        warnings.warn(f"the footage shows gaze from {low[0]:.0f} to {high[0]:.0f} degrees sideways and {low[1]:.0f} to {high[1]:.0f} up; the eyes stay within {GAZE_MARGIN:g} degrees "
                      f"of that, up to {lost:.0f} degrees from where they were sent", stacklevel=4)
    return kept


def camera_gaze(track: Track, model: MorphableModel | None = None) -> np.ndarray:
    """Gaze (T,2,2) rad, [left, right] × [yaw, pitch], with which each eye looks into the camera; within WIDEST_GAZE."""
    has_eyes = model is not None and model.model_id == track.model_id and model.eye_centres is not None
    eyes = np.asarray(model.eyes(track.shape), np.float64) if has_eyes else _EYES
    world = track.camera.world_to_camera
    centre = -np.einsum("tji,tj->ti", world[:, :3, :3], world[:, :3, 3])
    at = np.einsum("tji,tj->ti", axis_angle_to_matrix(track.rotation), centre - track.translation)
    away = at[:, None] - eyes
    yaw, pitch = np.arctan2(away[..., 0], away[..., 2]), np.arctan2(away[..., 1], np.hypot(away[..., 0], away[..., 2]))
    limit = math.radians(WIDEST_GAZE)
    return np.clip(np.stack([yaw, pitch], -1), -limit, limit)


def _loaded(path: Path, option: str) -> Track:
    """A Track file that has frames. Raises InputError."""
    track = Track.load(path)
    if not len(track):
        raise InputError(f"{option}: the track {path} has no frames; export it again")
    return track


def _back_and_forth(count: int, length: int) -> np.ndarray:
    """(count,) int: 0, 1, … length−1, length−2, … 1, 0, 1, …"""
    last = max(length - 1, 0)
    return np.zeros(count, int) if last == 0 else np.abs((np.arange(count) + last) % (2 * last) - last)
