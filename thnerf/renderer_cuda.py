"""Frames of a trained subject on CUDA: the head by the fused Triton kernel, the torso in torch, layers composited on the device."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from recon.subject import Subject
from recon.track import Track
from render.march import Volume
from thnerf import fused_triton
from thnerf.avatar import Avatar
from thnerf.dataset import head_rays
from thnerf.renderer import STOP, HeadRenderer


class CudaRenderer(HeadRenderer):
    """`HeadRenderer` with both layers drawn on a device. With TRITON_INTERPRET=1 it runs on the CPU, slowly, for tests."""

    _on_device: Avatar

    @classmethod
    def load(cls, run_dir: Path, subject: Subject, device: str = "cuda") -> "CudaRenderer":
        """Read a run folder. Raises InputError when it holds no usable weights."""
        renderer = super().load(run_dir, subject)
        renderer.attach(Avatar.load(Path(run_dir) / "field.safetensors", "triton", device))
        return renderer

    def attach(self, avatar: Avatar) -> None:
        """Use the weights of an avatar that lives on a device."""
        self._on_device = avatar
        self._packed = fused_triton.pack_layers(avatar.head.first, avatar.head.second, avatar.head.last, avatar.layout.channels)
        self._device_plates: dict[int, tuple[np.ndarray, torch.Tensor]] = {}
        self.use_volume(avatar.volume)

    def use_volume(self, volume: Volume) -> None:
        """As `HeadRenderer.use_volume`, on the device too, whose kernel has occupancy and prior in cells of one size: finer ones are joined."""
        super().use_volume(volume)
        cells = len(self._on_device.head.prior)
        parts = len(volume.occupancy) // cells
        occupancy = volume.occupancy.reshape(cells, parts, cells, parts, cells, parts).any((1, 3, 5))
        self._on_device.volume = dataclasses.replace(volume, occupancy=occupancy)
        self._occupancy = torch.from_numpy(occupancy.astype(np.uint8)).to(self._on_device.device)

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """As `HeadRenderer.frame`; where the torso needs no warping, only the finished frame leaves the device."""
        part = track[index : index + 1]
        if len(part) != 1 or not self._view(part).whole:
            return super().frame(track, index, background)
        plate = self._plate(track) if background is None else np.asarray(background, np.float32)
        size = part.camera.height, part.camera.width
        if plate.shape[:2] != size:
            return super().frame(track, index, background)
        condition = self.avatar.condition
        psi, pose, torso = condition.expression(part), condition.pose(part), condition.torso(part)
        colour, opacity = self._head_layer(part, psi, pose)
        behind = self._plate_on_device(plate, background is None)
        row = int(np.ceil(self.avatar.row * size[0] - 1e-9))
        if row < size[0]:
            shade, cover = self._torso_layer(size[1], size[0], row, pose, torso)
            behind = torch.cat([behind[:row], behind[row:] * (1 - cover[..., None]) + shade * cover[..., None]])
        return (colour + (1 - opacity[..., None]) * behind).clamp_(0, 1).cpu().numpy()

    def _plate_on_device(self, plate: np.ndarray, keep: bool) -> torch.Tensor:
        """The background as a tensor; the subject's own stays on the device (recognised as the same array)."""
        if not keep:
            return torch.from_numpy(np.ascontiguousarray(plate)).to(self._on_device.device)
        known = self._device_plates.get(id(plate))
        if known is None or known[0] is not plate:
            self._device_plates = {id(plate): (plate, torch.from_numpy(np.array(plate)).to(self._on_device.device))}
        return self._device_plates[id(plate)][1]

    @torch.no_grad()
    def _head_layer(self, part: Track, psi: np.ndarray, pose: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        avatar, camera = self._on_device, part.camera
        # The pose correction of the CPU's copy: six numbers a frame are not worth a round trip.
        origins, matrices = self.avatar.correction.apply_to_rays(self.avatar.pose_features(pose, psi), *head_rays(part, np.array([0])))
        table = avatar.blend(avatar.put(psi)).detach().view(-1)
        warp = avatar.blend_warp(avatar.put(psi)).detach().view(-1)
        turn = avatar.head.first.weight[:, avatar.layout.channels :] @ avatar.turn(pose)[0]
        even, odd, bias, *rest = self._packed
        layers = even, odd, bias + torch.nn.functional.pad(turn, (0, len(bias) - len(turn))), *rest
        matrix = matrices[0].astype(np.float64) @ np.linalg.inv(camera.K)
        return fused_triton.render_head(camera.width, camera.height, origins[0], matrix, avatar.volume, self._occupancy, avatar.head.prior, avatar.layout, table,
                                        avatar.warp_layout, warp, layers, STOP)

    @torch.no_grad()
    def _torso_layer(self, width: int, height: int, row: int, pose: np.ndarray, torso: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour (H−row,W,3) and opacity (H−row,W) of the rows from `row` on."""
        avatar = self._on_device
        v, u = torch.meshgrid((torch.arange(row, height, device=avatar.device) + 0.5) / height, (torch.arange(width, device=avatar.device) + 0.5) / width, indexing="ij")
        uv = torch.stack([u, v], -1).view(-1, 2)
        features = (avatar.put(f).expand(len(uv), -1) for f in (torso, pose))
        table = avatar.torso_tables.blend(torch.zeros(1, 0, device=avatar.device)).detach()
        shade, cover = avatar.torso(uv, *features, avatar.encode_torso(table))
        return shade.view(height - row, width, 3), cover.view(height - row, width)

    def _render_head(self, part: Track, psi: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colour, opacity = self._head_layer(part, psi, pose)
        return colour.cpu().numpy(), opacity.cpu().numpy()

    def shoulders(self, width: int, height: int, row: int, pose: np.ndarray, torso: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        colour, opacity = np.empty((height, width, 3), np.float32), np.empty((height, width), np.float32)
        shade, cover = self._torso_layer(width, height, row, pose, torso)
        colour[row:], opacity[row:] = shade.cpu().numpy(), cover.cpu().numpy()
        return colour, opacity
