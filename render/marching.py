"""Marching and compositing by name and device: numba on the CPU, Triton or nerfacc on CUDA, one interface on tensors."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from render.files import InputError
from render.march import Samples, Volume

BACKENDS = {"numba": "render.march", "triton": "render.march_triton", "nerfacc": "render.march_nerfacc"}


@dataclass(frozen=True)
class Marching:
    """`march` and `composite` of one backend, with samples as tensors on `device`."""

    device: torch.device
    name: str
    backend: ModuleType

    def march(self, origins: np.ndarray, directions: np.ndarray, volume: Volume, jitter: np.ndarray | float = 0.5, limit: int = 64) -> Samples:
        """As `render.march.march`, with positions and ray as tensors on the device, and offsets as `composite` wants them."""
        if self.name != "numba":
            return self.backend.march(origins, directions, volume, jitter, limit, self.device)
        samples = self.backend.march(origins, directions, volume, jitter, limit)
        return Samples(torch.from_numpy(samples.positions), torch.from_numpy(samples.ray), samples.offsets)

    def composite(self, density: torch.Tensor, colour: torch.Tensor, step: float, offsets: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `render.march.composite`."""
        return self.backend.composite(density, colour, step, offsets)


def load_marching(name: str = "auto", device: torch.device | str = "cpu") -> Marching:
    """A backend by name; 'auto' is numba on the CPU and Triton on CUDA. Raises InputError when it is unknown or not installed."""
    device = torch.device(device)
    name = ("numba" if device.type == "cpu" else "triton") if name == "auto" else name
    if name not in BACKENDS:
        raise InputError(f"no marching backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise InputError(f"the marching backend {name!r} is not installed; pip install {name}")
    return Marching(device, name, importlib.import_module(BACKENDS[name]))
