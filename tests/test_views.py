"""Cameras beside the fitted one, depth and normals, against a head whose shape is known."""

import json

import numpy as np
import pytest

from render.camera import Camera
from render.exr import read_exr
from render.files import InputError
from render.march import Volume
from render.rotations import axis_angle_to_matrix
from render.video import load_video, probe
from synthetic import RADII, make_subject, toy_model
from thnerf import performance, synthesis, trainer, views
from thnerf.config import FieldConfig, TorsoConfig, TrainConfig
from thnerf.dataset import head_rays, load_background, load_training_set
from thnerf.renderer import HeadRenderer


@pytest.fixture(scope="module")
def solid_head(tmp_path_factory):
    """(subject, avatar) whose field is as it begins: opaque inside the toy's ellipsoid."""
    subject = make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=44, size=64)
    subject.__dict__["model"] = toy_model()
    config = TrainConfig(head=FieldConfig(levels=4, log2_entries=10, finest_resolution=48, width=16, expression_modes=2, occupancy=48, step_mm=2.0),
                         torso=TorsoConfig(levels=4, log2_entries=10, finest_resolution=48, width=16))
    data = load_training_set(subject, subject.model, 2, 100)
    return subject, trainer.new_trainer(data, subject.model, config).avatar


def truth(track, index=0):
    """Depth (H,W) mm, NaN outside, and camera-space normals of the ellipsoid that the toy's head is."""
    part = track[index : index + 1]
    origin, matrix = (a[0] for a in head_rays(part, np.array([0])))
    d, o = part.camera.ray_directions().astype(float) @ matrix.T / RADII, origin / RADII
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum() - 1
    with np.errstate(invalid="ignore"):
        depth = (-b - np.sqrt(b * b - a * c)) / a
    point = (o + d * depth[..., None]) * RADII
    normal = (point / RADII**2) @ matrix  # head axes → camera axes
    return depth, normal / np.linalg.norm(normal, axis=-1, keepdims=True) * [1, -1, -1]


@pytest.mark.parametrize("degrees", [0, 20])
def test_depth_and_normals_of_a_known_shape(solid_head, degrees):
    subject, avatar = solid_head
    track = subject.track[10:11]
    turn = views.orbit(np.radians([degrees]), track.translation[0].astype(float))
    track = track.replace(camera=Camera(track.camera.K, turn @ track.camera.world_to_camera, 64, 64))
    depth, opacity = views.head_depth(avatar, track, 0)
    true, normal = truth(track)
    face = np.isfinite(true) & (opacity > 0.95) & (true < np.nanmin(true) + 40)
    face &= np.abs(np.arange(64)[:, None] - 32) < 15  # without the jaw, which opens
    assert face.sum() > 150
    assert np.abs(depth - true)[face].mean() < 8 and np.abs(np.median((depth - true)[face])) < 7  # the surface is as soft as the prior's cells
    seen = views.normals_of(depth, opacity, track.camera)
    np.testing.assert_allclose(np.linalg.norm(seen[face], axis=-1), 1, atol=1e-5)
    assert np.median((seen * normal).sum(-1)[face]) > 0.95
    assert not seen[opacity < 0.5].any()


def test_normals_of_a_plane_face_the_way_it_is_turned():
    camera = Camera.simple(200, 60, 60)
    n = axis_angle_to_matrix(np.array([0.3, -0.4, 0.0])) @ np.array([0, 0, -1.0])
    rays = camera.ray_directions().astype(float)
    depth = (n @ np.array([0, 0, 500.0])) / (rays @ n)
    seen = views.normals_of(depth, np.ones((60, 60)), camera, 0.0)
    np.testing.assert_allclose(seen[5:-5, 5:-5], np.broadcast_to(n * [1, -1, -1], (50, 50, 3)), atol=1e-4)


def test_orbit_turns_about_the_head_and_comes_back(solid_head):
    subject, _ = solid_head
    track = synthesis.driving_track(subject, "fit")
    turned = views.place_camera(track, "orbit:30")
    assert np.allclose(turned.camera.world_to_camera[0], track.camera.world_to_camera[0])
    centre = np.median(track.translation, 0)[None].repeat(len(track), 0)[:, None]
    np.testing.assert_allclose(turned.camera.project(centre), track.camera.project(centre), atol=1e-6)
    angle = np.degrees(np.arccos((np.trace(turned.camera.world_to_camera[:, :3, :3], axis1=1, axis2=2) - 1) / 2))
    assert angle.max() == pytest.approx(30, abs=0.1)
    left = Camera(track.camera.K, views.orbit(np.radians([30]), centre[0, 0]), 64, 64)
    ear = centre[:1] + np.array([[[75.0, 0, 0]]])  # +x of the picture is the subject's left; its ear comes nearer to the camera
    local = left.world_to_camera[0, :3, :3] @ ear[0, 0] + left.world_to_camera[0, :3, 3]
    assert local[2] < ear[0, 0, 2] - 20


