"""What the tests of exports and imports share: a moving head of the default model, and a subject that it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recon.model import load_model
from recon.subject import Subject, make_split, write_subject
from recon.track import Track
from render.camera import Camera
from render.rotations import from_head_angles
from thnerf.export import ExportOptions, Scene

EXACT = ("livelink", "json", "csv", "anim", "clip", "npz")  # two-way formats that carry expressions and pose


def moving_track(frames: int = 40, fps: float = 25.0, seed: int = 0) -> Track:
    """Random smooth motion of the default face model."""
    model, rng, t = load_model(), np.random.default_rng(seed), np.arange(frames)[:, None] / fps
    wave = lambda n: np.sin(2 * np.pi * rng.uniform(0.3, 1.5, n) * t + rng.uniform(0, 6.3, n))  # noqa: E731
    E = len(model.expression_names)
    return Track(
        fps=fps, model_id=model.model_id, camera=Camera.simple(600, 128, 128, frames), shape=rng.normal(0, 0.5, len(model.shape_basis)),
        expression=np.clip(0.3 + 0.3 * wave(E) + rng.uniform(0, 0.02, (frames, E)), 0, 1), rotation=from_head_angles(0.4 * wave(3)),
        translation=np.array([5.0, -8.0, 600.0]) + 12 * wave(3), gaze=0.3 * wave(4).reshape(frames, 2, 2), torso=0.02 * wave(4),
        valid=np.ones(frames, bool), expression_names=model.expression_names)


def moving_scene(frames: int = 40, fps: float = 25.0, seed: int = 0) -> Scene:
    """The same as a scene of nobody."""
    return Scene(moving_track(frames, fps, seed), "someone", load_model())


def small_subject(path: Path, track: Track) -> Subject:
    """A subject folder with what an import needs: the track and the split; its pictures are none."""
    path.mkdir(parents=True, exist_ok=True)
    track.save(path / "track.npz")
    for name in ("video.mp4", "matte.mp4", "background.png"):  # an import looks whether they are there
        (path / name).write_bytes(b"-")
    write_subject(path, {"clips": [{"source": "toy", "start": 0, "end": len(track)}], "split": make_split((0,), len(track)), "has_audio": False})
    return Subject(path)


def told(options: ExportOptions, fps: float) -> ExportOptions:
    """The same options with the frame rate, for files that carry none."""
    from dataclasses import replace

    return replace(options, fps=fps)
