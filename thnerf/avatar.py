"""All that is learned of one subject: blended head field and its warp, pose correction, torso, and how a Track conditions them.

`Avatar` is built by the trainer, saved as one safetensors file, and read back to render. `render` here is the readable
renderer; `thnerf.renderer` has the fast one, tested against it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from recon.track import Track
from render.files import InputError, atomic_path
from render.march import Volume, render_rays
from render.marching import load_marching
from thnerf.config import FieldConfig, TorsoConfig
from thnerf.dataset import Condition, head_rays, pixel_directions
from thnerf.encodings import BlendedTables, HashGridLayout
from thnerf.field import UNIT_MM, WARP_UNIT, HeadField, PoseCorrection
from thnerf.network import head_radiance
from thnerf.torso import TorsoField

FORMAT = 3
TURN, TURN_SCALE = 4, 0.3  # inputs that say how the head is turned (three, and one that makes the kernels' multiple of four), and their size


class Avatar:
    """The learned subject. row: fraction of the image height from which the torso may show. backend: of the encodings.

    Weights live on `device`; the Triton backend brings its marching along, so that its interpreter can run the whole avatar.
    """

    def __init__(self, head: FieldConfig, torso: TorsoConfig, condition: Condition, volume: Volume, prior: np.ndarray, row: float,
                 seed: int = 0, backend: str = "auto", device: torch.device | str = "cpu") -> None:
        torch.manual_seed(seed)
        self.config, self.torso_config, self.condition, self.volume, self.row = head, torso, condition, volume, row
        conditions = condition.matrix.shape[1]
        self.layout = HashGridLayout(3, head.levels, 2, head.log2_entries, head.base_resolution, head.finest_resolution)
        self.torso_layout = HashGridLayout(2, torso.levels, 2, torso.log2_entries, torso.base_resolution, torso.finest_resolution)
        self.device, self.kernels = torch.device(device), backend in ("auto", "numba")
        self.tables = BlendedTables(self.layout, conditions, seed, backend, device)
        self.warp_layout = HashGridLayout(3, 2, 2, 15, head.warp_points, head.warp_points)
        self.warp_tables = BlendedTables(self.warp_layout, conditions, seed, backend, device)
        self.warp_tables.tables.zero_()
        self.torso_tables = BlendedTables(self.torso_layout, 0, seed + 1, backend, device)
        self.marching = load_marching("triton" if backend == "triton" else "auto", device)
        self.head = HeadField(self.layout.channels + TURN, head.width, prior)
        self.correction = PoseCorrection(6 + conditions)
        self.torso = TorsoField(self.torso_layout.channels, len(condition.torso_mean), 6, torso.width, torch.from_numpy(np.asarray(condition.torso_scale, np.float32)))
        for module in self.modules.values():
            module.to(self.device)

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The parts that are torch modules, by name."""
        return {"head": self.head, "correction": self.correction, "torso": self.torso}

    def put(self, array: np.ndarray) -> torch.Tensor:
        """An array as a tensor on the avatar's device (on the CPU it shares its memory)."""
        return torch.from_numpy(array).to(self.device)

    def encode(self, positions: torch.Tensor, table: torch.Tensor, turn: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        """Hash features of unit positions (M,3) in blended tables (B,size), and beside them how the head of the frame is turned (B,TURN)."""
        features = self.tables.backend.encode(positions, table, self.layout, which)
        return torch.cat([features, turn.expand(len(features), -1) if which is None else turn[which.long()]], 1)

    def turn(self, pose: np.ndarray) -> torch.Tensor:
        """What the network is told of pose features (B,6): the rotation (B,TURN). Light stays where it is in the room when a head turns, so shading
        changes with it; the same for all samples of a frame, it costs nothing when it is rendered."""
        return self.put(np.pad(np.float32(TURN_SCALE) * pose[:, :3], ((0, 0), (0, TURN - 3))))

    def warp(self, positions: torch.Tensor, table: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        """Unit positions (M,3) → where they lie on the resting head; blended tables (B,size) of the warp."""
        moved = self.warp_tables.backend.encode(positions, table, self.warp_layout, which)[:, :3]
        return (positions + WARP_UNIT * moved).clamp(0, 1)

    def set_warp(self, displacement: np.ndarray) -> None:
        """Begin with displacements (points³,3,K) of `field.mesh_warp`."""
        count = int(self.warp_layout.entries[0])
        padded = np.zeros((2, count, 2, displacement.shape[2]), np.float32)
        padded[0, : len(displacement)], padded[1, : len(displacement), 0] = displacement[:, :2], displacement[:, 2]
        self.warp_tables.tables[:, 1:] = self.put(padded.reshape(-1, displacement.shape[2]) / (WARP_UNIT * self.config.condition_scale))

    def blend_warp(self, psi: torch.Tensor) -> torch.Tensor:
        """Tables (B,size) of the warp of conditions ψ (B,K)."""
        return self.warp_tables.blend(psi * self.config.condition_scale)

    @torch.no_grad()
    def field(self, psi: np.ndarray, pose: np.ndarray) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """The head in one condition ψ (1,K) and pose (1,6) as a function of unit positions (M,3): density (M,) and colour (M,3), in readable torch."""
        table, warp, turn = self.blend(self.put(psi)).detach(), self.blend_warp(self.put(psi)).detach(), self.turn(pose)
        return lambda x: self.head(self.encode(self.warp(x, warp), table, turn), x)

    def network(self, features: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Density (M,) and colour (M,3) of hash features (M,C) at unit positions (M,3): the head's network, on the CPU by kernels of its own."""
        if self.device.type == "cpu" and self.layout.channels % 4 == 0 and self.kernels:
            return head_radiance(self.head, features, positions)
        return self.head(features, positions)

    def encode_torso(self, table: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """The 2D encoding that the torso module asks for."""
        return lambda uv: self.torso_tables.backend.encode(uv, table, self.torso_layout, None)

    def blend(self, psi: torch.Tensor) -> torch.Tensor:
        """Tables (B,size) of conditions ψ (B,K)."""
        return self.tables.blend(psi * self.config.condition_scale)

    def pose_features(self, pose: np.ndarray, psi: np.ndarray) -> np.ndarray:
        """What the pose correction depends on, (B,6+K)."""
        return np.concatenate([pose, psi], 1)

    @torch.no_grad()
    def render(self, track: Track, index: int, background: np.ndarray) -> np.ndarray:
        """One frame (H,W,3) float32 in [0,1] in readable torch; background (H,W,3) float32 in [0,1]."""
        part = track[index : index + 1]
        width, height = track.camera.width, track.camera.height
        psi, pose = self.condition.expression(part), self.condition.pose(part)
        origins, matrices = self.correction.apply_to_rays(self.pose_features(pose, psi), *head_rays(part, np.array([0])))
        v, u = (a.ravel() for a in np.mgrid[0:height, 0:width])
        directions = pixel_directions(np.linalg.inv(track.camera.K), u, v) @ matrices[0].T
        self.head.eval()
        colour, opacity = render_rays(np.broadcast_to(origins[0], directions.shape), directions, self.volume, self.field(psi, pose), marching=self.marching)
        self.head.train()
        behind = self.put(np.array(background.reshape(-1, 3), np.float32))
        rows = np.flatnonzero(v >= self.row * height)
        if len(rows):
            low = self.put(rows)
            features = (self.put(f).expand(len(low), -1) for f in (self.condition.torso(part), pose))
            shoulders, cover = self.torso_at(u[rows] + 0.5, v[rows] + 0.5, width, height, *features)
            behind[low] = behind[low] * (1 - cover[:, None]) + shoulders * cover[:, None]
        return (colour + (1 - opacity[:, None]) * behind).clamp(0, 1).reshape(height, width, 3).cpu().numpy()

    def torso_at(self, x: np.ndarray, y: np.ndarray, width: int, height: int, torso: torch.Tensor, pose: torch.Tensor,
                 table: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Colour (N,3) and opacity (N,) of the torso at image points x, y (px) with the features of their frames."""
        uv = self.put(np.stack([x / width, y / height], 1).astype(np.float32))
        if table is None:
            table = self.torso_tables.blend(torch.zeros(1, 0, device=self.device)).detach()
        return self.torso(uv, torso, pose, self.encode_torso(table))

    def state(self, training: bool = False) -> dict[str, torch.Tensor]:
        """All arrays by name; with the encodings' optimisers when `training`."""
        out = {f"condition.{k}": torch.from_numpy(v) for k, v in self.condition.arrays().items()}
        out["volume.box"] = torch.from_numpy(np.stack([self.volume.lower, self.volume.upper]))
        out["volume.occupancy"] = torch.from_numpy(self.volume.occupancy.astype(np.uint8))
        for name, module in self.modules.items():
            out |= {f"{name}.{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
        for name, tables in (("tables", self.tables), ("warp_tables", self.warp_tables), ("torso_tables", self.torso_tables)):
            out |= {f"{name}.{k}": v for k, v in tables.state().items() if training or k == "tables"}
        return out

    def header(self) -> dict[str, str]:
        """The metadata that goes with `state`."""
        about = {"format": FORMAT, "head": dataclasses.asdict(self.config), "torso": dataclasses.asdict(self.torso_config), "row": self.row,
                 "step": self.volume.step, "expression_names": self.condition.expression_names}
        return {"avatar": json.dumps(about)}

    def save(self, path: Path, **notes: str) -> None:
        """Write the weights as safetensors, atomically."""
        write_tensors(path, self.state(), {**self.header(), **notes})

    @classmethod
    def restore(cls, tensors: dict[str, torch.Tensor], header: dict[str, str], backend: str = "auto", device: torch.device | str = "cpu") -> "Avatar":
        """Inverse of `state` and `header`. Raises InputError when they do not fit together or are of another version."""
        try:
            about = json.loads(header["avatar"])
            if about["format"] != FORMAT:
                raise InputError(f"the weights have format {about['format']}, this version reads {FORMAT}; train again")
            arrays = {k.removeprefix("condition."): v.numpy() for k, v in tensors.items() if k.startswith("condition.")}
            condition = Condition(**arrays, expression_names=tuple(about["expression_names"]))
            lower, upper = tensors["volume.box"].numpy()
            volume = Volume(lower, upper, tensors["volume.occupancy"].numpy().astype(bool), about["step"], density_unit=UNIT_MM)
            avatar = cls(FieldConfig(**about["head"]), TorsoConfig(**about["torso"]), condition, volume, tensors["head.prior"].numpy(), about["row"], backend=backend, device=device)
            for name, module in avatar.modules.items():
                module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
            for name, tables in (("tables", avatar.tables), ("warp_tables", avatar.warp_tables), ("torso_tables", avatar.torso_tables)):
                tables.load({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the weights do not fit this version of thnerf ({error}); train again") from None
        return avatar

    @classmethod
    def load(cls, path: Path, backend: str = "auto", device: torch.device | str = "cpu") -> "Avatar":
        """Read weights written by `save`. Raises InputError when they are missing or damaged."""
        return cls.restore(*read_tensors(path), backend=backend, device=device)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a header of strings as safetensors, atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(temporary), metadata={k: str(v) for k, v in header.items()})


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file. Raises InputError naming the file when it is missing, truncated or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise InputError(f"{path} does not exist; run thnerf train first")
    try:
        with safe_open(str(path), framework="pt") as stream:
            return {k: stream.get_tensor(k) for k in stream.keys()}, dict(stream.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}); delete it and run thnerf train again") from None
