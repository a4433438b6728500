"""A toy subject with an exact track: an ellipsoid head that turns, blinks and opens its mouth, above moving shoulders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from recon.model import Embedding, MorphableModel
from recon.subject import Subject, make_split, write_subject
from recon.track import Track
from render.camera import Camera
from render.rotations import from_head_angles
from render.video import VideoWriter

RADII = np.array([75.0, 100.0, 90.0])
NAMES = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "mouthSmile")


def toy_model() -> MorphableModel:
    """An ellipsoid with the nose towards +z; jawOpen pulls the lower face down."""
    rows, columns = 25, 32
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns, endpoint=False), indexing="ij")
    unit = np.stack([np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], -1).reshape(-1, 3)
    i, j = (a.ravel() for a in np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij"))
    a, b, c, d = i * columns + j, i * columns + (j + 1) % columns, (i + 1) * columns + j, (i + 1) * columns + (j + 1) % columns
    faces = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    mean = (unit * RADII).astype(np.float32)
    lower = np.clip(-unit[:, 1] - 0.25, 0, None) * (unit[:, 2] > 0)
    expression = np.zeros((len(NAMES), len(mean), 3), np.float32)
    expression[0, :, 1] = -25 * lower
    expression[3, :, 0] = 8 * unit[:, 0] * lower
    targets = _ibug_targets()
    nearest = np.linalg.norm(unit[None] - targets[:, None], axis=-1).argmin(1)
    face = np.array([np.flatnonzero((faces == v).any(1))[0] for v in nearest])
    embedding = Embedding(face, (faces[face] == nearest[:, None]).astype(np.float32))
    shape = np.zeros((1, len(mean), 3), np.float32)
    shape[0] = mean * 0.02
    return MorphableModel("toy", mean, shape, expression, faces, NAMES, {"ibug68": embedding})


def _ibug_targets() -> np.ndarray:
    """Directions of 68 points: jaw line, brows, nose, eyes, lips."""
    at = lambda x, y: np.stack([x, y, np.sqrt(np.maximum(0.02, 1 - x**2 - y**2))], -1)  # noqa: E731
    ring = lambda cx, cy, rx, ry, n: at(cx + rx * np.cos(np.linspace(0, 2 * np.pi, n, endpoint=False)), cy + ry * np.sin(np.linspace(0, 2 * np.pi, n, endpoint=False)))  # noqa: E731
    jaw = np.linspace(-np.pi, 0, 17)
    parts = [at(0.75 * np.cos(jaw), 0.1 + 0.9 * np.sin(jaw)), at(np.linspace(-0.6, 0.6, 10), np.full(10, 0.45)), at(np.zeros(4), np.linspace(0.3, 0, 4)),
             at(np.linspace(-0.2, 0.2, 5), np.full(5, -0.05)), ring(-0.35, 0.25, 0.15, 0.08, 6), ring(0.35, 0.25, 0.15, 0.08, 6), ring(0, -0.4, 0.3, 0.15, 12), ring(0, -0.4, 0.2, 0.08, 8)]
    return np.concatenate(parts)


def toy_track(frames: int, size: int, seed: int = 0) -> Track:
    """Smooth random motion."""
    rng, t = np.random.default_rng(seed), np.arange(frames) / 25
    wave = lambda hz, phase: np.sin(2 * np.pi * hz * t + phase)  # noqa: E731
    phases = rng.uniform(0, 2 * np.pi, 8)
    angles = np.stack([0.2 * wave(0.3, phases[0]), 0.1 * wave(0.4, phases[1]), 0.05 * wave(0.5, phases[2])], 1)
    blink = (wave(0.7, phases[3]) > 0.8).astype(float)
    expression = np.stack([0.5 + 0.5 * wave(1.1, phases[4]), blink, blink, 0.5 + 0.5 * wave(0.6, phases[5])], 1)
    translation = np.stack([8 * wave(0.2, phases[6]), -60 + 5 * wave(0.35, phases[7]), np.full(frames, 900.0)], 1)
    torso = np.stack([0.02 * wave(0.25, 1.0), 0.01 * wave(0.15, 2.0), 0 * t, 0 * t], 1)
    return Track(25, "toy", Camera.simple(3.2 * size, size, size, frames), np.zeros(1), expression, from_head_angles(angles), translation,
                 np.zeros((frames, 2, 2)), torso, np.ones(frames, bool), NAMES)


def toy_background(size: int) -> np.ndarray:
    v, u = np.mgrid[0:size, 0:size] / size
    return np.stack([0.2 + 0.3 * u, 0.4 + 0.2 * v, 0.6 - 0.3 * u], -1)


def toy_frame(track: Track, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (H,W,3) in [0,1] and matte (H,W) in {0,1} of one frame, by exact ray casting."""
    from thnerf.dataset import head_rays

    size = track.camera.width
    image, matte = toy_background(size), np.zeros((size, size), bool)
    v, u = (np.mgrid[0:size, 0:size] + 0.5) / size
    tx, ty = track.torso[index, :2]
    shoulders = (v - ty > 0.8) & (np.abs(u - tx - 0.5) < 0.25 + 0.8 * (v - ty - 0.8))
    stripes = 0.5 + 0.3 * np.sin(40 * (u - tx)) * np.sin(40 * (v - ty))
    image[shoulders] = np.stack([0.2 + 0 * stripes, stripes, 0.5 * stripes], -1)[shoulders]
    origin, matrix = (a[0] for a in head_rays(track, np.array([index])))
    d = track.camera.ray_directions() @ matrix.T / RADII
    o = origin / RADII
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - 1
    hit = b * b - a * c > 0
    p = o + d * ((-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a)[..., None]
    colour = np.stack([0.8 + 0.1 * np.sin(9 * p[..., 0]), 0.6 + 0.1 * np.sin(11 * p[..., 1]), 0.5 + 0 * p[..., 0]], -1)
    jaw, left, right, _ = track.expression[index]
    mouth = (p[..., 0] / 0.28) ** 2 + ((p[..., 1] + 0.42) / (0.03 + 0.15 * jaw)) ** 2 < 1
    colour[mouth] = [0.25, 0.05, 0.08]
    for x, closed in ((0.35, left), (-0.35, right)):
        eye = ((p[..., 0] - x) / 0.15) ** 2 + ((p[..., 1] - 0.25) / (0.02 + 0.08 * (1 - closed))) ** 2 < 1
        colour[eye] = [0.95, 0.95, 0.95]
    image[hit] = colour[hit]
    return image, shoulders | hit


def make_subject(path: Path, frames: int = 66, size: int = 96) -> Subject:
    """Write a complete subject folder (without sound)."""
    path.mkdir(parents=True, exist_ok=True)
    track = toy_track(frames, size)
    track.save(path / "track.npz")
    with VideoWriter(path / "video.mp4", size, size, 25, crf=8) as video, VideoWriter(path / "matte.mp4", size, size, 25, grey=True) as matte:
        for i in range(frames):
            image, mask = toy_frame(track, i)
            video.write((image * 255 + 0.5).astype(np.uint8))
            matte.write(mask.astype(np.uint8) * 255)
    Image.fromarray((toy_background(size) * 255).astype(np.uint8)).save(path / "background.png")
    write_subject(path, {"clips": [{"source": "toy", "start": 0, "end": frames}], "crop": {"x": 0, "y": 0, "side": size, "size": size},
                         "split": make_split((0,), frames), "consent": None, "has_audio": False})
    return Subject.open(path)
