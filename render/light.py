"""Light as nine numbers a colour: what a matt surface sends back depends on little more than its normal.

Irradiance from distant light is described within a few percent by spherical harmonics up to the second order (Ramamoorthi & Hanrahan 2001). From footage
in which one surface is seen under many normals, light and albedo come apart: alternating, robust least squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 12
ROBUST = 0.15  # of the brightness: beyond it a sample counts less (a shadow, a highlight, hair)
EVEN = 2e-3  # ridge on all but the ambient term: samples of a head that hardly turns do not decide
ALIKE = 0.15  # share of a sample at which a point's albedo is drawn to that of all points
DIMMEST = 0.15  # of the mean: below that, shading says nothing about albedo


def sh_basis(normals: np.ndarray) -> np.ndarray:
    """The nine real spherical harmonics up to order 2 (…,9) of unit normals (…,3) (Ramamoorthi & Hanrahan 2001, eq. 3)."""
    x, y, z = np.moveaxis(np.asarray(normals, np.float64), -1, 0)
    return np.stack([np.full_like(x, 0.282095), 0.488603 * y, 0.488603 * z, 0.488603 * x, 1.092548 * x * y, 1.092548 * y * z,
                     0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y)], -1)


def sh_gradient(light: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Derivative (…,3) of `sh_basis(normals) @ light` by the components of normals (…,3), light (9,): it is linear in them."""
    _, y, z, x, xy, yz, zz, xz, xx = np.asarray(light, np.float64)
    first = 0.488603 * np.array([x, y, z])
    second = np.array([[2 * 0.546274 * xx, 1.092548 * xy, 1.092548 * xz], [1.092548 * xy, -2 * 0.546274 * xx, 1.092548 * yz], [1.092548 * xz, 1.092548 * yz, 6 * 0.315392 * zz]])
    return normals @ second.astype(normals.dtype) + first.astype(normals.dtype)


def linear(coded: np.ndarray) -> np.ndarray:
    """sRGB-coded values in [0,1] → linear light (IEC 61966-2-1)."""
    coded = np.clip(coded, 0, 1)
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4).astype(np.float32)


def coded(light: np.ndarray) -> np.ndarray:
    """Linear light in [0,1] → sRGB-coded values; inverse of `linear`."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """Irradiance (9,3) in spherical harmonics of the normal in the camera frame (+x right, +y down, +z forward), linear RGB; 1 is what albedo is given for."""

    coefficients: np.ndarray

    def shading(self, normals: np.ndarray) -> np.ndarray:
        """What reaches surfaces with unit normals (…,3): (…,3), never negative."""
        return np.maximum(sh_basis(normals) @ self.coefficients, 0)

    @property
    def direction(self) -> np.ndarray:
        """Unit vector (3,) in the camera frame towards where most light comes from; zero when none prevails."""
        y, z, x = self.coefficients[1:4].mean(1)
        length = float(np.sqrt(x * x + y * y + z * z))
        return np.array([x, y, z]) / length if length > 1e-6 else np.zeros(3)


def separate(point: np.ndarray, normals: np.ndarray, colours: np.ndarray, weights: np.ndarray, count: int) -> tuple[Light, np.ndarray]:
    """Light and albedo from samples: which of `count` points each shows (N,), normals (N,3) in the camera frame, linear colours (N,3), weights (N,).

    Albedo (count,3) is on the scale on which the shading of the samples is 1 on average. Raises ValueError without samples.
    """
    if not len(point):
        raise ValueError("no samples to tell light from")
    basis = sh_basis(normals)
    mean = lambda w, values: np.stack([np.bincount(point, w * values[:, k], count) for k in range(3)], 1)  # noqa: E731
    weights = np.asarray(weights, np.float64) / weights.mean()
    typical = np.average(colours, axis=0, weights=weights)
    albedo, kept = np.repeat(typical[None], count, 0), weights
    for _ in range(ROUNDS):
        coefficients = np.empty((9, 3))
        for k in range(3):
            rows = basis * albedo[point, k : k + 1] / typical[k]
            H = (rows * kept[:, None]).T @ rows + np.diag([0.0] + [EVEN * len(point)] * 8)
            coefficients[:, k] = np.linalg.solve(H, (rows * kept[:, None]).T @ (colours[:, k] / typical[k]))
        light = Light(coefficients)
        shading = light.shading(normals)
        scale = np.average(shading, axis=0, weights=kept)
        light, shading = Light(coefficients / scale), shading / scale
        usable = kept * (shading.min(1) > DIMMEST)
        drawn = ALIKE * np.bincount(point, usable, count)[:, None] + 1e-9
        albedo = (mean(usable, colours * shading) + drawn * typical) / (mean(usable, shading**2) + drawn)
        left = np.abs(colours - albedo[point] * shading).mean(1) / typical.mean()
        kept = weights / (1 + (left / ROBUST) ** 2)
    return light, albedo
