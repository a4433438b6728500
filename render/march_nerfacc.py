"""Marching and compositing by nerfacc (Li et al., ICCV 2023), where it is installed: its occupancy traversal and packed volume rendering.

nerfacc's own kernels need CUDA (and nvcc at their first use). On the CPU it offers batched rendering only: there `composite`
pads rays to equal length and `march` is refused.
"""

from __future__ import annotations

import numpy as np
import torch

from render.files import InputError
from render.march import Samples, Volume


def march(origins: np.ndarray | torch.Tensor, directions: np.ndarray | torch.Tensor, volume: Volume, jitter: np.ndarray | float = 0.5, limit: int = 64,
          device: torch.device | str = "cuda") -> Samples:
    """As `render.march_triton.march`. nerfacc begins its steps where a ray enters the box, so samples lie within a step of ours.

    Raises InputError on the CPU.
    """
    if torch.device(device).type != "cuda":
        raise InputError("nerfacc marches on CUDA only; use the numba or Triton marching")
    import nerfacc

    put = lambda a: torch.as_tensor(a, dtype=torch.float32).to(device)  # noqa: E731
    box = torch.cat([put(volume.lower), put(volume.upper)])
    o, d = put(origins), torch.nn.functional.normalize(put(directions), dim=1)
    start, _, _ = nerfacc.ray_aabb_intersect(o, d, box[None])
    start = torch.where(torch.isfinite(start[:, 0]), start[:, 0], 0.0) + (put(jitter).expand(len(o)) - 0.5) * volume.step
    intervals, samples, _ = nerfacc.traverse_grids(o, d, torch.from_numpy(volume.occupancy).to(device)[None], box[None], near_planes=start.clamp_min(0), step_size=volume.step)
    times = (intervals.vals[intervals.is_left] + intervals.vals[intervals.is_right]) / 2
    ray = samples.ray_indices
    first = torch.cumsum(torch.bincount(ray, minlength=len(o)), 0) - torch.bincount(ray, minlength=len(o))
    kept = torch.arange(len(ray), device=device) - first[ray] < limit
    ray, times = ray[kept], times[kept]
    offsets = torch.zeros(len(o) + 1, dtype=torch.int32, device=device)
    offsets[1:] = torch.cumsum(torch.bincount(ray, minlength=len(o)), 0)
    positions = (o[ray] + times[:, None] * d[ray] - box[:3]) / (box[3:] - box[:3])
    return Samples(positions.clamp(0, 1), ray.int(), offsets)


def composite(density: torch.Tensor, colour: torch.Tensor, step: float, offsets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `render.march.composite`, by nerfacc's volume rendering."""
    import nerfacc

    counts = torch.diff(offsets).long()
    n, ray = len(counts), torch.repeat_interleave(torch.arange(len(counts), device=density.device), counts)
    if density.is_cuda:
        starts = torch.zeros_like(density)
        weights, _, _ = nerfacc.render_weight_from_density(starts, starts + step, density, packed_info=torch.stack([offsets[:-1].long(), counts], 1))
        shade = nerfacc.accumulate_along_rays(weights, colour, ray_indices=ray, n_rays=n)
    else:
        width = max(1, int(counts.max())) if n else 1
        slot = ray * width + torch.arange(len(ray)) - offsets[:-1].long()[ray]
        dense = density.new_zeros(n * width).index_copy(0, slot, density).view(n, width)
        starts = torch.zeros_like(dense)
        padded, _, _ = nerfacc.render_weight_from_density(starts, starts + step, dense)
        shade = nerfacc.accumulate_along_rays(padded, colour.new_zeros(n * width, 3).index_copy(0, slot, colour).view(n, width, 3))
        weights = padded.flatten()[slot]
    depth = density.new_zeros(n).index_add(0, ray, density * step)
    return shade, torch.exp(-depth), weights.detach()
