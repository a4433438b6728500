"""A Track being played and edited: the clock, the edits, and the newest state for whoever draws."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Callable, Sequence

import numpy as np

from recon.track import Track
from render.files import InputError
from thnerf.viewer.edits import Channel, Edit, apply_edits, channel_values


class Session:
    """A track being played and edited. All methods may be called from any thread.

    `version` rises with every change of what the picture shows; `take` blocks until there is something new to draw, so that a hundred moves of
    a slider cost as many pictures as there is time for.
    """

    def __init__(self, track: Track, channels: Sequence[Channel], clock: Callable[[], float] = time.monotonic) -> None:
        if not len(track):
            raise InputError("the track has no frames, so there is nothing to view; fit the clip again")
        self.channels, self._clock = list(channels), clock
        self._changed = threading.Condition(threading.RLock())
        self.version = 0
        self._frame, self._started = 0.0, None
        self.loop = True
        self._put(track)

    def _put(self, track: Track) -> None:
        self.track, self.edits = track, []
        self.base = channel_values(track)

    def open(self, track: Track) -> None:
        """Show another track at the same frame; its edits begin empty. Raises InputError when it is empty or of another face model."""
        if track.model_id != self.track.model_id or track.expression_names != self.track.expression_names:
            raise InputError(f"the track belongs to the face model {track.model_id} and this subject to {self.track.model_id}; re-express it with thnerf retarget")
        if not len(track):
            raise InputError("the track has no frames; export it again")
        if track.torso.shape[1] != self.track.torso.shape[1] or len(track.shape) != len(self.track.shape):
            raise InputError("the track is of another subject: its shoulders or identity have other sizes; retarget it or fit it with this subject")
        with self._changed:
            frame = self.frame
            self._put(track)
            self._frame, self._started = float(min(frame, len(track) - 1)), None
            self.touch()

    def touch(self) -> None:
        """Say that the picture has to be drawn again."""
        with self._changed:
            self.version += 1
            self._changed.notify_all()

    # --- time

    @property
    def playing(self) -> bool:
        """Whether the clock runs."""
        return self._started is not None

    def position(self) -> float:
        """Seconds from the start of the track; at the end playing begins again (`loop`) or stops there."""
        with self._changed:
            if self._started is None:
                return self._frame / self.track.fps
            length = len(self.track) / self.track.fps
            at = self._frame / self.track.fps + self._clock() - self._started
            if at < length:
                return at
            if not self.loop:
                self._frame, self._started = len(self.track) - 1.0, None
                self.version += 1
                return self._frame / self.track.fps
            self._frame, self._started = (at % length) * self.track.fps, self._clock()
            return at % length

    @property
    def frame(self) -> int:
        """The frame on show."""
        return min(int(self.position() * self.track.fps + 1e-6), len(self.track) - 1)

    def play(self) -> None:
        """Start the clock, from the start when it stands at the end."""
        with self._changed:
            if self._started is None:
                if self._frame >= len(self.track) - 1:
                    self._frame = 0.0
                self._started = self._clock()
                self.touch()

    def pause(self) -> None:
        """Stop the clock on the frame on show."""
        with self._changed:
            if self._started is not None:
                frame = self.frame
                self._frame, self._started = float(frame), None
                self.touch()

    def seek(self, frame: int) -> None:
        """Go to a frame; playing goes on from there."""
        with self._changed:
            self._frame = float(min(max(int(frame), 0), len(self.track) - 1))
            self._started = None if self._started is None else self._clock()
            self.touch()

    def take(self, seen: tuple[int, int] | None, timeout: float) -> tuple[int, int] | None:
        """Wait for something else to draw than `seen`, (version, frame); None after `timeout` seconds without."""
        limit = time.monotonic() + timeout
        with self._changed:
            while True:
                state = (self.version, self.frame)
                if state != seen:
                    return self.version, self.frame
                rest = limit - time.monotonic()
                if rest <= 0:
                    return None
                self._changed.wait(min(rest, 0.25 / self.track.fps if self.playing else rest))

    # --- edits

    def values(self, frame: int | None = None, held: bool = True) -> np.ndarray:
        """All channels (C,) with their edits at a frame (the one on show); coefficients within their bounds where `held`."""
        with self._changed:
            frame = self.frame if frame is None else frame
            return channel_values(apply_edits(self.track, self.edits, self.channels, slice(frame, frame + 1), held))[0]

    def set(self, channel: int, value: float, reach: float | None = None) -> None:
        """Make a channel `value` at the frame on show; playing stops there.

        reach: seconds on both sides over which the change eases out, None to move the whole track by as much. Setting the same channel again at
        the same frame and reach changes the edit instead of adding one.
        """
        with self._changed:
            self.pause()
            frame = self.frame
            edit = Edit(channel, 0.0, None if reach is None else frame, 0.0 if reach is None else max(reach * self.track.fps, 1.0))
            if self.edits and replace(self.edits[-1], amount=0.0) == edit:
                edit = self.edits.pop()
            self.edits.append(replace(edit, amount=value - float(self.values(frame, held=False)[channel])))
            self.touch()

    def undo(self) -> Edit | None:
        """Take the last edit back and return it, None when there is none."""
        with self._changed:
            edit = self.edits.pop() if self.edits else None
            self.touch()
            return edit

    def reset(self, channel: int | None = None) -> None:
        """Take back all edits, or those of one channel."""
        with self._changed:
            self.edits = [] if channel is None else [e for e in self.edits if e.channel != channel]
            self.touch()

    def snapshot(self, frame: int, edited: bool = True) -> Track:
        """The track of one frame, (1,), as it is now."""
        with self._changed:
            track, edits = self.track, list(self.edits) if edited else []
        return apply_edits(track, edits, self.channels, slice(frame, frame + 1))

    def result(self) -> Track:
        """The whole track with its edits; `meta['edits']` counts them."""
        with self._changed:
            track, edits = self.track, list(self.edits)
        out = apply_edits(track, edits, self.channels)
        return out.replace(meta={**out.meta, "edits": len(edits)}) if edits else out

    def curves(self, channels: Sequence[int], frames: slice, most: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame numbers (N,), values with edits (N,K) and without (N,K) in a range of frames, thinned to at most about `most`."""
        with self._changed:
            track, edits, before = self.track, list(self.edits), self.base[frames]
        after = channel_values(apply_edits(track, edits, self.channels, frames)) if edits else before
        number = np.arange(len(track))[frames]
        every = slice(None, None, max(1, -(-len(number) // most)))
        return number[every], after[every][:, list(channels)], before[every][:, list(channels)]
