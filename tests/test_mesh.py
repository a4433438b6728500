"""Surfaces out of volumes and footage: closed, outwards, where they belong, in their colours; and what the files hold."""

import json

import numpy as np
import pytest
import trimesh

from render.files import InputError
from render.isosurface import fill_in, largest_component, neighbours, surface_nets, taubin
from render.light import linear
from synthetic import RADII, make_subject, toy_model
from thnerf import mesh as module
from thnerf.mesh import HeadMesh, export_mesh, field_mesh, fit_mesh


def ball(shape=(40, 36, 44), centre=(20.3, 17.8, 21.1), radius=12.0):
    """Signed distance to a sphere, positive inside."""
    at = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return radius - np.linalg.norm(at - np.array(centre), axis=-1)


def test_a_sphere_is_round_closed_and_faces_outwards():
    vertices, faces = surface_nets(ball(), 0.0)
    distance = np.linalg.norm(vertices - (20.3, 17.8, 21.1), axis=1)
    assert np.abs(distance - 12).max() < 0.15
    solid = trimesh.Trimesh(vertices, faces, process=False)
    assert solid.is_watertight and solid.is_winding_consistent and solid.euler_number == 2
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)  # positive: the normals point outwards


def test_a_body_that_leaves_the_grid_is_closed_at_its_border():
    vertices, faces = surface_nets(ball(shape=(30, 36, 44)), 0.0)
    solid = trimesh.Trimesh(vertices, faces, process=False)
    assert solid.is_watertight and solid.volume > 0 and vertices[:, 0].max() <= 30


def test_nothing_above_the_level_is_an_empty_mesh():
    vertices, faces = surface_nets(np.zeros((5, 5, 5)), 0.5)
    assert vertices.shape == (0, 3) and faces.shape == (0, 3)
    assert largest_component(vertices, faces)[1].shape == (0, 3)


def test_only_the_largest_component_stays():
    both = np.maximum(ball(radius=8.0, centre=(11, 11, 11)), ball(radius=5.0, centre=(30, 28, 34)))
    vertices, faces = largest_component(*surface_nets(both, 0.0))
    assert np.abs(np.linalg.norm(vertices - 11, axis=1) - 8).max() < 0.15
    assert faces.max() == len(vertices) - 1 and trimesh.Trimesh(vertices, faces, process=False).is_watertight


def test_smoothing_takes_bumps_and_leaves_the_size():
    vertices, faces = surface_nets(ball(), 0.0)
    centre = np.array((20.3, 17.8, 21.1))
    bumpy = vertices + np.random.default_rng(0).normal(0, 0.25, vertices.shape)
    smooth = taubin(bumpy, faces)
    spread = lambda v: np.linalg.norm(v - centre, axis=1).std()  # noqa: E731
    assert spread(smooth) < 0.5 * spread(bumpy)
    assert np.linalg.norm(smooth - centre, axis=1).mean() == pytest.approx(12, abs=0.1)


def test_filled_values_keep_what_is_known_and_stay_between():
    vertices, faces = surface_nets(ball(), 0.0)
    known = vertices[:, 2] > 24
    values = np.stack([vertices[:, 2] / 40, np.full(len(vertices), 0.3)], 1)
    filled = fill_in(vertices, faces, np.where(known[:, None], values, 9.0), known)
    np.testing.assert_array_equal(filled[known], values[known])
    assert filled[~known, 0].max() <= values[known, 0].max() and filled[~known, 0].min() >= values[known, 0].min() - 1e-9
    np.testing.assert_allclose(filled[:, 1], 0.3)
    rows = np.asarray(neighbours(faces, len(vertices)).sum(1)).ravel()
    np.testing.assert_allclose(rows, 1)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    made = make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=44, size=96)
    made.__dict__["model"] = toy_model()
    return made


@pytest.fixture(scope="module")
def untrained(subject):
    """A run whose field is as it begins: solid inside the face model."""
    from thnerf.config import FieldConfig, TorsoConfig, TrainConfig
    from thnerf.dataset import load_training_set
    from thnerf.trainer import new_trainer

    config = TrainConfig(head=FieldConfig(levels=4, log2_entries=10, finest_resolution=48, width=16, expression_modes=2, occupancy=48),
                         torso=TorsoConfig(levels=4, log2_entries=10, finest_resolution=48, width=16))
    data = load_training_set(subject, subject.model, 2, 100)
    trainer = new_trainer(data, subject.model, config)
    (subject.run()).mkdir(parents=True, exist_ok=True)
    trainer.avatar.save(subject.run() / "field.safetensors")
    return subject


def test_the_field_closes_to_the_shape_of_the_face_model(untrained):
    head = field_mesh(untrained, cell_mm=3.0)
    solid = trimesh.Trimesh(head.vertices, head.faces, process=False)
    assert solid.is_watertight and solid.volume > 0
    upper = head.vertices[head.vertices[:, 1] > -60]  # the jaw is open, and the shell ends below it
    off = (np.linalg.norm(upper / RADII, axis=1) - 1) * RADII.mean()
    assert np.quantile(np.abs(off), 0.9) < 9 and np.abs(np.median(off)) < 5
    assert head.seen.mean() > 0.2 and (head.vertices[head.seen, 2]).mean() > 20  # the face is seen, the back is not


