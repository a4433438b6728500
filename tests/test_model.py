"""Laws of the default face model, of gaze, and of model files."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest

from recon.landmarks import INNER_LIP, IRIS, LIDS, ibug68
from recon.model import Embedding, MorphableModel, apply_gaze, load_model, save_model
from render.files import InputError
from render.raster import vertex_normals

ARKIT_SIDED = ("eyeBlink", "eyeLookDown", "eyeLookIn", "eyeLookOut", "eyeLookUp", "eyeSquint", "eyeWide", "mouthSmile", "mouthFrown", "mouthDimple", "mouthStretch",
               "mouthPress", "mouthLowerDown", "mouthUpperUp", "browDown", "browOuterUp", "cheekSquint", "noseSneer")
ARKIT_SINGLE = ("jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker", "mouthLeft", "mouthRight", "mouthRollLower", "mouthRollUpper",
                "mouthShrugLower", "mouthShrugUpper", "browInnerUp", "cheekPuff", "tongueOut")


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return load_model()


def weights(model: MorphableModel, **values: float) -> np.ndarray:
    """(E,) with some expressions set."""
    out = np.zeros(len(model.expression_names), np.float32)
    for name, value in values.items():
        out[model.index(name)] = value
    return out


def identity(model: MorphableModel, seed: int) -> np.ndarray:
    """Random (S,) coefficients."""
    return np.random.default_rng(seed).normal(0, 1, len(model.shape_basis)).astype(np.float32)


def test_names_are_exactly_arkits(model: MorphableModel) -> None:
    expected = {stem + side for stem in ARKIT_SIDED for side in ("Left", "Right")} | set(ARKIT_SINGLE)
    assert set(model.expression_names) == expected and len(model.expression_names) == 52
    with pytest.raises(KeyError, match="no expression"):
        model.index("smile")


def test_zero_is_the_mean_and_coefficients_add(model: MorphableModel) -> None:
    zero = np.zeros(52)
    np.testing.assert_array_equal(model.vertices(np.zeros(80), zero), model.mean)
    a, b = identity(model, 1), identity(model, 2)
    e, f = np.random.default_rng(3).random((2, 52)).astype(np.float32)
    offset = lambda s, x: model.vertices(s, x) - model.mean  # noqa: E731
    np.testing.assert_allclose(offset(a + b, e + f), offset(a, e) + offset(b, f), atol=2e-3)
    np.testing.assert_allclose(model.vertices(a[:5], e), model.vertices(np.concatenate([a[:5], np.zeros(75)]), e), atol=1e-4)
    assert model.vertices(np.stack([a, b]), np.stack([e, f])).shape == (2, len(model.mean), 3)
    with pytest.raises(ValueError, match="coefficients"):
        model.vertices(np.zeros(81), zero)


def test_left_is_plus_x_up_is_plus_y_and_the_face_looks_along_z(model: MorphableModel) -> None:
    for side, sign in (("Left", 1), ("Right", -1)):
        moved = np.linalg.norm(model.expression_basis[model.index(f"eyeBlink{side}")], axis=1)
        assert sign * np.average(model.mean[:, 0], weights=moved) > 20
    assert model.eye_centres[0, 0] > 25 and model.eye_centres[1, 0] < -25
    assert model.mean[model.regions["scalp"], 1].mean() > model.mean[model.regions["neck"], 1].mean() + 100
    assert model.mean[model.regions["lips"], 2].mean() > 60
    chin = model.points(model.mean, "mediapipe478")[152]
    jaw = model.points(model.vertices(np.zeros(0), weights(model, jawOpen=1)), "mediapipe478")[152]
    assert jaw[1] < chin[1] - 10


def test_size_is_human(model: MorphableModel) -> None:
    assert 55 < np.ptp(model.eye_centres[:, 0]) < 70
    np.testing.assert_allclose(model.eye_centres[:, 1:].mean(0), model.eye_centres[0, 1:], atol=0.1)
    assert 190 < np.ptp(model.mean[~model.regions["neck"] & ~model.regions["mouth_inside"]], axis=0)[1] < 260


def test_mean_and_expressions_are_mirror_symmetric(model: MorphableModel) -> None:
    flip = np.array([-1, 1, 1])
    skin = np.flatnonzero(model.regions["face"])
    gap = np.linalg.norm(model.mean[skin][:, None] * flip - model.mean[skin][None], axis=-1)
    pair = gap.argmin(1)
    assert gap.min(1).max() < 0.1
    for stem in ("eyeBlink", "mouthSmile", "browDown", "jaw", "mouth"):
        left, right = (model.expression_basis[model.index(stem + side)][skin] for side in ("Left", "Right"))
        assert np.abs(left * flip - right[pair]).max() < 0.02


def test_mesh_is_closed_enough_to_shade(model: MorphableModel) -> None:
    normals = vertex_normals(model.mean, model.faces)
    for side, centre in zip(("left", "right"), model.eye_centres):
        mask = model.regions[f"eye_{side}"]
        assert ((normals[mask] * (model.mean[mask] - centre)).sum(1) > 0).all(), "eyeballs face outward"
    assert normals[model.regions["lips"], 2].mean() > 0.2
    assert len(np.unique(model.faces)) == len(model.mean)


def test_open_jaw_takes_lower_teeth_and_tongue_along(model: MorphableModel) -> None:
    basis = model.expression_basis[model.index("jawOpen")]
    assert basis[model.regions["teeth_lower"], 1].max() < -5
    assert basis[model.regions["tongue"], 1].mean() < -5
    assert np.abs(basis[model.regions["teeth_upper"]]).max() == 0


def test_no_expression_moves_the_eyeballs(model: MorphableModel) -> None:
    eyes = model.regions["eye_left"] | model.regions["eye_right"]
    assert np.abs(model.expression_basis[:, eyes]).max() == 0
    lids = np.abs(model.expression_basis[model.index("eyeLookDownLeft")]).max()
    assert lids > 0.5, "but the lids follow the look"


def test_eyeballs_stay_spheres_around_the_reported_centres(model: MorphableModel) -> None:
    for seed in range(3):
        shape = identity(model, seed) * 1.5
        vertices, centres = model.vertices(shape, np.zeros(52)), model.eyes(shape)
        for side, name in enumerate(("left", "right")):
            radius = np.linalg.norm(vertices[model.regions[f"eye_{name}"]] - centres[side], axis=1)
            assert np.ptp(radius) < 0.15 and 11 < radius.mean() < 19


def test_gaze_moves_only_eyeballs_to_the_subjects_left_and_up(model: MorphableModel) -> None:
    shape = identity(model, 4)
    vertices = model.vertices(shape, weights(model, mouthSmileLeft=0.5))
    np.testing.assert_allclose(apply_gaze(model, vertices, shape, np.zeros((2, 2))), vertices, atol=1e-3)
    turned = apply_gaze(model, vertices, shape, np.array([[0.3, 0.2], [0.3, 0.2]]))
    eyes = model.regions["eye_left"] | model.regions["eye_right"]
    np.testing.assert_array_equal(turned[~eyes], vertices[~eyes])
    motion = model.points(turned, "mediapipe478") - model.points(vertices, "mediapipe478")
    for side, name in enumerate(("left", "right")):
        pole = np.flatnonzero(model.regions[f"eye_{name}"])[0]
        radius = np.linalg.norm(vertices[pole] - model.eyes(shape)[side])
        expected = radius * np.array([np.sin(0.3) * np.cos(0.2), np.sin(0.2)])
        np.testing.assert_allclose((turned - vertices)[pole, :2], expected, atol=0.01)
        np.testing.assert_allclose(motion[IRIS[name][0], :2], expected, atol=0.15 * radius)
    only_left = apply_gaze(model, vertices, shape, np.array([[0.3, 0.0], [0, 0]]))
    np.testing.assert_allclose(only_left[model.regions["eye_right"]], vertices[model.regions["eye_right"]], atol=1e-3)


def test_gaze_of_a_sequence_equals_frame_by_frame(model: MorphableModel) -> None:
    shape, gaze = identity(model, 5), np.random.default_rng(5).normal(0, 0.2, (3, 2, 2))
    expression = np.random.default_rng(6).random((3, 52)).astype(np.float32) * 0.3
    together = apply_gaze(model, model.vertices(shape, expression), shape, gaze)
    for i in range(3):
        np.testing.assert_allclose(together[i], apply_gaze(model, model.vertices(shape, expression[i]), shape, gaze[i]), atol=1e-4)
    one = model.vertices(shape, expression[0])
    assert apply_gaze(model, one, shape, gaze).shape == (3,) + one.shape


@pytest.mark.parametrize("scheme,count", [("mediapipe478", 478), ("ibug68", 68)])
def test_landmarks_lie_on_the_mesh(model: MorphableModel, scheme: str, count: int) -> None:
    e = model.landmarks[scheme]
    assert e.faces.shape == (count,) and e.faces.min() >= 0 and e.faces.max() < len(model.faces)
    np.testing.assert_allclose(e.barycentric.sum(1), 1, atol=1e-4)
    assert e.barycentric.min() >= -1e-6
    corners = model.regions["skin"][model.faces[e.faces]].all(1)
    assert corners[: min(count, 468)].all(), "irises aside, landmarks are on the skin"


def test_landmarks_are_on_their_side_and_their_lip(model: MorphableModel) -> None:
    points = model.points(model.mean, "mediapipe478")
    assert (points[list(LIDS["left"] + IRIS["left"]), 0] > 10).all() and (points[list(LIDS["right"] + IRIS["right"]), 0] < -10).all()
    assert points[291, 0] > 12 and points[61, 0] < -12
    opened = model.points(model.vertices(np.zeros(0), weights(model, jawOpen=1)), "mediapipe478")
    drop = points[:, 1] - opened[:, 1]
    upper, lower = list(INNER_LIP[3:8]), list(INNER_LIP[13:18])
    assert drop[upper].max() < 4 < 12 < drop[lower].min(), "the open jaw takes only the lower lip along"
    closed = model.points(model.vertices(np.zeros(0), weights(model, eyeBlinkLeft=1, eyeBlinkRight=1)), "mediapipe478")
    assert (points[[386, 159], 1] - closed[[386, 159], 1]).min() > 4 * np.abs(points[[374, 145], 1] - closed[[374, 145], 1]).max()
    assert np.abs(closed[[386, 159], 1] - closed[[374, 145], 1]).max() < 2, "a blink brings the lids together"


def test_landmarks_are_mirror_symmetric(model: MorphableModel) -> None:
    points = model.points(model.mean, "mediapipe478")
    for left, right in ((291, 61), (263, 33), (362, 133), (454, 234), (308, 78), (334, 105), (386, 159), (473, 468)):
        np.testing.assert_allclose(points[left] * [-1, 1, 1], points[right], atol=0.8)


def test_ibug68_selects_what_recon_selects_from_detections(model: MorphableModel) -> None:
    vertices = model.vertices(identity(model, 7), weights(model, jawOpen=0.4))
    from_478 = ibug68(model.points(vertices, "mediapipe478"))
    np.testing.assert_allclose(model.points(vertices, "ibug68")[..., : from_478.shape[-1]], from_478, atol=1e-3)


def test_identities_are_similar_in_size_and_components_ordered(model: MorphableModel) -> None:
    energy = (model.shape_basis**2).sum((1, 2))
    assert energy[:10].sum() > energy[40:50].sum() and model.shape_basis.shape[0] == 80
    face = model.regions["face"]
    spread = [np.linalg.norm(v := model.vertices(identity(model, s), np.zeros(52))[face] - model.mean[face], axis=1).mean() for s in range(5)]
    assert 1 < min(spread) and max(spread) < 8 and v.shape[1] == 3


def test_default_is_loaded_once_and_cannot_be_changed(model: MorphableModel) -> None:
    assert load_model("default") is model
    for array in (model.mean, model.shape_basis, model.expression_basis, model.faces, model.regions["face"], model.landmarks["ibug68"].faces):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("step,tolerance", [(0.0, 0.0), (0.01, 0.0051)])
def test_round_trip(model: MorphableModel, tmp_path: Path, step: float, tolerance: float) -> None:
    save_model(tmp_path / "m.npz", model, step)
    again = load_model(tmp_path / "m.npz")
    for name in ("mean", "faces", "eye_centres"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    for name in ("shape_basis", "expression_basis"):
        assert np.abs(getattr(again, name) - getattr(model, name)).max() <= tolerance
    assert again.expression_names == model.expression_names and again.model_id == model.model_id
    assert set(again.regions) == set(model.regions) and all(np.array_equal(again.regions[k], model.regions[k]) for k in model.regions)
    for scheme, e in model.landmarks.items():
        np.testing.assert_array_equal(again.landmarks[scheme].faces, e.faces)
        np.testing.assert_array_equal(again.landmarks[scheme].barycentric, e.barycentric)


def test_damaged_files_are_input_errors(model: MorphableModel, tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    save_model(good, model, 0.01)
    data = good.read_bytes()
    for name, content in {"empty": b"", "text": b"hello", "cut": data[: len(data) // 2], "flipped": data[:9000] + b"\0" * 64 + data[9064:]}.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_model(tmp_path / f"{name}.npz")
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "absent.npz")
    with pytest.raises(InputError):
        load_model(tmp_path)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    with open(tmp_path / "hostile.npz", "wb") as stream:
        np.savez(stream, version=1, model_id="x", mean=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="readable"):
        load_model(tmp_path / "hostile.npz")


@pytest.mark.parametrize("change", ["faces", "names", "landmarks", "nan", "member"])
def test_inconsistent_files_are_input_errors(model: MorphableModel, tmp_path: Path, change: str) -> None:
    path = tmp_path / "bad.npz"
    broken = {
        "faces": lambda: dataclasses.replace(model, faces=model.faces + 100),
        "names": lambda: dataclasses.replace(model, expression_names=("a",) * 52),
        "landmarks": lambda: dataclasses.replace(model, landmarks={"ibug68": Embedding(np.array([10**6]), np.ones((1, 3)) / 3)}),
        "nan": lambda: dataclasses.replace(model, mean=model.mean * np.nan),
        "member": lambda: model}[change]()
    save_model(path, broken)
    if change == "member":
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "less.npz", "w") as less:
            for name in whole.namelist():
                if name != "faces.npy":
                    less.writestr(name, whole.read(name))
        path = tmp_path / "less.npz"
    with pytest.raises(InputError, match="face model"):
        load_model(path)


def test_a_step_too_small_for_the_basis_is_refused(model: MorphableModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too much"):
        save_model(tmp_path / "m.npz", model, step=1e-6)
    assert not list(tmp_path.iterdir())
