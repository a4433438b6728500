"""The hash encoding by tiny-cuda-nn's PyTorch extension, where that is installed (CUDA only).

tiny-cuda-nn keeps parameters of its own; here they are handed in at each call, so a table blended by `BlendedTables` is
looked up as it is. Its float32 kernels are used for float32 tables and its half kernels for float16 ones; bfloat16 is widened.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from thnerf.encodings import reference
from thnerf.encodings.layout import HashGridLayout

__all__ = ["adam_step", "blend", "encode"]

blend = reference.blend


def config(layout: HashGridLayout) -> dict[str, Any]:
    """The layout in tiny-cuda-nn's words."""
    return {"otype": "HashGrid", "n_levels": layout.levels, "n_features_per_level": layout.features, "log2_hashmap_size": layout.log2_entries,
            "base_resolution": layout.base_resolution, "per_level_scale": layout.growth, "interpolation": "Linear"}


@lru_cache(maxsize=16)
def _encoding(layout: HashGridLayout, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """The extension's encoding; its own parameters are never used. Raises ValueError when its table has another length than the layout."""
    import tinycudann

    module = tinycudann.Encoding(layout.dimensions, config(layout), dtype=dtype)
    if module.params.numel() != layout.size:
        raise ValueError(f"this tiny-cuda-nn lays the grid out in {module.params.numel()} parameters, not {layout.size}; use another backend")
    return module.to(device)


def encode(positions: torch.Tensor, tables: torch.Tensor, layout: HashGridLayout, which: torch.Tensor | None = None) -> torch.Tensor:
    """As `reference.encode`; one call of the extension for each table."""
    tables = tables.reshape(-1, layout.size)
    if tables.dtype == torch.bfloat16:
        tables = tables.float()
    module = _encoding(layout, tables.dtype, positions.device)
    look_up = lambda x, table: torch.func.functional_call(module, {"params": table}, (x,)).float()  # noqa: E731
    if len(tables) == 1 or which is None:
        return look_up(positions, tables[0])
    rows = [torch.nonzero(which == b).squeeze(1) for b in range(len(tables))]
    parts = torch.cat([look_up(positions[r], table) for r, table in zip(rows, tables) if len(r)])
    return torch.zeros_like(parts).index_copy(0, torch.cat(rows), parts)


def adam_step(tables: torch.Tensor, first: torch.Tensor, second: torch.Tensor, gradients: torch.Tensor, coefficients: torch.Tensor,
              rates: torch.Tensor, betas: tuple[float, float], step: int) -> None:
    """As `reference.adam_step`, in place: by the Triton kernel where Triton is installed (tiny-cuda-nn has no such optimiser)."""
    try:
        from thnerf.encodings.triton_backend import adam_step as fast
    except ImportError:
        fast = reference.adam_step
    fast(tables, first, second, gradients, coefficients, rates, betas, step)
