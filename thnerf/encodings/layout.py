"""Where the entries of a multiresolution hash grid lie in its flat parameter vector.

The layout is that of tiny-cuda-nn's HashGrid, so that a table trained by one backend can be read
by any other (Müller et al., Instant Neural Graphics Primitives, SIGGRAPH 2022). Level l with base
resolution N and growth b has

    scale = N·b^l − 1,  resolution = ceil(scale) + 1,  grid position = x·scale + 0.5   for x in [0, 1],
    entries = min(resolution^D rounded up to a multiple of 8, 2^T).

A level whose resolution^D fits is dense with the x index fastest; the others hash the corner with
one prime per axis. Parameters are ordered level, entry, feature (fastest).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class HashGridLayout:
    """Shape of a hash grid: dimensions 2 or 3, levels, features per level, 2^log2_entries entries per level at most.

    Raises ValueError for sizes no backend can hold.
    """

    dimensions: int
    levels: int
    features: int = 2
    log2_entries: int = 15
    base_resolution: int = 16
    finest_resolution: int = 256

    def __post_init__(self) -> None:
        if self.dimensions not in (2, 3) or self.levels < 1 or self.features < 1 or not 3 <= self.log2_entries <= 24:
            raise ValueError("a hash grid needs 2 or 3 dimensions, at least one level and feature, and log2_entries in 3..24")
        if not 2 <= self.base_resolution <= self.finest_resolution:
            raise ValueError("a hash grid needs 2 <= base_resolution <= finest_resolution")

    @cached_property
    def growth(self) -> float:
        """Factor between the resolutions of neighbouring levels."""
        return (self.finest_resolution / self.base_resolution) ** (1 / (self.levels - 1)) if self.levels > 1 else 1.0

    @cached_property
    def scales(self) -> np.ndarray:
        """(L,) float32: grid cells across the unit cube."""
        level = np.arange(self.levels, dtype=np.float32)
        return (np.exp2(level * np.float32(np.log2(self.growth))) * np.float32(self.base_resolution) - 1).astype(np.float32)

    @cached_property
    def resolutions(self) -> np.ndarray:
        """(L,) int64: grid points along an axis."""
        return np.ceil(self.scales).astype(np.int64) + 1

    @cached_property
    def entries(self) -> np.ndarray:
        """(L,) int64: table entries of each level."""
        return np.minimum((self.resolutions**self.dimensions + 7) // 8 * 8, 1 << self.log2_entries)

    @cached_property
    def hashed(self) -> np.ndarray:
        """(L,) bool: whether corners are hashed (such a level always has 2^T entries)."""
        return self.resolutions**self.dimensions > self.entries

    @cached_property
    def offsets(self) -> np.ndarray:
        """(L+1,) int64: first entry of each level, and the total."""
        return np.concatenate([[0], np.cumsum(self.entries)])

    @property
    def size(self) -> int:
        """Length of the flat parameter vector."""
        return int(self.offsets[-1]) * self.features

    @property
    def channels(self) -> int:
        """Width of the encoding."""
        return self.levels * self.features

    def initial(self, seed: int) -> np.ndarray:
        """Uniform values in ±1e-4, as in the paper: (size,) float32."""
        return np.random.default_rng(seed).uniform(-1e-4, 1e-4, self.size).astype(np.float32)
