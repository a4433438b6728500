"""PyTorch3D's rasteriser behind ours: its conventions as a plain reimplementation, and equality where it is installed."""

import importlib.util

import numpy as np
import pytest

from render.camera import Camera
from render.files import InputError
from render.raster import _drawn, preferred, rasterise
from render.raster_pytorch3d import to_ndc

CAMERAS = [Camera(np.array([[70.0, 0, 21], [0, 66, 17], [0, 0, 1]]), np.eye(4)[None], width, height) for width, height in ((43, 37), (30, 64), (48, 48))]
installed = pytest.mark.skipif(importlib.util.find_spec("pytorch3d") is None, reason="PyTorch3D is not installed")


def soup(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random triangles in front of a camera, some of them partly outside the picture or behind it."""
    random = np.random.default_rng(seed)
    vertices = random.normal(0, 60, (count, 1, 3)) + random.normal(0, 40, (count, 3, 3)) + [0, 0, 150]
    return vertices.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def pixel_ndc(index: int, side: int, other: int) -> float:
    """Centre of a pixel as PyTorch3D counts it, from the side that has the lower coordinate (`PixToNonSquareNdc`)."""
    reach = 2 * side / other if side > other else 2.0
    return -reach / 2 + (reach * index + reach / 2) / side


def pytorch3d_in_numpy(points: np.ndarray, faces: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What its CPU rasteriser computes for vertices (V,3) in NDC and z: pixels from the right and from below, area ratios, perspective correction."""
    face, weights, depth = np.full((height, width), -1), np.zeros((height, width, 3)), np.full((height, width), np.inf)
    for row in range(height):
        for column in range(width):
            at = np.array([pixel_ndc(width - 1 - column, width, height), pixel_ndc(height - 1 - row, height, width)])
            for f, corners in enumerate(points[faces]):
                xy, z = corners[:, :2] - at, corners[:, 2]
                w = np.array([xy[1, 0] * xy[2, 1] - xy[1, 1] * xy[2, 0], xy[2, 0] * xy[0, 1] - xy[2, 1] * xy[0, 0], xy[0, 0] * xy[1, 1] - xy[0, 1] * xy[1, 0]])
                w = w / w.sum()
                if (w < 0).any():
                    continue
                w = w * [z[1] * z[2], z[0] * z[2], z[0] * z[1]]
                w /= w.sum()
                if w @ z < depth[row, column]:
                    face[row, column], weights[row, column], depth[row, column] = f, w, w @ z
    return face, weights, depth


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: f"{c.width}x{c.height}")
def test_conventions(camera: Camera) -> None:
    vertices, faces = soup(camera.width, 24)
    ours = rasterise(vertices, faces, camera, backend="numba")
    homogeneous = vertices @ camera.K.T
    pixels, depth = homogeneous[:, :2] / homogeneous[:, 2:], homogeneous[:, 2]
    kept = _drawn(pixels, depth, faces, False)
    face, weights, z = pytorch3d_in_numpy(np.concatenate([to_ndc(pixels, camera.width, camera.height), depth[:, None]], 1), faces[kept], camera.width, camera.height)
    face = np.where(face >= 0, kept[face], -1)
    assert (face != ours.face).sum() <= 1 and ours.mask.mean() > 0.15
    same = ours.mask & (face == ours.face)
    np.testing.assert_allclose(weights[same], ours.barycentric[same], atol=1e-4)
    np.testing.assert_allclose(z[same], ours.depth[same], rtol=1e-5)


def test_faces_that_are_drawn() -> None:
    """`_drawn` keeps what the numba rasteriser draws: each face alone, with and without those seen from behind."""
    vertices, faces = soup(1)
    homogeneous = vertices @ CAMERAS[0].K.T
    for cull in (False, True):
        kept = set(_drawn(homogeneous[:, :2] / homogeneous[:, 2:], homogeneous[:, 2], faces, cull))
        seen = {f for f in range(len(faces)) if rasterise(vertices, faces[f : f + 1], CAMERAS[0], cull_back=cull, backend="numba").mask.any()}
        assert seen and seen <= kept
    assert len(kept) < len(faces)


@installed
@pytest.mark.parametrize("cull_back", [False, True])
@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: f"{c.width}x{c.height}")
def test_pytorch3d_equals_ours(camera: Camera, cull_back: bool) -> None:
    vertices, faces = soup(3)
    ours, theirs = (rasterise(vertices, faces, camera, cull_back=cull_back, backend=name) for name in ("numba", "pytorch3d"))
    assert (ours.face != theirs.face).sum() <= 3, "only pixels on an edge may differ"
    same = ours.mask & (ours.face == theirs.face)
    assert same.mean() > 0.15 and np.isinf(theirs.depth[~theirs.mask]).all() and theirs.face.dtype == ours.face.dtype
    np.testing.assert_allclose(theirs.depth[same], ours.depth[same], rtol=1e-4)
    np.testing.assert_allclose(theirs.barycentric[same], ours.barycentric[same], atol=2e-3)


@installed
def test_pytorch3d_leaves_no_cracks_and_draws_nothing_of_nothing() -> None:
    vertices = np.array([[-40.0, -40, 100], [40, -40, 100], [40, 40, 100], [-40, 40, 100]])
    camera = Camera.simple(100, 16, 16)
    vertices[:, :2] += 0.5  # the diagonal runs through pixel centres
    whole = rasterise(vertices, np.array([[0, 1, 2], [0, 2, 3]]), camera, backend="pytorch3d")
    assert whole.mask.all() and np.allclose(whole.depth, 100)
    assert not rasterise(vertices, np.zeros((0, 3), int), camera, backend="pytorch3d").mask.any()


def test_absent_and_unknown_rasterisers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = soup(2)
    with pytest.raises(InputError, match="choose one of numba, pytorch3d"):
        rasterise(vertices, faces, CAMERAS[0], backend="opengl")
    monkeypatch.setitem(__import__("sys").modules, "pytorch3d", None)
    monkeypatch.setitem(__import__("sys").modules, "pytorch3d.renderer.mesh", None)
    with pytest.raises(InputError, match="needs the package pytorch3d"):
        rasterise(vertices, faces, CAMERAS[0], backend="pytorch3d")


def test_auto_is_numba_without_pytorch3d_or_cuda() -> None:
    import torch

    expected = "pytorch3d" if importlib.util.find_spec("pytorch3d") is not None and torch.cuda.is_available() else "numba"
    assert preferred() == expected
