"""Two widgets of several parts: the curves with their play head, and the sound that the browser plays."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from thnerf.viewer.session import Session

SHOWN = ("jawOpen", "mouthPucker", "eyeBlinkLeft")
NONE = "–"
COLOURS = ("#e4572e", "#2e86ab", "#5b8c5a", "#8f5ea2")
NEAR = 5.0  # s on both sides of the play head
DRIFT = 0.12  # s by which the sound may be off before it jumps


class Sound:
    """An audio element that stands, or plays, where the session does. url: of the sound, '' without."""

    def __init__(self, gui: Any, session: Session, url: str) -> None:
        self.session, self.url = session, url
        self._told, self._count = 0.0, 0
        self.heard = gui.add_checkbox("Sound", bool(url), disabled=not url, hint=None if url else "there is no sound that is as long as this track")
        self.heard.on_update(lambda _: self.tell())
        if url:
            gui.add_html(f'<audio id="thnerf-sound" preload="auto" src="{url}"></audio>')
        self.command = gui.add_html("")

    def allow(self, there: bool) -> None:
        """Whether the sound belongs to the track on show."""
        self.heard.disabled = not (there and self.url)
        assign(self.heard, "value", bool(there and self.url))

    def tell(self) -> None:
        """Say where to stand and whether to play. (HTML that a page inserts runs scripts as event handlers only, hence the broken picture.)"""
        if not self.url:
            return
        self._count += 1
        self._told = time.monotonic()
        play = "true" if self.session.playing and self.heard.value else "false"
        script = (f"var a=document.getElementById('thnerf-sound');if(a){{var late=Date.now()/1000-{time.time():.3f};"
                  f"var t={self.session.position():.3f}+({play}?Math.min(Math.max(late,0),0.5):0);"
                  f"if(Math.abs(a.currentTime-t)>{DRIFT})a.currentTime=t;if({play}){{if(a.paused)a.play().catch(function(){{}})}}else a.pause()}}")
        self.command.content = f'<img alt="" src="data:,{self._count}" style="display:none" onerror="{script}">'

    def keep(self) -> None:
        """Put a drifting sound right, every two seconds of playing."""
        if self.session.playing and time.monotonic() - self._told > 2:
            self.tell()


class Curves:
    """Plots of chosen channels over time with the play head; each fills the height by its slider's range. Dashed: without edits."""

    def __init__(self, gui: Any, session: Session) -> None:
        self.session, self._seen = session, None
        names = tuple(c.name for c in session.channels)
        with gui.add_folder("Curves"):
            self.plot = gui.add_uplot((np.arange(2.0), np.zeros(2)), ({}, {}), height=170, legend={"show": False},
                                      scales={"x": {"time": False}, "y": {"range": (0.0, 1.0)}}, axes=({}, {"show": False}))
            self.legend = gui.add_html("")
            self.window = gui.add_dropdown("Range", (f"{2 * NEAR:g} s", "whole track"))
            first = [n for n in SHOWN if n in names] or list(names[:1])
            self.chosen = [gui.add_dropdown(f"Curve {k + 1}", (NONE, *names), initial_value=first[k] if k < len(first) else NONE) for k in range(len(COLOURS))]
        for widget in (self.window, *self.chosen):
            widget.on_update(lambda _: session.touch())

    def draw(self, frame: int) -> None:
        """Bring the plot up to date."""
        session = self.session
        names = [c.name for c in session.channels]
        chosen = [(k, names.index(w.value)) for k, w in enumerate(self.chosen) if w.value != NONE]
        state = (session.version, frame, self.window.value, tuple(chosen))
        if state == self._seen:
            return
        self._seen = state
        fps, width = session.track.fps, round(NEAR * session.track.fps)
        near = slice(None) if self.window.value == "whole track" else slice(max(0, frame - width), frame + width)
        number, after, before = session.curves([c for _, c in chosen], near)
        x, at = number / fps, frame / fps
        place = int(np.searchsorted(x, at))
        row, x = min(place, len(x) - 1), np.insert(x, [place, place], at)
        head = np.full(len(x), np.nan)  # a line straight up: two points at one time
        head[place : place + 2] = 0, 1
        columns, series, words = [x], [{"label": "s"}], []
        for k, (colour, channel) in enumerate(chosen):
            c, stroke = session.channels[channel], COLOURS[colour]
            columns += [(np.insert(y, [place, place], y[row]) - c.low) / (c.high - c.low) for y in (after[:, k], before[:, k])]
            series += [{"label": c.name, "stroke": stroke, "width": 1.5}, {"label": "before", "stroke": stroke, "width": 0.6, "dash": [3, 3]}]
            words.append(f'<span style="color:{stroke}">{c.name} {c.low:.3g} … {c.high:.3g}</span>')
        assign(self.legend, "content", '<div style="font-size:80%;padding:0 8px">' + " &nbsp; ".join(words) + "</div>")
        if len(self.plot.series) != len(series) + 1:
            self.plot.data = tuple(np.zeros(2) for _ in range(len(series) + 1))
        assign(self.plot, "series", (*series, {"label": "play head", "stroke": "#ffffff", "width": 1}))
        self.plot.data = tuple(np.ascontiguousarray(c, np.float64) for c in (*columns, head))


def assign(handle: Any, name: str, value: Any) -> None:
    """Set a widget's property when it changes: every assignment is a message."""
    if getattr(handle, name) != value:
        setattr(handle, name, value)
