"""Spherical harmonics describe light on matt surfaces, and light and albedo come apart where one surface is seen under many normals."""

import numpy as np
import pytest

from render.light import Light, coded, linear, separate, sh_basis, sh_gradient


def directions(count, seed=0):
    v = np.random.default_rng(seed).normal(size=(count, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_the_basis_is_orthonormal_over_the_sphere():
    basis = sh_basis(directions(200_000))
    np.testing.assert_allclose(4 * np.pi * basis.T @ basis / len(basis), np.eye(9), atol=0.02)


def test_nine_coefficients_describe_a_distant_lamp_within_a_few_percent():
    """A lamp's irradiance max(0, n·l): the second order leaves 1 to 9 % of its strength (Ramamoorthi & Hanrahan 2001)."""
    normals, lamp = directions(20_000), np.array([0.6, -0.64, -0.48])
    exact = np.maximum(normals @ lamp, 0)
    basis = sh_basis(normals)
    found = basis @ np.linalg.lstsq(basis, exact, rcond=None)[0]
    assert 0.005 < np.abs(found - exact).mean() < 0.05
    coefficients = np.repeat(np.linalg.lstsq(basis, exact, rcond=None)[0][:, None], 3, 1)
    assert Light(coefficients).direction @ lamp > 0.99
    assert (Light(-coefficients).shading(normals) >= 0).all() and not Light(np.zeros((9, 3))).direction.any()


def test_slopes_are_those_of_the_basis():
    normals, light, h = directions(50), np.random.default_rng(0).normal(size=9), 1e-5
    numeric = np.stack([(sh_basis(normals + h * axis) - sh_basis(normals - h * axis)) @ light / (2 * h) for axis in np.eye(3)], -1)
    np.testing.assert_allclose(sh_gradient(light, normals), numeric, atol=1e-6)


def test_colours_come_back_from_linear_light():
    colours = np.linspace(0, 1, 256)
    np.testing.assert_allclose(coded(linear(colours)), colours, atol=1e-4)
    assert linear(np.array(0.5)) == pytest.approx(0.2140, abs=1e-4) and coded(np.array([-1.0, 2.0])) == pytest.approx([0, 1])


def test_light_and_albedo_come_apart():
    """Points of a head that turns before a lamp, a tenth of them in shadow: the lamp is found, and who is dark by himself."""
    rng, count, frames = np.random.default_rng(1), 400, 24
    rest, paint = directions(count, 2), rng.uniform(0.2, 0.6, (count, 1)) * [1.0, 0.7, 0.55]
    true = np.zeros((9, 3))
    true[0], true[1], true[2], true[3] = 2.6, -0.5, -0.7, 0.8
    point, normals = np.tile(np.arange(count), frames), []
    for yaw in np.linspace(-0.6, 0.6, frames):
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        normals.append(rest @ turn.T)
    normals = np.concatenate(normals)
    colours = paint[point] * Light(true).shading(normals)
    colours[rng.random(len(colours)) < 0.1] *= 0.4
    towards = normals[:, 2] < -0.1  # what faces the camera
    light, albedo = separate(point[towards], normals[towards], colours[towards], np.ones(towards.sum()), count)
    shown, exact = light.shading(normals[towards])[:, 0], Light(true).shading(normals[towards])[:, 0]
    assert np.corrcoef(shown, exact)[0, 1] > 0.98 and np.abs(shown / shown.mean() - exact / exact.mean()).mean() < 0.06
    often = np.bincount(point[towards], minlength=count) > frames / 2
    likeness = np.corrcoef(albedo[often].mean(1), paint[often].mean(1))[0, 1]
    plain = np.corrcoef([colours[towards & (point == p)].mean() for p in np.flatnonzero(often)], paint[often].mean(1))[0, 1]
    assert likeness > 0.97 and likeness > plain
    with pytest.raises(ValueError, match="no samples"):
        separate(point[:0], normals[:0], colours[:0], np.ones(0), count)