def test_the_fitted_mesh_has_the_colours_of_the_footage(subject):
    head = fit_mesh(subject)
    p = head.vertices / RADII
    truth = np.stack([0.8 + 0.1 * np.sin(9 * p[:, 0]), 0.6 + 0.1 * np.sin(11 * p[:, 1]), np.full(len(p), 0.5)], 1)
    plain = head.seen & (p[:, 2] > 0.5) & (p[:, 1] > 0.5)  # brow: neither eyes nor mouth
    assert plain.sum() > 15 and np.abs(head.colours[plain] - truth[plain]).mean() < 0.05
    assert not head.seen[p[:, 2] < -0.4].any()  # no frame shows the back
    assert np.isfinite(head.colours).all() and head.colours.min() >= 0 and head.colours.max() <= 1


def sample():
    vertices, faces = surface_nets(ball(), 0.0)
    colours = np.clip(np.stack([vertices[:, 0] / 40, vertices[:, 1] / 40, np.full(len(vertices), 0.5)], 1), 0, 1)
    return HeadMesh(vertices, faces, colours, np.ones(len(vertices), bool))


@pytest.mark.parametrize("name, unit, colour", [("a.ply", 1, lambda c: c), ("a.obj", 1, lambda c: c), ("a.glb", 1000, linear)])
def test_files_hold_the_mesh(tmp_path, name, unit, colour):
    head = sample()
    head.save(tmp_path / name)
    back = trimesh.load(tmp_path / name, force="mesh", process=False)
    np.testing.assert_allclose(np.asarray(back.vertices) * unit, head.vertices, atol=1e-3)
    np.testing.assert_array_equal(back.faces, head.faces)
    seen = glb_colours(tmp_path / name) if name.endswith("glb") else back.visual.vertex_colors
    np.testing.assert_allclose(seen[:, :3] / 255, colour(head.colours), atol=0.6 / 255)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def glb_tree(path):
    """The JSON and the binary chunk of a .glb."""
    data = path.read_bytes()
    size = int.from_bytes(data[12:16], "little")
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def glb_colours(path):
    """COLOR_0 of the first primitive, (V,4) uint8."""
    tree, binary = glb_tree(path)
    accessor = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"], accessor["normalized"]) == (5121, "VEC4", True)
    start = tree["bufferViews"][accessor["bufferView"]].get("byteOffset", 0) + accessor.get("byteOffset", 0)
    return np.frombuffer(binary, np.uint8, 4 * accessor["count"], start).reshape(-1, 4)


def test_glb_is_not_metal(tmp_path):
    sample().save(tmp_path / "a.glb")
    tree, _ = glb_tree(tmp_path / "a.glb")
    primitive = tree["meshes"][0]["primitives"][0]
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0 and "NORMAL" in primitive["attributes"]


def test_export_says_what_it_wrote(untrained, tmp_path):
    done = export_mesh(untrained, tmp_path / "head.ply", "fit", frame=3)
    assert done["vertices"] == len(toy_model().mean) and 0 < done["seen"] < 1
    assert len(trimesh.load(tmp_path / "head.ply", process=False).vertices) == done["vertices"]


@pytest.mark.parametrize("wish", [{"out": "a.stl"}, {"cell_mm": 0.1}, {"frame": 44}, {"frame": -1}, {"run": "none"}])
def test_wishes_that_cannot_be(untrained, tmp_path, wish):
    out = tmp_path / wish.pop("out", "a.ply")
    with pytest.raises(InputError):
        export_mesh(untrained, out, **wish)
    assert not list(tmp_path.iterdir())


def test_specks_before_the_face_are_no_surface(monkeypatch):
    """A floating speck and a hollow inside: the surface is the face, and behind it all is solid."""
    head = trimesh.creation.icosphere(4, 60.0)

    def radiance(points):
        r = np.linalg.norm(points, axis=1)
        speck = np.linalg.norm(points - [0, 10, 78], axis=1) < 2
        return ((np.abs(r - 62) < 4) & (points[:, 2] > 0) | speck).astype(np.float32), np.zeros((len(points), 3), np.float32)

    lower, cell = np.array([-90.0, -90, -90]), 2.0
    values = module._solid(radiance, head.vertices, head.faces, lower, np.array([90, 90, 90]), cell)
    vertices, _ = largest_component(*surface_nets(values, 0.5))
    points = lower + (vertices + 0.5) * cell
    assert points[:, 2].max() < 70
    front = points[(points[:, 2] > 30)]
    assert np.abs(np.linalg.norm(front, axis=1) - 66).mean() < 2.5 and np.linalg.norm(points, axis=1).min() > 50
