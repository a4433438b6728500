"""Render the phantom: a Track and an identity in, frames and a video out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator

import numpy as np

from recon.model import MorphableModel, load_model
from recon.track import Track
from render.camera import Camera
from render.files import InputError, atomic_path, check_number
from render.progress import progress
from render.raster import rasterise, vertex_normals
from render.rotations import axis_angle_to_matrix
from thnerf.phantom.appearance import LIPS_INNER, Look, draw_look, paint_room, paint_skin
from thnerf.phantom.figure import Figure, build_figure, lash_curves
from thnerf.phantom.geometry import FIELD_MM, eye_points
from thnerf.phantom.hair import draw_strands, shade_strands
from thnerf.phantom.motion import REACH, phantom_track
from thnerf.phantom.shading import shade
from thnerf.phantom.speech import speak

_SUPERSAMPLING = 2
_SHADOW_SIZE, _SHADOW_FIELD, _LIGHT_DISTANCE = 320, 520.0, 3000.0  # px, mm, mm
_LEAD, _TAIL = 0.30, 0.55  # s of silence before and after the speech
DEFAULT_TEXT = "Hello. I am a phantom: nobody ever filmed me, and every word I speak was typed."


class Studio:
    """Renders one identity, frame by frame. Build it once for a track: the head, its skin, hair and room are made here."""

    def __init__(self, model: MorphableModel, track: Track, look: Look) -> None:
        self.look, self.track = look, track
        self.figure = build_figure(model, track.shape, look)
        mean_eyes = eye_points(model, np.zeros(1)).mean(0)
        self.atlas = paint_skin(model, look, mean_eyes)
        self.camera = track.camera.resized(_SUPERSAMPLING * track.camera.width, _SUPERSAMPLING * track.camera.height)
        self.room = paint_room(look, self.camera.width)
        if self.camera.height != self.camera.width:
            raise ValueError("the phantom is rendered square")
        self.lips = (model.points(model.mean, "mediapipe478")[list(LIPS_INNER)] - mean_eyes).mean(0)[1:3].astype(np.float64)
        centres = eye_points(model, np.zeros(1))
        radius = np.linalg.norm(model.mean[self.figure.eye_masks[0]] - centres[0], axis=1).max()
        self.eyes = np.concatenate([centres - mean_eyes, np.full((2, 1), radius)], 1)
        self.sky = look.key * np.array([0.20, 0.21, 0.23])
        self.ground = look.key * look.wall * 0.14
        self.stripe = np.append(look.stripe if look.stripe is not None else np.zeros(3), look.stripe is not None)
        self._scalp_shade()
        self._light()

    def _scalp_shade(self) -> None:
        """Darken the skin under the hair towards its colour, so that no scalp shines through."""
        from thnerf.phantom.appearance import ATLAS_HEIGHT, ATLAS_WIDTH, hair_mask

        rows, columns = np.mgrid[:ATLAS_HEIGHT, :ATLAS_WIDTH] + 0.5
        angle = (columns / ATLAS_WIDTH - 0.5) * 2 * np.pi
        height = 150.0 - rows / ATLAS_HEIGHT * 380.0
        points = np.stack([np.sin(angle) * 78, height, np.cos(angle) * 78 - 80.0], -1)
        mask = np.clip(hair_mask(points, np.zeros(3)), 0, 1)[..., None] * 0.85
        self.atlas[..., :3] = self.atlas[..., :3] * (1 - mask) + self.look.hair * 0.45 * mask
        self.atlas[..., 3:] *= 1 - mask

    def _light(self) -> None:
        """The camera of the key light: far away, looking at the figure."""
        z = -self.look.key_direction
        x = np.cross((0.0, 1.0, 0.0), z)
        x /= np.linalg.norm(x)
        rotation = np.stack([x, np.cross(z, x), z])
        target = np.array([0.0, 40.0, self.camera.K[0, 0] / self.camera.width * FIELD_MM + 40])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, (0, 0, _LIGHT_DISTANCE) - rotation @ target
        self.light_focal = _SHADOW_SIZE * _LIGHT_DISTANCE / _SHADOW_FIELD
        base = Camera.simple(self.light_focal, _SHADOW_SIZE, _SHADOW_SIZE)
        self.light_camera = Camera(base.K, pose[None], _SHADOW_SIZE, _SHADOW_SIZE)

    def frame(self, index: int) -> np.ndarray:
        """Frame `index` of the track: (H,W,3) uint8 sRGB."""
        figure, look, track = self.figure, self.look, self.track
        vertices = figure.pose(track, index)
        fragments = rasterise(vertices, figure.faces, self.camera, index)
        normals = vertex_normals(vertices, figure.faces)
        shadow = rasterise(vertices, figure.faces, self.light_camera).depth
        names = track.expression_names
        weight = dict(zip(names, track.expression[index]))
        gap = max(0.0, float(weight.get("jawOpen", 0) - weight.get("mouthClose", 0)))
        openness = min(1.0, 0.25 + 2.2 * gap)
        image = self.room.copy()
        shade(fragments.face, fragments.barycentric, figure.faces, figure.material, vertices, normals, figure.rest, figure.uv, self.atlas, self.eyes,
              look.iris, look.cloth, self.stripe, self.lips, openness, shadow, self.light_camera.world_to_camera[0],
              self.light_focal, look.key_direction, look.key, self.sky, self.ground, image)
        depth = fragments.depth.copy()
        image *= _crevices(depth)[..., None]
        self._strands(image, depth, vertices, index)
        return self._develop(image, index)

    def _strands(self, image: np.ndarray, depth: np.ndarray, vertices: np.ndarray, index: int) -> None:
        """Draw hair, brows and lashes. Changes `image` and `depth`."""
        figure, look, track = self.figure, self.look, self.track
        rotation = axis_angle_to_matrix(track.rotation[index])
        light = (look.key_direction, look.key, self.sky)
        hair = figure.hair
        place = (rotation, track.translation[index].astype(np.float64))
        world, colour = shade_strands(hair.points, hair.outward, hair.light, hair.colour, *place, *light, 1.0)
        draw_strands(world, colour, self.camera.K, image, depth, 0.0, True, 0.75)
        corners, weights, directions = figure.brows
        root = (vertices[corners] * weights[..., None]).sum(1)
        tip = root + directions @ rotation.T
        brow = np.stack([root - 0.3 * rotation[:, 2], 0.5 * (root + tip) + 0.9 * rotation[:, 2], tip + 0.4 * rotation[:, 2]], 1)
        curves = np.concatenate([brow, lash_curves(figure, vertices, rotation, look.rng(5))]).astype(np.float64)
        outward = np.broadcast_to(rotation[:, 2], curves.shape)
        shades = np.concatenate([np.broadcast_to(look.hair * 0.75, (len(brow), 3)), np.broadcast_to(look.hair * 0.15, (len(curves) - len(brow), 3))])
        tint = shades * np.exp(look.rng(6).normal(0, 0.25, (len(shades), 1)))
        world, colour = shade_strands(curves, outward, np.full(curves.shape[:2], 0.75), tint, np.eye(3), np.zeros(3), *light, 0.3)
        draw_strands(world, colour, self.camera.K, image, depth, 1.5, False, 0.5)

    def _develop(self, image: np.ndarray, index: int) -> np.ndarray:
        """Linear light at the supersampled size → sRGB frame: average, shoulder of the film curve, a touch of sensor noise."""
        import cv2

        h, w = self.track.camera.height, self.track.camera.width
        x = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        x = x * (1 + x / 3.2) / (1 + 0.55 * x)
        srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-6) ** (1 / 2.4) - 0.055)
        noise = np.random.default_rng([self.look.seed, 0x4015E, index]).standard_normal((h, w, 1)).astype(np.float32)
        return np.clip(srgb * 255 + 0.7 * noise + 0.5, 0, 255).astype(np.uint8)


def _crevices(depth: np.ndarray) -> np.ndarray:
    """Darkening (H,W) of what lies deeper than its surroundings (Luft et al. 2006), from the depth buffer."""
    import cv2

    covered = np.isfinite(depth)
    scale = depth.shape[0] / 512
    small = lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)  # noqa: E731
    weight, filled = small(covered.astype(np.float32)), small(np.where(covered, depth, 0).astype(np.float32))
    out = np.ones(weight.shape, np.float32)
    for sigma, reach, strength in ((2.0, 3.0, 0.30), (7.0, 14.0, 0.38)):
        mean = cv2.GaussianBlur(filled, (0, 0), sigma * scale) / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma * scale), 1e-3)
        behind = np.clip((filled / np.maximum(weight, 1e-3) - mean) / reach, 0, 1)
        out *= 1 - strength * behind * (weight > 0.5)
    return np.where(covered, cv2.resize(out, depth.shape[::-1], interpolation=cv2.INTER_LINEAR), 1).astype(np.float32)


def phantom_frames(track: Track, identity: int, model: MorphableModel | None = None) -> Iterator[np.ndarray]:
    """The frames of a track, (H,W,3) uint8, one by one. Raises InputError when the track is of another face model."""
    model = model or load_model("default")
    if track.model_id != model.model_id:
        raise InputError(f"the track is of face model {track.model_id}, the phantom of {model.model_id}; make it again with thnerf phantom")
    studio = Studio(model, track, draw_look(identity))
    for index in range(len(track)):
        yield studio.frame(index)


def render_phantom(track: Track, identity: int, out: Path, audio: tuple[np.ndarray, int] | Path | None = None, crf: float = 14,
                   model: MorphableModel | None = None) -> None:
    """Render a track with an identity's look to an H.264 mp4, with sound when given. Raises InputError like `phantom_frames`."""
    from render.video import VideoWriter

    with VideoWriter(out, track.camera.width, track.camera.height, track.fps, audio=audio, crf=crf, synthetic=True) as writer:
        for frame in progress(phantom_frames(track, identity, model), "phantom", total=len(track)):
            writer.write(frame)


