"""Frames of a trained subject: `HeadRenderer.frame(track, index)`, on the fused CPU kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from thnerf import fused
from thnerf.avatar import Avatar
from thnerf.dataset import head_rays, load_background
from thnerf.encodings import HashGridLayout
from thnerf.torso import FREQUENCIES, MARGIN, REACH

STOP = 0.01  # light left behind which a ray is not followed


class HeadRenderer:
    """Renders a subject from any Track of the same face model and torso size. Frames do not depend on each other.

    background: default plate (H,W,3) float32 in [0,1], at any size.
    """

    def __init__(self, avatar: Avatar, background: np.ndarray) -> None:
        self.avatar, self.background = avatar, np.asarray(background, np.float32)
        array = lambda t: np.ascontiguousarray(t.detach().numpy(), np.float32)  # noqa: E731
        head, torso = avatar.head, avatar.torso
        self._head_layers = tuple(array(p) for layer in (head.first, head.second, head.last) for p in (layer.weight, layer.bias))
        self._prior = array(head.prior)
        self._torso_table = array(avatar.torso_tables.tables[:, 0]).reshape(-1, 2)
        channels = avatar.torso_layout.channels
        self._torso_first, self._torso_conditions = array(torso.first.weight[:, :channels]), array(torso.first.weight[:, channels:])
        self._plates: dict[tuple[int, int], np.ndarray] = {}
        self._waves: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._order: dict[tuple[int, int], np.ndarray] = {}

    @classmethod
    def load(cls, run_dir: Path, subject: Subject, device: str = "auto") -> "HeadRenderer":
        """Read a run folder. Raises InputError when it holds no usable weights or the device is not to be had."""
        if device not in ("auto", "cpu"):
            raise InputError(f"--device takes auto or cpu in this version, not {device!r}")
        camera = subject.track.camera
        return cls(Avatar.load(run_dir / "field.safetensors"), load_background(subject, camera.width, camera.height))

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """One frame (H,W,3) float32 in [0,1] at the size of the track's camera. background: (H,W,3) float32 in [0,1], else the subject's."""
        colour, opacity = self._person(track, index)
        plate = self._plate(track) if background is None else _resized(np.asarray(background, np.float32), track)
        return np.clip(colour + (1 - opacity[..., None]) * plate, 0, 1)

    def frame_rgba(self, track: Track, index: int) -> np.ndarray:
        """The person alone (H,W,4) float32 in [0,1]: straight (not premultiplied) colour, and opacity."""
        colour, opacity = self._person(track, index)
        straight = colour / np.maximum(opacity, 1e-4)[..., None]
        return np.clip(np.concatenate([straight, opacity[..., None]], -1), 0, 1)

    def _person(self, track: Track, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Premultiplied colour (H,W,3) and opacity (H,W) of head over torso."""
        part = track[index : index + 1]
        if len(part) != 1:
            raise IndexError(f"frame {index} of a track of {len(track)}")
        condition = self.avatar.condition
        psi, pose, torso = condition.expression(part), condition.pose(part), condition.torso(part)
        colour, opacity = self._render_head(part, psi, pose)
        row = int(np.ceil(self.avatar.row * track.camera.height - 1e-9))
        if row < track.camera.height:
            shade, cover = self._render_torso(part, row, pose, torso)
            behind = (1 - opacity[row:]) * cover[row:]
            colour[row:] += behind[..., None] * shade[row:]
            opacity[row:] += behind
        return colour, opacity

    def _render_head(self, part: Track, psi: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        avatar, camera = self.avatar, part.camera
        volume = avatar.volume
        origins, matrices = avatar.correction.apply_to_rays(avatar.pose_features(pose, psi), *head_rays(part, np.array([0])))
        extent = (volume.upper - volume.lower).astype(np.float32)
        table = avatar.blend(torch.from_numpy(psi)).detach().numpy().reshape(-1, 2)
        colour, opacity = np.empty((camera.height, camera.width, 3), np.float32), np.empty((camera.height, camera.width), np.float32)
        fused.render_head(
            self._tile_order(camera.width, camera.height), ((origins[0] - volume.lower) / extent).astype(np.float32),
            (matrices[0].astype(np.float64) @ np.linalg.inv(camera.K)).astype(np.float32), extent, np.float32(volume.step), np.float32(volume.optical_step),
            np.float32(STOP), volume.occupancy, self._prior, _grid(avatar.layout), table, self._head_layers, colour, opacity)
        return colour, opacity

    def _render_torso(self, part: Track, row: int, pose: np.ndarray, torso: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        avatar, (width, height) = self.avatar, (part.camera.width, part.camera.height)
        layer = avatar.torso
        conditions = np.concatenate([torso, pose], 1)[0]
        by_column, by_row = self._warp_waves(width, height)
        with torch.no_grad():
            warp_bias = layer.warp_first.bias.numpy() + layer.warp_first.weight[:, 4 * FREQUENCIES :].numpy() @ conditions
            affine = np.tensordot(torso[0], layer.affine.numpy(), 1).astype(np.float32)
            layers = (self._torso_first, layer.first.bias.numpy() + self._torso_conditions @ conditions, layer.last.weight.numpy(), layer.last.bias.numpy())
            warp = layer.warp_last.weight.numpy(), layer.warp_last.bias.numpy()
        colour, opacity = np.empty((height, width, 3), np.float32), np.empty((height, width), np.float32)
        fused.render_torso(row, by_column, (by_row + warp_bias).astype(np.float32), warp, affine, np.float32(MARGIN), np.float32(REACH),
                           _grid(avatar.torso_layout), self._torso_table, layers, colour, opacity)
        return colour, opacity

    def _warp_waves(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """The waves of a column see only u, those of a row only v: their part of the first warp layer, (W,hidden) and (H,hidden)."""
        if (width, height) not in self._waves:
            weight = self.avatar.torso.warp_first.weight.detach().numpy()[:, : 4 * FREQUENCIES].reshape(-1, 2, 2 * FREQUENCIES)

            def part(count: int, axis: int) -> np.ndarray:
                angles = (np.arange(count)[:, None] + 0.5) / count * np.pi * 2.0 ** np.arange(FREQUENCIES)
                return np.ascontiguousarray(np.concatenate([np.sin(angles), np.cos(angles)], 1) @ weight[:, axis].T, np.float32)

            self._waves[width, height] = part(width, 0), part(height, 1)
        return self._waves[width, height]

    def _tile_order(self, width: int, height: int) -> np.ndarray:
        """Tiles dealt out like cards, so that threads that take contiguous runs get equal work."""
        if (width, height) not in self._order:
            count = -(-width // fused.TILE) * -(-height // fused.TILE)
            self._order[width, height] = np.random.default_rng(0).permutation(count)
        return self._order[width, height]

    def _plate(self, track: Track) -> np.ndarray:
        size = track.camera.width, track.camera.height
        if size not in self._plates:
            self._plates[size] = _resized(self.background, track)
        return self._plates[size]


def _grid(layout: HashGridLayout) -> tuple[np.ndarray, ...]:
    return layout.scales, layout.resolutions, layout.entries, layout.hashed, layout.offsets


def _resized(plate: np.ndarray, track: Track) -> np.ndarray:
    """A background (H,W,3) at the size of the track's camera."""
    width, height = track.camera.width, track.camera.height
    if plate.shape[:2] == (height, width):
        return plate
    from PIL import Image

    image = Image.fromarray((np.clip(plate, 0, 1) * 255 + 0.5).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255
