"""Multiresolution hash encodings behind one interface, chosen by name.

A backend is a module with `encode`, `blend` and `adam_step` (documented in `reference`). All share the parameter
layout of `layout.HashGridLayout`, so a table trained with one renders with another.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING

from thnerf.encodings.layout import HashGridLayout

if TYPE_CHECKING:
    import torch

__all__ = ["BACKENDS", "BlendedTables", "HashGridLayout", "encode", "load_backend"]

BACKENDS = {"reference": "thnerf.encodings.reference", "numba": "thnerf.encodings.numba_backend", "triton": "thnerf.encodings.triton_backend",
            "tinycudann": "thnerf.encodings.tcnn_backend"}
_NEEDS = {"numba": "numba", "triton": "triton", "tinycudann": "tinycudann"}


def available(name: str) -> bool:
    """Whether what a backend is written in is installed (it may still need a GPU)."""
    return name in BACKENDS and (name not in _NEEDS or importlib.util.find_spec(_NEEDS[name]) is not None)


def load_backend(name: str = "auto", device: "torch.device | str" = "cpu") -> ModuleType:
    """Import a backend. 'auto' is numba on the CPU; on CUDA Triton, then tinycudann, then the reference, as installed.

    Raises ValueError for an unknown name and for one that is not installed.
    """
    if name == "auto":
        name = "numba" if str(device).startswith("cpu") else next(n for n in ("triton", "tinycudann", "reference") if available(n))
    if name not in BACKENDS:
        raise ValueError(f"no hash encoding backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if not available(name):
        raise ValueError(f"the hash encoding backend {name!r} needs the package {_NEEDS[name]!r}, which is not installed")
    return importlib.import_module(BACKENDS[name])


def encode(positions: "torch.Tensor", tables: "torch.Tensor", layout: HashGridLayout, which: "torch.Tensor | None" = None,
           backend: str = "auto") -> "torch.Tensor":
    """Encode positions (N,D) in [0,1] with tables (size,) or (B,size); sample i uses table `which[i]`.

    Returns (N, levels·features) float32, differentiable in positions and tables.
    """
    return load_backend(backend, positions.device).encode(positions, tables, layout, which)


class BlendedTables:
    """A hash table that is linear in a condition: ``H(ψ) = H_0 + Σ_k ψ_k H_k``, blended once a frame.

    Interpolation is linear in the table, so one look-up in H(ψ) equals K+1 look-ups. `tables` (size, K+1), with the
    condition fastest so that blending and optimising stream through memory. `blend` gives plain tables to `encode`;
    their gradient goes back through `step`, which runs Adam (Kingma & Ba 2015) where a gradient arrived, with one second
    moment per blended parameter. Everything lives on `device`.
    """

    def __init__(self, layout: HashGridLayout, conditions: int, seed: int = 0, backend: str = "auto", device: "torch.device | str" = "cpu") -> None:
        import torch

        self.layout, self.backend, self.device = layout, load_backend(backend, device), torch.device(device)
        self.tables = torch.zeros(layout.size, conditions + 1)
        self.tables[:, 0] = torch.from_numpy(layout.initial(seed))
        self.tables = self.tables.to(self.device)
        self.first = torch.zeros_like(self.tables)
        self.second = torch.zeros(layout.size, device=self.device)
        self.steps = 0

    def blend(self, conditions: "torch.Tensor") -> "torch.Tensor":
        """Conditions (B,K) → tables (B, size) that collect their gradient in `.grad`.

        Conditions that require a gradient get theirs too: dL/dψ_k is the product of H_k and the tables' gradient.
        """
        table = self.backend.blend(self.tables, _with_one(conditions.detach())).requires_grad_()
        if conditions.requires_grad:
            table = _attach_conditions(table.detach(), self.tables, conditions)
            table.retain_grad()
        return table

    def step(self, gradients: "torch.Tensor", conditions: "torch.Tensor", rate: float, conditional_rate: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Adam with learning rate `rate` for H_0 and `conditional_rate` for the others. gradients (B,size), conditions (B,K)."""
        import torch

        self.steps += 1
        rates = torch.full((self.tables.shape[1],), conditional_rate, device=self.device)
        rates[0] = rate
        self.backend.adam_step(self.tables, self.first, self.second, gradients, _with_one(conditions), rates, betas, self.steps)

    def state(self) -> "dict[str, torch.Tensor]":
        """Everything needed to go on training, on the CPU: the tables as (K+1, size), each in tiny-cuda-nn's order, and the optimiser."""
        import torch

        return {"tables": self.tables.T.contiguous().cpu(), "first": self.first.cpu(), "second": self.second.cpu(), "steps": torch.tensor(self.steps)}

    def load(self, state: "dict[str, torch.Tensor]") -> None:
        """Inverse of `state`; tables may be in half precision and the optimiser's part may be missing. Raises ValueError on another shape."""
        if tuple(state["tables"].shape) != tuple(self.tables.T.shape):
            raise ValueError(f"the hash tables have shape {tuple(state['tables'].shape)}, expected {tuple(self.tables.T.shape)}")
        self.tables = state["tables"].float().T.contiguous().to(self.device)
        if "first" in state:
            self.first, self.second, self.steps = state["first"].to(self.device, copy=True), state["second"].to(self.device, copy=True), int(state["steps"])


def _with_one(conditions: "torch.Tensor") -> "torch.Tensor":
    """Prepend the coefficient of H_0: (B,K) → (B,K+1)."""
    import torch

    return torch.cat([torch.ones(len(conditions), 1, device=conditions.device), conditions], 1)


def _attach_conditions(table: "torch.Tensor", tables: "torch.Tensor", conditions: "torch.Tensor") -> "torch.Tensor":
    """The blended table (B,size), unchanged, through which gradients reach the conditions (B,K); tables (size,K+1)."""
    import torch

    class Blended(torch.autograd.Function):
        @staticmethod
        def forward(ctx, psi):  # noqa: ANN001, ANN205 - torch's signature
            return table.view_as(table)

        @staticmethod
        def backward(ctx, gradient):  # noqa: ANN001, ANN205
            return gradient.float() @ tables[:, 1:]

    return Blended.apply(conditions)
