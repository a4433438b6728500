"""The rasteriser against a slow reference that tries every triangle at every pixel, and its laws."""

import numpy as np
import pytest

from render.camera import Camera
from render.raster import Fragments, interpolate, rasterise, vertex_normals


def reference(vertices: np.ndarray, faces: np.ndarray, camera: Camera, cull_back: bool = False) -> Fragments:
    """Intersect the ray of every pixel with every triangle (Möller & Trumbore 1997)."""
    rays = camera.ray_directions().astype(np.float64)
    face = np.full(rays.shape[:2], -1, np.int32)
    barycentric, depth = np.zeros(rays.shape), np.full(rays.shape[:2], np.inf)
    for index, (a, b, c) in enumerate(vertices[faces]):
        u, v = b - a, c - a
        normal = np.cross(u, v)
        if cull_back and normal @ a >= 0 or min(a[2], b[2], c[2]) <= 1:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (normal @ a) / (rays @ normal)
        offset = rays * distance[..., None] - a
        denominator = normal @ normal
        wb = np.cross(offset, v) @ normal / denominator
        wc = np.cross(u, offset) @ normal / denominator
        weights = np.stack([1 - wb - wc, wb, wc], -1)
        hit = (weights >= 0).all(-1) & (distance > 0) & (distance < depth)
        face[hit], depth[hit], barycentric[hit] = index, distance[hit], weights[hit]
    return Fragments(face, barycentric, depth)


def soup(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Random triangles in front of a camera, some of them partly outside the picture or behind it."""
    random = np.random.default_rng(seed)
    vertices = random.normal(0, 60, (count, 1, 3)) + random.normal(0, 40, (count, 3, 3)) + [0, 0, 150]
    return vertices.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


CAMERA = Camera(np.array([[70.0, 0, 21], [0, 66, 17], [0, 0, 1]]), np.eye(4)[None], 43, 37)


@pytest.mark.parametrize("cull_back", [False, True])
def test_equals_reference(cull_back: bool) -> None:
    vertices, faces = soup(3)
    fast, slow = rasterise(vertices, faces, CAMERA, cull_back=cull_back), reference(vertices, faces, CAMERA, cull_back)
    assert slow.mask.mean() > 0.3
    assert (fast.face != slow.face).sum() <= 2, "only pixels exactly on an edge may differ"
    same = fast.mask & (fast.face == slow.face)
    np.testing.assert_allclose(fast.depth[same], slow.depth[same], rtol=1e-5)
    np.testing.assert_allclose(fast.barycentric[same], slow.barycentric[same], atol=2e-4)


def test_interpolated_positions_lie_on_the_pixels_rays() -> None:
    vertices, faces = soup(4)
    fragments = rasterise(vertices, faces, CAMERA)
    points = interpolate(fragments, faces, vertices)
    expected = CAMERA.ray_directions() * fragments.depth[..., None]
    np.testing.assert_allclose(points[fragments.mask], expected[fragments.mask], atol=0.05)
    np.testing.assert_allclose(fragments.barycentric[fragments.mask].sum(-1), 1, atol=1e-5)


def test_background_where_nothing_is() -> None:
    vertices, faces = np.array([[-1.0, -1, 50], [1, -1, 50], [0, 1, 50]]), np.array([[0, 1, 2]])
    fragments = rasterise(vertices, faces, CAMERA)
    image = interpolate(fragments, faces, np.ones((3, 2)), background=-7)
    assert set(np.unique(image[~fragments.mask])) == {-7} and np.isinf(fragments.depth[~fragments.mask]).all()
    assert fragments.mask.sum() > 0 and not fragments.mask.all()


def test_pose_of_the_chosen_frame_applies() -> None:
    vertices, faces = soup(5)
    pose = np.eye(4)
    pose[:3, 3] = (8, -5, 30)
    camera = Camera(CAMERA.K, np.stack([np.eye(4), pose]), CAMERA.width, CAMERA.height)
    moved = rasterise(vertices + pose[:3, 3], faces, camera, frame=0)
    np.testing.assert_array_equal(rasterise(vertices, faces, camera, frame=1).face, moved.face)


def test_shared_edges_leave_no_cracks() -> None:
    """A fan of triangles over the whole picture covers every pixel."""
    angle = np.linspace(0, 2 * np.pi, 14)[:-1]
    vertices = np.concatenate([[[3.1, -2.2, 100]], np.stack([200 * np.cos(angle), 200 * np.sin(angle), 100 + 30 * np.cos(3 * angle)], -1)])
    faces = np.array([[0, 1 + i, 1 + (i + 1) % 13] for i in range(13)])
    assert rasterise(vertices, faces, CAMERA).mask.all()


def test_triangles_behind_the_camera_are_dropped_and_nothing_drawn_of_an_empty_mesh() -> None:
    vertices, faces = np.array([[-10.0, -10, -50], [10, -10, -50], [0, 10, 40]]), np.array([[0, 1, 2]])
    assert not rasterise(vertices, faces, CAMERA).mask.any()
    assert not rasterise(vertices, np.zeros((0, 3), int), CAMERA).mask.any()


def test_wrong_indices_and_shapes_are_refused() -> None:
    vertices, _ = soup(6)
    with pytest.raises(ValueError, match="faces point at"):
        rasterise(vertices, np.array([[0, 1, len(vertices)]]), CAMERA)
    with pytest.raises(ValueError, match="faces point at"):
        rasterise(vertices, np.array([[0, -1, 2]]), CAMERA)
    with pytest.raises(ValueError, match=r"\(V,3\)"):
        rasterise(vertices[:, :2], np.array([[0, 1, 2]]), CAMERA)


def test_normals_of_a_cube_point_outward() -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    faces = []
    for axis in range(3):
        for side in (-1, 1):
            a, b, c, d = np.flatnonzero(corners[:, axis] == side)
            for triangle in ((a, b, c), (b, d, c)):
                p = corners[list(triangle)]
                outward = np.cross(p[1] - p[0], p[2] - p[0])[axis] * side > 0
                faces.append(triangle if outward else triangle[::-1])
    normals = vertex_normals(corners, np.array(faces))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert ((normals * corners) > 0.2).all()