def identity_shape(model: MorphableModel, identity: int) -> np.ndarray:
    """Shape coefficients (S,) float32 of an identity seed: moderate, so that nobody is a caricature."""
    rng = np.random.default_rng([identity, 0x1D])
    return np.clip(rng.standard_normal(len(model.shape_basis)) * 0.65, -1.4, 1.4).astype(np.float32)


def utterance(text: str, voice: str, rate: int, fps: float, pitch: int = 50) -> tuple[np.ndarray, int, list[tuple[str, float, float]]]:
    """Speech with silence around it, cut to whole frames: (samples, sample rate, phonemes)."""
    samples, sample_rate, phonemes = speak(text, voice, rate, pitch)
    frames = int(np.ceil((_LEAD + len(samples) / sample_rate + _TAIL) * fps))
    count = int(round(frames / fps * sample_rate))
    padded = np.zeros(count, np.float32)
    lead = int(_LEAD * sample_rate)
    padded[lead : lead + len(samples)] = samples
    shifted = [("_", 0.0, lead / sample_rate)] + [(s, a + lead / sample_rate, b + lead / sample_rate) for s, a, b in phonemes]
    return padded, sample_rate, shifted + [("_", shifted[-1][2], count / sample_rate)]


def make_phantom(out: Path, text: str | None = None, seed: int = 0, identity: int = 0, size: int = 256, fps: float = 25,
                 voice: str = "en-us", rate: int = 155, reach: tuple[float, float, float] = REACH) -> dict:
    """Make a synthetic talking person in the folder `out`: video.mp4 (with sound), audio.wav, track.npz (exact truth), phantom.json.

    seed: of the motion. identity: of the person. reach: degrees of yaw, pitch and roll that the head keeps within. Returns {frames, seconds, size, fps, identity, seed, text, video, audio, track}.
    Raises InputError for bad text, voice, size or reach.
    """
    for name, value, low, high in (("--size", size, 64, 2048), ("--fps", fps, 1, 240), ("--seed", seed, 0, 2**31 - 1), ("--identity", identity, 0, 2**31 - 1)):
        check_number(name, value, low, high)
    if size % 2:
        raise InputError(f"--size must be an even number of pixels, not {size}")
    if not all(0 <= angle <= 60 for angle in reach):
        raise InputError(f"--reach takes yaw, pitch and roll of 0 to 60 degrees, not {' '.join(f'{a:g}' for a in reach)}")
    out, text = Path(out), DEFAULT_TEXT if text is None else text
    model = load_model("default")
    samples, sample_rate, phonemes = utterance(text, voice, rate, fps)
    track = phantom_track(phonemes, samples, sample_rate, model, identity_shape(model, identity), seed=seed, fps=fps, size=size, reach=reach)
    track = track.replace(meta={**track.meta, "identity": int(identity), "text": text})
    write_sound(out / "audio.wav", samples, sample_rate)
    track.save(out / "track.npz")
    render_phantom(track, identity, out / "video.mp4", (samples, sample_rate), model=model)
    info = {"frames": len(track), "seconds": len(track) / fps, "size": size, "fps": fps, "identity": identity, "seed": seed, "text": text}
    with atomic_path(out / "phantom.json") as temporary:
        temporary.write_text(json.dumps(info, indent=1) + "\n")
    return {**info, **{name: str(out / file) for name, file in (("video", "video.mp4"), ("audio", "audio.wav"), ("track", "track.npz"))}}


def write_sound(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write mono 16-bit wav, atomically."""
    import soundfile

    with atomic_path(path) as temporary:
        soundfile.write(str(temporary), np.clip(samples, -1, 1), rate, subtype="PCM_16")
