"""Channels of a Track, and edits that add to them.

A **channel** is one number a frame: an expression coefficient, an angle of the head, a position, or the gaze. An **edit** adds to one channel:
on the whole track a constant, around a frame an amount that eases out to zero on both sides and never crosses into another clip. Edits add up,
so that undoing any of them leaves the others; what no edit reaches stays as it was, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from recon.model import MorphableModel
from recon.track import Track
from render.rotations import from_head_angles, head_angles

GROUPS = ("jaw", "mouth", "tongue", "eye", "brow", "cheek", "nose")
HEAD = (("head yaw", -45.0, 45.0, "degrees, + to the subject's left"), ("head pitch", -35.0, 35.0, "degrees, + up"),
        ("head roll", -30.0, 30.0, "degrees, + to the subject's left shoulder"))
PLACE = (("head x", 80.0, "mm, + to the right of the picture"), ("head y", 80.0, "mm, + down"), ("head z", 150.0, "mm, + away from the camera"))
GAZE = (("gaze yaw", -35.0, 35.0, "degrees, both eyes, + to the subject's left"), ("gaze pitch", -25.0, 25.0, "degrees, both eyes, + up"))


@dataclass(frozen=True)
class Channel:
    """One editable number a frame. group: heading on the page. low, high: slider range, in the channel's unit. hint: unit and sign."""

    name: str
    group: str
    low: float
    high: float
    hint: str = ""


@dataclass(frozen=True)
class Edit:
    """`amount` added to channel number `channel`. centre: frame where it is full, None on the whole track. reach: frames until it has eased out to 0."""

    channel: int
    amount: float
    centre: int | None = None
    reach: float = 0.0


def channels_of(model: MorphableModel, track: Track) -> list[Channel]:
    """Expression coefficients in the track's order, then head angles, head position and gaze (see HEAD, PLACE, GAZE)."""
    if model.bounds is not None:
        bounds = np.asarray(model.bounds, np.float64)
    else:
        bounds = np.tile([0.0, 1.0] if "jawOpen" in track.expression_names else [-3.0, 3.0], (len(track.expression_names), 1))
    out = []
    for name, (low, high) in zip(track.expression_names, bounds):
        if high <= low:  # a joint that the fit leaves alone, in rad
            low, high = -0.6, 0.6
        group = next((g for g in GROUPS if name.startswith(g)), "other")
        out.append(Channel(name, group, float(low), float(high)))
    out += [Channel(name, "head", low, high, hint) for name, low, high, hint in HEAD]
    middle = np.median(track.translation, 0) if len(track) else np.zeros(3)
    out += [Channel(name, "position", float(m) - reach, float(m) + reach, hint) for (name, reach, hint), m in zip(PLACE, middle)]
    return out + [Channel(name, "gaze", low, high, hint) for name, low, high, hint in GAZE]


def channel_values(track: Track) -> np.ndarray:
    """(T,C) float64 in the order of `channels_of`: coefficients, degrees, mm, degrees (gaze: the mean of both eyes)."""
    return np.concatenate([track.expression.astype(np.float64), np.degrees(head_angles(track.rotation)), track.translation.astype(np.float64),
                           np.degrees(track.gaze.astype(np.float64).mean(1))], 1)


def weights(edit: Edit, frames: np.ndarray, clip_starts: Sequence[int]) -> np.ndarray:
    """(N,) in [0,1]: how much of an edit arrives at frame numbers (N,). A raised cosine around its centre, 0 in other clips."""
    if edit.centre is None:
        return np.ones(len(frames))
    distance = np.abs(frames - edit.centre) / max(edit.reach, 1e-9)
    clip = np.searchsorted(np.asarray(clip_starts), frames, "right")
    own = np.searchsorted(np.asarray(clip_starts), edit.centre, "right")
    return np.where((distance < 1) & (clip == own), 0.5 + 0.5 * np.cos(np.pi * np.minimum(distance, 1)), 0.0)


def offsets(edits: Sequence[Edit], frames: np.ndarray, count: int, clip_starts: Sequence[int]) -> np.ndarray:
    """(N,count): sum of all edits at frame numbers (N,)."""
    out = np.zeros((len(frames), count))
    for edit in edits:
        out[:, edit.channel] += edit.amount * weights(edit, frames, clip_starts)
    return out


def apply_edits(track: Track, edits: Sequence[Edit], channels: Sequence[Channel], frames: slice = slice(None), held: bool = True) -> Track:
    """A range of the track with its edits.

    Coefficients stop at the channel's bounds (unless not `held`), but a track that is beyond them already stays there. Lids follow an edited gaze
    as they follow the fitted one.
    """
    part, number = track[frames], np.arange(len(track))[frames]
    shift = offsets(edits, number, len(channels), track.clip_starts)
    if not shift.any():
        return part
    E = part.expression.shape[1]
    turned, looking = shift[:, E : E + 3].any(1), shift[:, E + 6 :].any(1)
    rotation, gaze = part.rotation.copy(), part.gaze.copy()
    if turned.any():
        rotation[turned] = from_head_angles(head_angles(part.rotation[turned]) + np.radians(shift[turned, E : E + 3]))
    if looking.any():
        from recon.gaze import looks_of

        gaze[looking] += np.radians(shift[looking, None, E + 6 :])
        lids = looks_of(part.expression_names, gaze[looking]) - looks_of(part.expression_names, part.gaze[looking])
        shift[looking, :E] += np.nan_to_num(lids)
    low, high = (np.array([getattr(c, side) for c in channels[:E]], np.float32) for side in ("low", "high"))
    face, moved = part.expression, part.expression + shift[:, :E].astype(np.float32)
    if held:
        moved = np.clip(moved, np.minimum(low, face), np.maximum(high, face))
    return part.replace(expression=np.where(shift[:, :E] != 0, moved, face), rotation=rotation, translation=part.translation + shift[:, E + 3 : E + 6], gaze=gaze)
