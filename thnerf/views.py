"""Cameras beside the fitted one, and what the head's field looks like to them besides colour: depth and normals.

The head is a volume and can be seen from any side, though only what the footage showed is there. Shoulders are a picture: they hang as a
plane at the depth of the neck and turn with the camera. The background stays where it is, like a backdrop that follows the camera.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, unreadable
from render.march import Volume, composite, march
from thnerf.avatar import Avatar
from thnerf.dataset import head_rays, pixel_directions
from thnerf.mesh import solid, typical

ORBIT_DEG, ORBIT_SECONDS = 15.0, 6.0
WIDEST_DEG = 60.0
RANGE_MM = 150.0
"""Depth pictures run from white, this much nearer than the head's origin, to black, this much farther."""
CARVE_MM = 3.0
_CARVE_CELL = 2.5
NOTHING_MM = 1e10
"""Depth in EXR where there is nothing."""


def place_camera(track: Track, text: str | Path) -> Track:
    """The track seen as `--camera` says: 'orbit', 'orbit:DEGREES' or the path of a .npz or .json.

    orbit: the camera swings on a circle around the head, from the middle to DEGREES (15, at most 60) on one side, to the other and back, in 6 s.
    A file holds `world_to_camera`: (T,4,4) or, for a camera that stands still, (1,4,4) rigid matrices in mm that map the footage's camera
    (x right, y down, z forward) to the new one; T is at least the number of frames. Raises InputError for anything else.
    """
    match = re.fullmatch(r"orbit(?::(\d+(?:\.\d+)?))?", str(text).strip().lower())
    camera = track.camera
    if match:
        degrees = float(match[1]) if match[1] else ORBIT_DEG
        if not 0 < degrees <= WIDEST_DEG:
            raise InputError(f"--camera orbit:DEGREES takes 1 to {WIDEST_DEG:g} degrees, not {match[1]}; the field has no back")
        angle = np.radians(degrees) * np.sin(2 * np.pi * np.arange(len(track)) / track.fps / ORBIT_SECONDS)
        turned = orbit(angle, np.median(track.translation, 0).astype(np.float64))
    else:
        turned = _read(Path(text), len(track))
    return track.replace(camera=Camera(camera.K, turned @ camera.world_to_camera, camera.width, camera.height))


def orbit(angle: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Rigid (T,4,4) that turn the world by angle (T,) rad about the vertical through `centre` (3,) mm: positive shows the subject's left side."""
    out = np.repeat(np.eye(4)[None], len(angle), 0)
    out[:, 0, 0] = out[:, 2, 2] = np.cos(angle)
    out[:, 0, 2], out[:, 2, 0] = np.sin(angle), -np.sin(angle)
    out[:, :3, 3] = centre - out[:, :3, :3] @ centre
    return out


def _read(path: Path, frames: int) -> np.ndarray:
    """world_to_camera (frames,4,4) of a camera file."""
    if not path.is_file():
        raise InputError(f"--camera takes orbit, orbit:DEGREES or a .npz or .json with world_to_camera, not {str(path)!r}")
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as data:
                poses = np.asarray(data["world_to_camera"], np.float64)
        else:
            poses = np.asarray(json.loads(path.read_text())["world_to_camera"], np.float64)
    except Exception as error:  # numpy, zipfile and json each raise their own kinds
        raise InputError(f"{path} is no camera file ({unreadable(error)}); it needs world_to_camera, (T,4,4), in mm") from None
    rigid = poses.ndim == 3 and poses.shape[1:] == (4, 4) and np.isfinite(poses).all() and np.allclose(poses[:, 3], [0, 0, 0, 1]) and \
        np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.eye(3), atol=1e-3) and (np.linalg.det(poses[:, :3, :3]) > 0).all()
    if not rigid:
        raise InputError(f"world_to_camera in {path} must be (T,4,4) rotations with translations in mm, without scale or mirror, and has shape {poses.shape}")
    if len(poses) not in (1, *range(frames, len(poses) + 1)):
        raise InputError(f"{path} has {len(poses)} cameras and the video {frames} frames; give one for each frame, or a single one")
    return np.repeat(poses, frames, 0) if len(poses) == 1 else poses[:frames]


def carved(avatar: Avatar, subject: Subject, expressions: int = 5) -> Volume:
    """The avatar's volume without what floats before the surface or hangs behind it, for cameras beside the fitted one.

    From the front such density is hidden by, or looks like, the surface behind it; from the side it shows. Kept is what lies within
    CARVE_MM of the head's body (`thnerf.mesh.solid`) in the typical expression and in those of the footage furthest from it and each other.
    """
    from scipy.ndimage import distance_transform_edt

    track, train = subject.track, subject.frames("train")
    whitened = avatar.condition.expression(track)[train]
    parts, distance = [typical(subject, None)], ((whitened - np.median(whitened, 0)) ** 2).sum(1)
    for _ in range(min(expressions, len(train))):
        far = int(distance.argmax())
        parts.append(track[int(train[far]) : int(train[far]) + 1])
        distance = np.minimum(distance, ((whitened - whitened[far]) ** 2).sum(1))
    bodies = [solid(avatar, subject, part, _CARVE_CELL) for part in parts]
    volume, cells = avatar.volume, 2 * len(avatar.volume.occupancy)
    centre = [volume.lower[k] + (np.arange(cells) + 0.5) / cells * (volume.upper[k] - volume.lower[k]) for k in range(3)]
    near = np.zeros((cells,) * 3, bool)
    for values, lower in bodies:
        away = distance_transform_edt(values <= 0.5) * _CARVE_CELL
        index = np.ix_(*(np.clip(((c - low) / _CARVE_CELL).astype(int), 0, n - 1) for c, low, n in zip(centre, lower, values.shape)))
        near |= away[index] <= CARVE_MM
    fine = volume.occupancy.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return dataclasses.replace(volume, occupancy=np.ascontiguousarray(fine & near))


