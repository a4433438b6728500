"""Small charts as SVG text: no plotting library, no scripts, colours from the page's style sheet (classes c0, c1, …)."""

from __future__ import annotations

from html import escape
from typing import Mapping, Sequence

import numpy as np

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1000, 46, 8, 8, 22  # px of a timeline's view box
MOST_POINTS = 1500  # of a curve; longer ones are drawn as the envelope of neighbouring frames


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers within [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    step = 10.0 ** np.floor(np.log10(raw))
    step *= next((m for m in (1, 2, 5, 10) if m * step >= raw), 10)
    return [float(v) + 0.0 for v in np.round(np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step, 9)]  # + 0.0: no minus zero


def envelope(values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(T,) → positions and values of at most `most` points that keep every peak: minimum and maximum of each bin."""
    if len(values) <= most:
        return np.arange(len(values)), values
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    at = []
    for a, b in zip(edges, edges[1:]):
        part = np.where(np.isfinite(values[a:b]), values[a:b], 0)
        at += sorted((a + int(part.argmin()), a + int(part.argmax())))
    return np.array(at), values[at]


def path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data through (N,) points; a value that is not finite breaks the line."""
    out, pen = [], "M"
    for a, b in zip(x, y):
        if np.isfinite(b):
            out.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(out)


def timeline(curves: Mapping[str, np.ndarray], fps: float, low: float | None = None, high: float | None = None, height: int = 150,
             shades: Sequence[tuple[int, int, str]] = (), marks: Mapping[int, str] | None = None) -> str:
    """Curves (T,) over time, with shaded frame ranges (start, end, CSS class) and labelled frames. Empty without curves."""
    if not curves:
        return ""
    frames = max(len(v) for v in curves.values())
    seen = np.concatenate([v[np.isfinite(v)] for v in curves.values()])
    bottom = float(seen.min() if len(seen) else 0) if low is None else low
    top = float(seen.max() if len(seen) else 1) if high is None else high
    top = top if top > bottom else bottom + 1
    x = lambda t: LEFT + (np.asarray(t) + 0.5) / frames * (WIDTH - LEFT - RIGHT)  # noqa: E731
    y = lambda v: TOP + (top - np.clip(v, bottom, top)) / (top - bottom) * (height - TOP - BOTTOM)  # noqa: E731
    out = [f'<svg class="timeline" viewBox="0 0 {WIDTH} {height}" data-left="{LEFT}" data-right="{WIDTH - RIGHT}" data-duration="{frames / fps:.3f}" role="img">']
    for a, b, kind in shades:
        out.append(f'<rect class="{kind}" x="{x(a - 0.5):.1f}" y="{TOP}" width="{max(0.5, x(b - 0.5) - x(a - 0.5)):.1f}" height="{height - TOP - BOTTOM}"/>')
    for v in ticks(bottom, top, 4):
        out.append(f'<path class="grid" d="M{LEFT} {y(v):.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for s in ticks(0, frames / fps, 10):
        out.append(f'<text x="{x(s * fps - 0.5):.1f}" y="{height - 5}" text-anchor="middle">{s:g} s</text>')
    for index, values in enumerate(curves.values()):
        at, kept = envelope(np.asarray(values, float))
        out.append(f'<path class="line c{index}" d="{path(x(at), y(kept))}"/>')
    first = np.asarray(next(iter(curves.values())), float)
    for frame, label in (marks or {}).items():
        out.append(f'<circle class="mark" cx="{x(frame):.1f}" cy="{y(first[frame]):.1f}" r="9"/>'
                   f'<text class="label" x="{x(frame):.1f}" y="{y(first[frame]) + 4:.1f}" text-anchor="middle">{escape(label)}</text>')
    return "".join(out) + f'<path class="cursor" d="M0 {TOP}V{height - BOTTOM}" visibility="hidden"/></svg>'


def legend(names: Sequence[str]) -> str:
    """Coloured names in the order of the curves."""
    return '<p class="legend">' + "".join(f'<span class="c{i}">{escape(n)}</span>' for i, n in enumerate(names)) + "</p>"


def plane(clouds: Mapping[str, np.ndarray], labels: tuple[str, str], span: tuple[float, float, float, float], lines: Sequence[tuple[str, float]] = ()) -> str:
    """Dots (N,2) in a square; span: x from, x to, y from, y to. lines: ('x'|'y', value) drawn across."""
    size, left, bottom = 340, 54, 34
    x = lambda v: left + (np.clip(v, *span[:2]) - span[0]) / (span[1] - span[0]) * (size - left - 8)  # noqa: E731
    y = lambda v: 8 + (span[3] - np.clip(v, *span[2:])) / (span[3] - span[2]) * (size - 8 - bottom)  # noqa: E731
    out = [f'<svg viewBox="0 0 {size} {size}" role="img">']
    for v in ticks(*span[:2], 5):
        out.append(f'<path class="grid" d="M{x(v):.1f} 8V{size - bottom}"/><text x="{x(v):.1f}" y="{size - bottom + 14}" text-anchor="middle">{v:g}</text>')
    for v in ticks(*span[2:], 5):
        out.append(f'<path class="grid" d="M{left} {y(v):.1f}H{size - 8}"/><text x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for axis, v in lines:
        out.append(f'<path class="border" d="{f"M{x(v):.1f} 8V{size - bottom}" if axis == "x" else f"M{left} {y(v):.1f}H{size - 8}"}"/>')
    for index, points in enumerate(clouds.values()):
        shown = points[:: max(1, len(points) // MOST_POINTS + 1)] if len(points) > MOST_POINTS else points
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x(shown[:, 0]), y(shown[:, 1])))
        out.append(f'<path class="dots c{index}" d="{dots}"/>')
    out.append(f'<text x="{(size + left) / 2}" y="{size - 4}" text-anchor="middle">{escape(labels[0])}</text>'
               f'<text transform="translate(11 {(size - bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(labels[1])}</text></svg>')
    return "".join(out)


def curve(x: np.ndarray, y: np.ndarray, label: str, mark: float | None = None) -> str:
    """One curve (N,) over plain numbers, with a mark at x where one is given."""
    size, tall, left = 340, 190, 40
    top = max(float(y.max()), 1e-6) * 1.08
    px = lambda v: left + (v - x[0]) / (x[-1] - x[0]) * (size - left - 8)  # noqa: E731
    py = lambda v: 8 + (1 - v / top) * (tall - 42)  # noqa: E731
    out = [f'<svg viewBox="0 0 {size} {tall}" role="img">']
    for v in ticks(float(x[0]), float(x[-1]), 6):
        out.append(f'<path class="grid" d="M{px(v):.1f} 8V{tall - 34}"/><text x="{px(v):.1f}" y="{tall - 20}" text-anchor="middle">{v:g}</text>')
    for v in ticks(0, top, 3):
        out.append(f'<text x="{left - 6}" y="{py(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    if mark is not None:
        out.append(f'<path class="border" d="M{px(mark):.1f} 8V{tall - 34}"/>')
    return "".join(out) + f'<path class="line c0" d="{path(px(x), py(y))}"/><text x="{(size + left) / 2}" y="{tall - 4}" text-anchor="middle">{escape(label)}</text></svg>'


def bars(shares: Mapping[str, float]) -> str:
    """Horizontal bars of fractions in [0,1], the longest filling the width."""
    longest = max([*shares.values(), 1e-9])
    return '<div class="bars">' + "".join(
        f'<span>{escape(n)}</span><i><b style="width:{100 * v / longest:.1f}%"></b></i><em>{100 * v:.1f} %</em>' for n, v in shares.items()) + "</div>"
