"""Light is told from paint, and brightness without light changes with expressions as its rows say."""

import numpy as np
import pytest

from recon.contrast import contrast, contrast_and_luma
from recon.model import load_model
from recon.photometric import sample_surface
from recon.shading import Shading, brightness_rows, harmonics, light_of
from render.light import sh_basis
from render.rotations import axis_angle_to_matrix


@pytest.fixture(scope="module")
def face():
    model = load_model()
    faces, weights, density = sample_surface(model)
    pick = lambda arrays: (arrays[..., model.faces[faces], :] * weights[..., None]).sum(-2)  # noqa: E731
    return model, Shading.of(model.mean, model, pick, 1 / density)


LIGHT = np.array([0.3, -0.25, -0.3, 0.2, 0.05, 0.1, -0.08, 0.04, -0.05])


def test_light_is_found_beneath_outliers(face):
    rng = np.random.default_rng(0)
    basis = sh_basis(face[1].turned(np.zeros(len(face[0].expression_basis)), np.eye(3)))
    shade = basis @ LIGHT
    missing = shade + rng.normal(0, 0.01, len(shade))
    missing[rng.random(len(shade)) < 0.15] += 1.0  # a shadow
    found = basis @ light_of(basis[None].astype(np.float32), missing[None], np.ones((1, len(shade))))[0]
    assert np.abs(found - shade).mean() < 0.02 < 0.2 * shade.std()


def test_normals_turn_with_expressions_and_the_head(face):
    model, shading = face
    e = np.zeros(len(model.expression_basis))
    rest = shading.turned(e, np.eye(3))
    e[[model.index("mouthSmileLeft"), model.index("mouthSmileRight")]] = 0.25
    R = axis_angle_to_matrix(np.array([0.1, 0.4, 0.0]))
    smiling = shading.turned(e, R) @ R
    assert np.allclose(np.linalg.norm(smiling, axis=1), 1, atol=1e-5)
    assert np.degrees(np.arccos(np.clip((rest * smiling).sum(1), -1, 1))).max() > 5


def test_rows_equal_finite_differences_when_the_light_is_fitted_anew(face):
    """The picture stands still (no slopes); only normals turn, and the light answers."""
    model, shading = face
    R, sigma = axis_angle_to_matrix(np.array([0.0, 0.3, 0.1])), 0.05
    e = np.full(len(model.expression_basis), 0.05)
    N, columns = len(shading.normals), 6 + len(e)
    weight, G = np.ones(N, np.float32), np.zeros((3 * N, columns), np.float32)
    normals = shading.turned(e, R)
    J = brightness_rows(shading, normals, harmonics(normals), R, LIGHT, np.zeros((N, 3), np.float32), sigma, weight, G)
    assert np.allclose(J[:, :6], 0, atol=1e-4)
    albedo = np.random.default_rng(1).normal(0, 0.2, N)
    picture = albedo - sh_basis(shading.turned(e, R)) @ LIGHT

    def left(e):  # what brightness lacks under the best light
        basis = sh_basis(shading.turned(e, R))
        return picture + basis @ np.linalg.lstsq(basis, albedo - picture, rcond=None)[0]

    for name in ("mouthSmileLeft", "mouthPucker"):
        step = np.zeros_like(e)
        step[model.index(name)] = 1e-2
        numeric = (left(e + step) - left(e - step)) / 2e-2 / sigma
        found = J[:, 6 + model.index(name)]
        assert np.corrcoef(numeric, found)[0, 1] > 0.99 and 0.9 < np.std(found) / np.std(numeric) < 1.1


def test_brightness_lies_beside_contrast():
    picture = np.random.default_rng(2).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    both = contrast_and_luma(picture, 1.0)
    assert np.array_equal(both[:, :, :2], contrast(picture, 1.0))
    brighter = contrast_and_luma(np.minimum(picture.astype(float) * 0.5, 255).astype(np.uint8), 1.0)
    assert (both[5:-5, 5:-5, 2, 0] > brighter[5:-5, 5:-5, 2, 0]).all()