def test_camera_files(solid_head, tmp_path):
    subject, _ = solid_head
    track = subject.track
    poses = views.orbit(np.linspace(0, 0.2, 60), np.array([0, 0, 900.0]))
    np.savez(tmp_path / "a.npz", world_to_camera=poses)
    (tmp_path / "a.json").write_text(json.dumps({"world_to_camera": poses[7:8].tolist()}))
    np.testing.assert_allclose(views.place_camera(track, tmp_path / "a.npz").camera.world_to_camera, poses[: len(track)])
    np.testing.assert_allclose(views.place_camera(track, tmp_path / "a.json").camera.world_to_camera, np.repeat(poses[7:8], len(track), 0))


@pytest.mark.parametrize("poses", [np.eye(4), np.eye(4)[None].repeat(5, 0), 2 * np.eye(4)[None], np.diag([1, 1, -1, 1.0])[None], np.full((1, 4, 4), np.nan)])
def test_cameras_that_cannot_be(solid_head, tmp_path, poses):
    np.savez(tmp_path / "a.npz", world_to_camera=poses)
    for text in (tmp_path / "a.npz", "orbit:0", "orbit:90", "sideways", tmp_path / "none.npz"):
        with pytest.raises(InputError):
            views.place_camera(solid_head[0].track, text)


def test_carving_takes_floaters_and_leaves_the_front(solid_head):
    subject, avatar = solid_head
    volume = avatar.volume
    everywhere = volume.occupancy.copy()
    full = Volume(volume.lower, volume.upper, everywhere, volume.step, volume.density_unit)
    prior = avatar.head.prior.clone()
    try:
        at = volume.unit(np.array([30.0, 20, 101]))  # in the air before the face
        i, j, k = (at * len(volume.occupancy)).astype(int)
        everywhere[i - 3 : i + 4, j - 3 : j + 4, k - 3 : k + 4] = True
        avatar.head.prior[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 1.0  # fog: a third of the light in 5 mm
        avatar.volume = full
        carved = views.carved(avatar, subject, 3)
    finally:
        avatar.head.prior.copy_(prior)
        avatar.volume = volume
    has = lambda v, points: v.occupancy[tuple(np.floor(v.unit(points) * len(v.occupancy)).astype(int).T)]  # noqa: E731
    blob = np.array([[30.0, 20, 101]]) + np.random.default_rng(0).uniform(-3, 3, (200, 3))
    assert has(full, blob).all() and has(carved, blob).mean() < 0.1
    rows, columns = np.meshgrid(np.linspace(-0.2, 0.8, 15), np.linspace(-0.6, 0.6, 15))
    front = np.stack([columns, rows, np.sqrt(np.maximum(1 - rows**2 - columns**2, 0))], -1).reshape(-1, 3)
    front = front[front[:, 2] > 0.3] * RADII * 0.97
    assert has(carved, front).mean() > 0.95 * has(full, front).mean() > 0.8
    assert not (carved.occupancy & ~full.occupancy.repeat(2, 0).repeat(2, 1).repeat(2, 2)).any()  # nothing is added


def test_depth_and_normals_are_written_beside_the_video(solid_head, tmp_path, monkeypatch):
    subject, avatar = solid_head
    short = subject.track[:3]
    monkeypatch.setattr(performance, "driving_track", lambda *_: short)
    monkeypatch.setattr(trainer, "load_renderer", lambda run, s, device="auto": HeadRenderer(avatar, load_background(subject, 64, 64), subject.track.camera.at(slice(0, 1))))
    done = synthesis.render_speech(subject, None, tmp_path / "a.mp4", track="fit", depth=tmp_path / "d" / "%03d.exr", normals=tmp_path / "n.mp4", size="48")
    assert done["frames"] == 3 and probe(tmp_path / "n.mp4").width == 48
    values, names = read_exr(tmp_path / "d" / "003.exr")
    depth, alpha = values[..., names.index("Z")], values[..., names.index("A")]
    assert 700 < np.median(depth[alpha > 0.9]) < 900 and (depth[alpha < 0.5] == np.float32(1e10)).all()
    assert load_video(tmp_path / "n.mp4")[0][20, 24, 2] > 200  # the face looks to the viewer
    synthesis.render_speech(subject, None, tmp_path / "b.mp4", track="fit", depth=tmp_path / "d.mp4")
    picture = load_video(tmp_path / "d.mp4")[0]
    assert picture[25, 32].min() > 150 and picture[2, 2].max() < 20
    for wish in ({"depth": tmp_path / "a.mp4"}, {"depth": "x.mp4", "normals": "x.mp4"}, {"depth": "x.mp4", "full_frame": True}, {"camera": "orbit", "full_frame": True}):
        with pytest.raises(InputError):
            synthesis.render_speech(subject, None, tmp_path / "a.mp4", track="fit", **wish)