def head_depth(avatar: Avatar, track: Track, index: int, chunk: int = 16384) -> tuple[np.ndarray, np.ndarray]:
    """Expected depth (H,W) float32, camera z in mm (0 where there is nothing), and opacity (H,W) of the head layer in one frame."""
    part = track[index : index + 1]
    condition, camera = avatar.condition, part.camera
    psi, pose = condition.expression(part), condition.pose(part)
    origins, matrices = avatar.correction.apply_to_rays(avatar.pose_features(pose, psi), *head_rays(part, np.array([0])))
    v, u = (a.ravel() for a in np.mgrid[0 : camera.height, 0 : camera.width])
    directions = pixel_directions(np.linalg.inv(camera.K), u, v) @ matrices[0].T  # z = 1 in the camera: a ray's parameter is its depth
    field = avatar.field(psi, pose)
    volume, extent = avatar.volume, (avatar.volume.upper - avatar.volume.lower).astype(np.float32)
    avatar.head.eval()
    depth, opacity = np.zeros(len(u), np.float32), np.zeros(len(u), np.float32)
    with torch.no_grad():
        for a in range(0, len(u), chunk):
            d = directions[a : a + chunk]
            samples = march(np.broadcast_to(origins[0], d.shape), d, volume)
            density, _ = field(torch.from_numpy(samples.positions))
            along = ((samples.positions * extent + volume.lower - origins[0]) * d[samples.ray]).sum(1) / (d * d).sum(1)[samples.ray]
            total, transmittance, _ = composite(density, torch.from_numpy(np.repeat(along[:, None], 3, 1).astype(np.float32)), volume.optical_step, samples.offsets)
            seen = 1 - transmittance.numpy()
            opacity[a : a + chunk] = seen
            depth[a : a + chunk] = np.where(seen > 1e-3, total[:, 0].numpy() / np.maximum(seen, 1e-3), 0)
    return depth.reshape(camera.height, camera.width), opacity.reshape(camera.height, camera.width)


def normals_of(depth: np.ndarray, opacity: np.ndarray, camera: Camera, smooth_mm: float = 2.0) -> np.ndarray:
    """Unit normals (H,W,3) of a depth picture: x right, y up, z to the viewer; zeros where less than half is opaque.

    From differences between neighbouring points, after smoothing the depth by about `smooth_mm` (the field's own grain is finer than its shape).
    """
    from scipy.ndimage import gaussian_filter

    there = opacity > 0.5
    if not there.any():
        return np.zeros((*depth.shape, 3), np.float32)
    sigma = smooth_mm * camera.K[0, 0] / float(np.median(depth[there]))
    weight = gaussian_filter(there.astype(np.float64), sigma)
    z = gaussian_filter(np.where(there, depth, 0.0).astype(np.float64), sigma) / np.maximum(weight, 1e-6)
    points = camera.ray_directions().astype(np.float64) * z[..., None]
    across, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
    normal = np.cross(down, across)  # down × right points to the viewer
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    normal = normal * [1, -1, -1]
    return np.where(there[..., None], normal, 0).astype(np.float32)


class GeometryRenderer:
    """A Renderer of depth or normals of the head layer (shoulders are a flat picture and have none), on the CPU, about a frame a second.

    numbers: values as they are, for EXR: depth (H,W,2) = mm and opacity, normals (H,W,4) = x, y, z and opacity. Otherwise pictures (H,W,3):
    depth white near and black far, normals (n + 1) / 2 on black.
    """

    def __init__(self, avatar: Avatar, kind: Literal["depth", "normals"], numbers: bool, middle_mm: float) -> None:
        self.avatar, self.kind, self.numbers, self.middle_mm = avatar, kind, numbers, middle_mm

    def frame(self, track: Track, index: int, background: Any = None) -> np.ndarray:
        """One frame, see the class."""
        depth, opacity = head_depth(self.avatar, track, index)
        there = opacity[..., None] > 0.5
        if self.kind == "depth":
            if self.numbers:
                return np.concatenate([np.where(there, depth[..., None], NOTHING_MM), opacity[..., None]], -1).astype(np.float32)
            grey = np.clip(0.5 - (depth[..., None] - self.middle_mm) / (2 * RANGE_MM), 0, 1)
            return np.repeat(np.where(there, grey, 0), 3, -1).astype(np.float32)
        normal = normals_of(depth, opacity, track.camera.at(slice(index, index + 1)))
        if self.numbers:
            return np.concatenate([normal, opacity[..., None]], -1).astype(np.float32)
        return np.where(there, (normal + 1) / 2, 0).astype(np.float32)

    def frame_rgba(self, track: Track, index: int) -> np.ndarray:
        """The same; there is nothing transparent to add."""
        return self.frame(track, index)
