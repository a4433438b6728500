"""Textures: footage of a head with a known texture gives that texture back; what is hidden takes no colour from what hides it."""

import numpy as np
import pytest
from PIL import Image

from recon.model import load_model
from recon.overlay import posed_vertices
from recon.subject import Subject, make_split, write_subject
from recon.track import Track
from render.camera import Camera
from render.light import Light, coded, linear
from render.raster import interpolate, rasterise, vertex_normals
from render.rotations import from_head_angles
from render.video import VideoWriter
from thnerf import texture
from thnerf.unwrap import cylinder, texture_coordinates

SIZE = 256


@pytest.fixture(scope="module")
def painted() -> np.ndarray:
    """A smooth picture with some contrast; green where the patches of eyes, teeth and tongue are."""
    v, u = np.mgrid[0:512, 0:512] / 512
    picture = np.stack([0.55 + 0.2 * np.sin(40 * u), 0.45 + 0.15 * np.sin(35 * v), 0.5 + 0.2 * np.cos(30 * (u + v))], -1)
    picture[v > 0.79] = (0.1, 0.8, 0.2)
    return (picture * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def subject(painted, tmp_path_factory) -> Subject:
    """A head that turns, filmed before grey; two of its frames are tinted."""
    model, path, T = load_model(), tmp_path_factory.mktemp("painted"), 16
    yaw = np.linspace(-0.7, 0.7, T)
    expression = np.zeros((T, 52))
    expression[:, model.index("jawOpen")] = np.linspace(0, 0.6, T)
    track = Track(25, model.model_id, Camera.simple(2.6 * SIZE, SIZE, SIZE, T), np.zeros(10), expression, from_head_angles(np.stack([yaw, 0.1 * np.cos(9 * yaw), 0 * yaw], 1)),
                  np.tile([0, 0, 900.0], (T, 1)), np.zeros((T, 2, 2)), np.zeros((T, 4)), np.ones(T, bool), model.expression_names)
    track.save(path / "track.npz")
    with VideoWriter(path / "video.mp4", SIZE, SIZE, 25, crf=4) as video, VideoWriter(path / "matte.mp4", SIZE, SIZE, 25, grey=True) as matte:
        for i in range(T):
            camera, vertices = track.camera.at(slice(i, i + 1)), posed_vertices(model, track, i)
            picture = texture.draw(vertices, model, painted, camera)
            if i in (4, 11):
                picture = np.clip(picture + [0.3, -0.2, 0.2], 0, 1)
            video.write((picture * 255 + 0.5).astype(np.uint8))
            matte.write(rasterise(vertices, model.faces, camera).mask.astype(np.uint8) * 255)
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(path / "background.png")
    write_subject(path, {"clips": [], "split": make_split((0,), T), "fingerprint": "x"})
    return Subject.open(path)


@pytest.fixture(scope="module")
def baked(subject) -> tuple[np.ndarray, float]:
    return texture.bake(subject, size=512, views=16)


def weights_of(subject, size=512):
    """Total weight of every texel, and the texels."""
    from render.video import load_video

    texels = texture.make_texels(subject.model, size)
    video, matte = load_video(subject.video_path), load_video(subject.matte_path, grey=True)
    samples = [texture.sample(video[i], matte[i], posed_vertices(subject.model, subject.track, i), subject.model, texels, subject.track.camera.at(slice(i, i + 1)))
               for i in subject.frames("train")]
    return texture.blend(samples, len(texels.row))[1], texels


def test_the_painted_texture_comes_back_where_it_was_seen(subject, baked, painted):
    picture, share = baked
    total, texels = weights_of(subject)
    seen = total > 2 * texture.ENOUGH
    skin = texture.labels(subject.model)[texels.face] == 0
    error = np.abs(picture[texels.row, texels.column].astype(float) - painted[texels.row, texels.column])[seen & skin]
    assert 0.1 < share < 0.7 and seen.mean() > 0.1
    assert error.mean() < 5 and np.percentile(error, 95) < 16  # of 255; the tinted frames are 50 to 75 away


def test_what_lies_behind_the_lips_takes_nothing_from_them(subject, baked):
    """Teeth and tongue are green where seen; never the colours of the skin before them."""
    picture, _ = baked
    total, texels = weights_of(subject)
    inner = np.isin(texture.labels(subject.model)[texels.face], (4, 5, 6)) & (total > texture.ENOUGH)
    assert inner.sum() > 50
    r, g, b = picture[texels.row, texels.column][inner].astype(float).T
    assert (g > r + 40).mean() > 0.9


def test_every_texel_of_a_patch_is_near_its_point(subject):
    """The map from texels to the surface is the inverse of the texture coordinates."""
    model = subject.model
    texels = texture.make_texels(model, 256)
    uv = np.einsum("pkc,pk->pc", texture_coordinates(model)[texels.face], texels.barycentric)
    np.testing.assert_allclose(uv * 256, np.stack([texels.column + 0.5, 256 - texels.row - 0.5], 1), atol=1e-2)


def test_patches_of_the_default_model_do_not_overlap():
    """Of skin and eyeballs; fronts and backs of teeth and tongue share a place on purpose."""
    model = load_model()
    uv, label = texture_coordinates(model), texture.labels(model)
    assert uv.min() >= 0 and uv.max() <= 1
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    apart = ~np.isin(label, (4, 5, 6))
    assert -area[apart][area[apart] < 0].sum() < 1e-4 * area[apart].sum()  # the base mesh folds five triangles
    texels = texture.make_texels(model, 1024)
    covered = np.isin(texels.face, np.flatnonzero(apart)).sum() / 1024**2
    assert abs(covered / area[apart].sum() - 1) < 0.01


def test_a_cylinder_has_its_seam_behind():
    model = load_model()
    uv = cylinder(model.mean.astype(float), model.faces)
    assert uv.min() >= 0 and uv.max() <= 1 and (np.ptp(uv[..., 0], axis=1) > 0.4).sum() < 10  # but for the crown
    nose = model.mean[model.faces].mean(1)[:, 2].argmax()
    assert 0.3 < uv[nose, :, 0].mean() < 0.7


def test_the_subject_keeps_its_texture_until_it_is_fitted_again(subject, monkeypatch):
    calls = []
    monkeypatch.setattr(texture, "bake", lambda s, albedo: calls.append(1) or (np.zeros((8, 8, 3), np.uint8), 0.5))
    path = texture.subject_texture(subject)
    assert texture.subject_texture(subject) == path and calls == [1]
    subject.info["fingerprint"] = "another fit"
    texture.subject_texture(subject)
    path.write_bytes(b"damaged")
    texture.subject_texture(subject)
    assert calls == [1, 1, 1]
    path.unlink()


@pytest.fixture(scope="module")
def lit(subject, tmp_path_factory) -> tuple[Subject, Light]:
    """The same head painted plainly, under light from one side and from above."""
    import shutil

    path = tmp_path_factory.mktemp("lit")
    for name in ("track.npz", "matte.mp4", "background.png"):
        shutil.copy(subject.path / name, path / name)
    coefficients = np.zeros((9, 3))
    coefficients[0], coefficients[1], coefficients[2], coefficients[3] = 2.4, -0.5, -0.5, (0.9, 0.8, 0.6)
    light, model, track, plain = Light(coefficients), subject.model, subject.track, np.full((64, 64, 3), 150, np.uint8)
    with VideoWriter(path / "video.mp4", SIZE, SIZE, 25, crf=4) as video:
        for i in range(len(track)):
            camera, vertices = track.camera.at(slice(i, i + 1)), posed_vertices(model, track, i)
            found = rasterise(vertices, model.faces, camera)
            normals = interpolate(found, model.faces, vertex_normals(vertices, model.faces))
            normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
            video.write((coded(linear(texture.draw(vertices, model, plain, camera)) * light.shading(normals)) * 255 + 0.5).astype(np.uint8))
    write_subject(path, {"clips": [], "split": make_split((0,), len(track)), "fingerprint": "y"})
    return Subject.open(path), light


def test_albedo_is_even_where_light_was_not(lit):
    subject, light = lit
    skin = subject.model.regions["face"][subject.model.faces].all(1)
    spreads = []
    for albedo in (False, True):
        picture, _ = texture.bake(subject, 256, 16, albedo)
        total, texels = weights_of(subject, 256)
        rows = (total > 2 * texture.ENOUGH) & skin[texels.face]
        spreads.append(picture[texels.row, texels.column][rows].astype(float).std(0).mean())
    assert spreads[1] < 0.3 * spreads[0], spreads
