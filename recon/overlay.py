"""Pictures of a fit: the mesh and the landmarks on the footage, and the curves over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np

from recon.model import MorphableModel, apply_gaze
from recon.track import Track
from render.encode import VideoWriter
from render.files import atomic_path
from render.progress import progress
from render.raster import rasterise, vertex_normals
from render.rotations import axis_angle_to_matrix, head_angles

_TINT = np.array([90.0, 200.0, 255.0])
_CURVES = ("jawOpen", "mouthPucker", "mouthSmileLeft", "eyeBlinkLeft", "eyeBlinkRight", "browInnerUp")


def posed_vertices(model: MorphableModel, track: Track, index: int) -> np.ndarray:
    """World-space vertices (V,3) mm of one frame, gaze included where the model has eyeballs."""
    vertices = model.vertices(track.shape, track.expression[index])
    if model.eye_centres is not None:
        vertices = apply_gaze(model, vertices, track.shape, track.gaze[index])
    return vertices @ axis_angle_to_matrix(track.rotation[index]).T.astype(np.float32) + track.translation[index]


def draw_mesh(frame: np.ndarray, vertices: np.ndarray, model: MorphableModel, track: Track, index: int, strength: float = 0.55) -> np.ndarray:
    """Posed vertices (V,3), shaded and half transparent, on a frame (H,W,3) uint8 of the track's size; a new array."""
    fragments = rasterise(vertices, model.faces, track.camera, frame=index)
    hit = fragments.face >= 0
    normals = vertex_normals(vertices, model.faces)
    facing = -np.einsum("nvc,nv->nc", normals[model.faces[fragments.face[hit]]], fragments.barycentric[hit])[:, 2]
    out = frame.astype(np.float32)
    shade = _TINT * np.clip(0.25 + 0.75 * facing, 0, 1)[:, None]
    out[hit] += strength * (shade - out[hit])
    return np.clip(out, 0, 255).astype(np.uint8)


def draw_points(frame: np.ndarray, points: np.ndarray, colour: tuple[int, int, int] = (255, 230, 60)) -> np.ndarray:
    """Landmarks (N,2) px as single bright pixels, in place; points outside or not finite are left out."""
    height, width = frame.shape[:2]
    with np.errstate(invalid="ignore"):
        inside = np.isfinite(points).all(1) & (points >= 0).all(1) & (points < [width, height]).all(1)
    x, y = points[inside].astype(int).T
    frame[y, x] = colour
    return frame


def write_overlay(path: Path, frames: Iterable[np.ndarray], track: Track, model: MorphableModel, points: np.ndarray,
                  audio: Path | None = None) -> None:
    """overlay.mp4: clean frame, landmarks, mesh, side by side. frames as of the track; points (T,N,2) px, NaN where none."""
    width, height = track.camera.width, track.camera.height
    with VideoWriter(path, 3 * width, height, track.fps, audio=audio, crf=20) as writer:
        for index, frame in enumerate(progress(frames, "overlay", total=len(track))):
            mesh = frame // 3
            if track.valid[index]:
                mesh = draw_mesh(frame, posed_vertices(model, track, index), model, track, index)
            writer.write(np.hstack([frame, draw_points(frame.copy(), points[index]), mesh]))


def write_curves(path: Path, track: Track, error: np.ndarray, split: dict[str, Sequence[Sequence[int]]] | None = None) -> None:
    """curves.png: pose, main coefficients, torso and landmark error (T,) px over time; held-out frames are shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seconds = np.arange(len(track)) / track.fps
    figure, axes = plt.subplots(4, 1, figsize=(12, 8), sharex=True, constrained_layout=True)
    for values, label in zip(np.degrees(head_angles(track.rotation)).T, ("yaw", "pitch", "roll")):
        axes[0].plot(seconds, values, label=label, lw=1)
    shown = [name for name in _CURVES if name in track.expression_names]
    for name in shown:
        axes[1].plot(seconds, track.column(name), label=name, lw=1)
    for values, label in zip(track.torso[:, :2].T * track.camera.width, ("torso x", "torso y")):
        axes[2].plot(seconds, values, label=label, lw=1)
    axes[3].plot(seconds, error, color="#d1495b", label="landmark error", lw=1)
    for axis, unit in zip(axes, ("head, degrees", "expression", "px", "px")):
        _dress(axis, unit, track, split)
    axes[-1].set_xlabel("s")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def _dress(axis: Any, unit: str, track: Track, split: dict[str, Sequence[Sequence[int]]] | None) -> None:
    """Labels, clip borders, held-out and invalid ranges of one plot."""
    axis.set_ylabel(unit)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper right", fontsize=8, frameon=False, ncols=6)
    for start in track.clip_starts[1:]:
        axis.axvline(start / track.fps, color="#cccccc", lw=0.6, zorder=0)
    for a, b in (split or {}).get("test", []):
        axis.axvspan(a / track.fps, b / track.fps, color="#edae49", alpha=0.2, lw=0, zorder=0)
    for index in np.flatnonzero(~track.valid):
        axis.axvspan(index / track.fps, (index + 1) / track.fps, color="#888888", alpha=0.3, lw=0, zorder=0)
