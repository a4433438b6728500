"""Loaders of other projects' face models: exact on synthetic files of their schemas, deaf to hostile ones."""

import dataclasses
import os
import pickle
import struct
from pathlib import Path

import foreign
import numpy as np
import pytest
from test_cli import run

from recon.config import FitConfig
from recon.formats import load_foreign
from recon.formats.common import _MIRROR, millimetres
from recon.formats.ict import arkit_name
from recon.formats.pickles import read_npy, read_npz, read_pickle
from recon.landmarks import ibug68
from recon.model import MorphableModel, fitted_part, load_model, save_model
from recon.solve import solve
from recon.surface import closest_points, similarity, warp
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, from_head_angles

WRITERS = {"flame": foreign.write_flame, "deep3d": foreign.write_deep3d, "bfm09": foreign.write_bfm09, "ad_nerf": foreign.write_ad_nerf,
           "bfm_h5": lambda folder: foreign.write_bfm_h5(folder / "model2019_bfm.h5"), "ict": foreign.write_ict, "gnm": foreign.write_gnm}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One synthetic model in each format (that this installation reads)."""
    root = tmp_path_factory.mktemp("foreign")
    found = {}
    for name, write in WRITERS.items():
        if name == "bfm_h5":
            try:
                import h5py  # noqa: F401
            except ImportError:
                continue
        found[name] = write(root / name)
    return found


@pytest.fixture(scope="module")
def models(files) -> dict[str, MorphableModel]:
    return {name: load_model(path) for name, path in files.items()}


def get(models: dict, name: str) -> MorphableModel:
    """The model, or a skip where h5py is missing."""
    if name not in models:
        pytest.skip("h5py is not installed (pip install 'thnerf[models]')")
    return models[name]


def row(model: MorphableModel, name: str) -> np.ndarray:
    """Which expression of a nameless basis is the default model's `name`."""
    return model.expression_basis[load_model().index(name)]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_head_it_was_written_from(models, name):
    model, default = get(models, name), load_model()
    head = foreign.Head(1.0, 5023 if name == "flame" else None)
    kept = np.arange(len(head.mean))
    if name == "bfm09":
        kept = np.setdiff1d(kept, head.mean[:, 1].argsort()[:120])
    np.testing.assert_allclose(model.mean, head.mean[kept], atol=2e-3)
    count = 12 if name == "ict" else 80
    np.testing.assert_allclose(model.shape_basis[:count], head.shapes[:count, kept], atol=2e-3)
    jaw_open = model.expression_basis[model.index("jawOpen")] if name == "ict" else None if name == "flame" else row(model, "jawOpen")
    if jaw_open is not None:
        np.testing.assert_allclose(jaw_open, head.motions[default.index("jawOpen"), kept], atol=2e-3)
    assert set(model.landmarks) == {"ibug68", "mediapipe478"}
    normals = np.cross(*np.moveaxis(model.mean[model.faces][:, 1:] - model.mean[model.faces][:, :1], 1, 0))
    nose = model.faces[model.landmarks["ibug68"].faces[30]]
    assert normals[(model.faces == nose).all(1)][0, 2] > 0, "the front faces forward"
    for scheme, near in (("ibug68", 2.0), ("mediapipe478", 1.2)):
        gap = np.linalg.norm(model.points(model.mean, scheme) - default.points(default.mean, scheme), axis=1)
        assert gap.mean() < near, "landmarks lie where the default model has them, within the spacing of its vertices"
    assert model.licence and 1200 < model.regions["face"].sum() < 2600
    assert model.model_id not in {m.model_id for other, m in models.items() if other != name}


@pytest.mark.parametrize("name", WRITERS)
def test_a_converted_model_is_the_same_model(models, name, tmp_path):
    model = get(models, name)
    save_model(tmp_path / "model.npz", model)
    again = load_model(tmp_path / "model.npz")
    assert again.model_id == model.model_id and again.expression_names == model.expression_names and again.licence == model.licence
    e = np.random.default_rng(0).uniform(0, 0.3, (2, len(model.expression_names))).astype(np.float32)
    np.testing.assert_array_equal(again.vertices(np.ones(5), e), model.vertices(np.ones(5), e))


def test_restricted_pickles_keep_arrays_of_every_kind(tmp_path):
    from scipy.sparse import csc_matrix, csr_matrix

    rng = np.random.default_rng(0)
    sparse = (rng.random((5, 40)) < 0.2) * rng.normal(size=(5, 40))
    value = {"f": np.arange(12, dtype=np.uint32).reshape(4, 3), "x": np.asfortranarray(rng.normal(size=(3, 4, 2))), "b": np.array([True, False]),
             "s": np.array(["ab", "c"]), "n": np.float64(2.5), "o": np.array([{"k": 1}, None], object), "big": rng.normal(size=3).astype(">f4"),
             "list": [1, (2, "three")], "csc": csc_matrix(sparse), "csr": csr_matrix(sparse), "bytes": b"\x00\xff", "empty": np.zeros((0, 3))}
    for protocol in (0, 2, 4, 5):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        found = read_pickle(tmp_path / "x.pkl")
        for key in ("f", "x", "b", "s", "big", "empty"):
            np.testing.assert_array_equal(found[key], value[key])
            assert found[key].dtype == value[key].dtype.newbyteorder("=")
        np.testing.assert_array_equal(found["csc"], sparse)
        np.testing.assert_array_equal(found["csr"], sparse)
        assert found["n"] == 2.5 and found["o"][0] == {"k": 1} and found["list"] == [1, (2, "three")] and found["bytes"] == b"\x00\xff"
    for protocol in (0, 2):
        (tmp_path / "y.pkl").write_bytes(foreign.dumps_like_python2({"shapedirs": foreign.Chumpy(value["x"])}, protocol))
        np.testing.assert_array_equal(read_pickle(tmp_path / "y.pkl")["shapedirs"], value["x"])
    np.save(tmp_path / "d.npy", value, allow_pickle=True)
    np.testing.assert_array_equal(read_npy(tmp_path / "d.npy")["x"], value["x"])
    np.savez(tmp_path / "d.npz", a=value["x"], names=np.array(["p", "q"], object))
    assert list(read_npz(tmp_path / "d.npz")["names"]) == ["p", "q"]


class Touch:
    """Makes a file when it is unpickled by anything that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hostile_pickles(marker: Path) -> dict[str, bytes]:
    """Programs that must not run, and sizes that must not be believed."""
    array = pickle.dumps(np.arange(4.0), 2)
    return {
        "os.system": pickle.dumps({"v_template": Touch(marker)}), "eval": b"cbuiltins\neval\n(S'open(\"" + str(marker).encode() + b"\",\"w\")'\ntR.",
        "attribute of numpy": b"cnumpy\nsave\n(S'" + str(marker).encode() + b"'\nI1\ntR.", "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0bos.path.abc\x93.",
        "instance": b"(S'x'\niposix\nsystem\n.", "reconstruct a list": b"ccopy_reg\n_reconstructor\n(c__builtin__\nlist\nc__builtin__\nobject\nNtR.",
        "call a result": b"cnumpy\nndarray\n(tR(tR.", "spoil a class": b"cnumpy\nndarray\n(N(dS'__setstate__'\nI1\nstb.", "persistent": b"Phello\n.",
        "extension": b"\x82\x01.", "huge memo": b"I1\nr\xff\xff\xff\x7f", "huge bytes": b"\x8e" + struct.pack("<Q", 2**60) + b"x.",
        "huge shape": array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), "cut": array[:-20], "nothing": b"", "no pickle": b"hello there",
        "loop": b"(lp0\ng0\na.", "deep": b"(" * 500 + b"l" * 500 + b".",
        "bad sparse": pickle.dumps(_sparse_with(indices=[99, 0, 0]), 2), "object array of the wrong size": pickle.dumps(np.array([None, 1], object), 2).replace(b"K\x02\x85", b"K\x7f\x85")}


def _sparse_with(indices):
    from scipy.sparse import csc_matrix

    out = csc_matrix(np.eye(3))
    out.indices = np.array(indices, np.int32)
    return out


HOSTILE = list(hostile_pickles(Path("/nowhere")))


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_run_nothing(kind, tmp_path, capfd):
    marker = tmp_path / "touched"
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(hostile_pickles(marker)[kind])
    before = dict(os.environ)
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 400
    code, _, err = run("model", "info", path, capfd=capfd)
    assert code == 2 and err.count("thnerf: ") == 1 and "Traceback" not in err
    assert not marker.exists() and dict(os.environ) == before
    (tmp_path / "x.npy").write_bytes(_npy_around(path.read_bytes()))
    with pytest.raises(InputError):
        read_npy(tmp_path / "x.npy")
    assert not marker.exists()


def _npy_around(data: bytes) -> bytes:
    """An .npy of one object, whose pickle is `data`."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def damaged(files: dict[str, Path], folder: Path) -> dict[str, tuple[Path, str]]:
    """Broken copies of each format, and a word that the message must say."""
    import shutil

    out = {}

    def copy(name: str, label: str) -> Path:
        target = folder / label
        shutil.copytree(files[name] if files[name].is_dir() else files[name].parent, target)
        return target / ("" if files[name].is_dir() else files[name].name)

    for name in files:
        if name == "ict":
            continue
        path = copy(name, f"{name} cut")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        out[f"{name} cut"] = path, path.name
        path = copy(name, f"{name} text")
        path.write_text("not a model\n")
        out[f"{name} text"] = path, path.name
    lonely = copy("bfm09", "bfm09 alone")
    (lonely.parent / "Exp_Pca.bin").unlink()
    out["bfm09 alone"] = lonely, "Exp_Pca.bin"
    odd = copy("bfm09", "bfm09 without index")
    (odd.parent / "BFM_exp_idx.mat").unlink()
    out["bfm09 without index"] = odd, "BFM_exp_idx.mat"
    bare = copy("ad_nerf", "ad_nerf alone")
    (bare.parent / "topology_info.npy").unlink()
    out["ad_nerf alone"] = bare, "topology_info.npy"
    gnm = copy("gnm", "gnm without landmarks")
    (gnm.parent / "head_sparse_68.txt").unlink()
    out["gnm without landmarks"] = gnm, "landmarks68.txt"
    flame = copy("flame", "flame without landmarks")
    (flame.parent / "landmark_embedding.npy").unlink()
    out["flame without landmarks"] = flame, "landmarks68.txt"
    ict = copy("ict", "ict short")
    (ict / "jawOpen.obj").write_text("v 0 0 0\n")
    out["ict short"] = ict, "jawOpen.obj"
    ict = copy("ict", "ict missing")
    (ict / "identity003.obj").write_text("v a b c\n")
    out["ict missing"] = ict, "identity003.obj"
    upside = copy("ict", "ict upside down")
    for path in upside.glob("*.obj"):
        path.write_text("\n".join(_flipped(line) for line in path.read_text().splitlines()))
    out["ict upside down"] = upside, "y up"
    empty = folder / "empty"
    empty.mkdir()
    out["empty folder"] = empty, "no face model"
    (folder / "x.xyz").write_text("?")
    out["unknown kind"] = folder / "x.xyz", "known kind"
    out["missing"] = folder / "nothing.pkl", "does not exist"
    (folder / "empty.pkl").touch()
    out["empty pickle"] = folder / "empty.pkl", "is empty"
    (folder / "half.pkl").write_bytes(pickle.dumps({"v_template": np.arange(900.0)}, 2)[:700])
    out["half a pickle"] = folder / "half.pkl", "is damaged: it ends too early"
    (folder / "half4.pkl").write_bytes(pickle.dumps({"v_template": np.arange(900.0)}, 4)[:700])
    out["half a framed pickle"] = folder / "half4.pkl", "is damaged: it ends too early"
    return out


def _flipped(line: str) -> str:
    if not line.startswith("v "):
        return line
    x, y, z = line[2:].split()
    return f"v {x} {-float(y)} {z}"


def test_damaged_files_end_in_one_sentence(files, tmp_path, capfd):
    for label, (path, word) in damaged(files, tmp_path).items():
        code, _, err = run("model", "info", path, capfd=capfd)
        assert code == 2, (label, err)
        assert err.count("thnerf: ") == 1 and "Traceback" not in err and word in err and len(err) < 500, (label, err)


def test_the_jaw_turns_exactly_and_the_chord_is_close(models):
    """Skinning against a slow reference with 4×4 matrices (Loper et al. 2015), correctives and expression-dependent joints included."""
    model = models["flame"]
    parts = foreign.flame_parts()
    rng = np.random.default_rng(3)
    shape, expression = rng.normal(size=300) * (np.arange(300) < 80), np.zeros(len(model.expression_names))
    expression[:40] = rng.uniform(0, 0.5, 40)
    angles = {"jawPitch": 0.3, "jawYaw": -0.05, "neckRoll": 0.2, "eyeLeftYaw": 0.15}
    for name, value in angles.items():
        expression[model.index(name)] = value
    betas = np.concatenate([shape, expression[:100]])
    rest = parts["v_template"] + parts["shapedirs"] @ betas
    joints = parts["J_regressor"] @ rest
    turn = np.repeat(np.eye(3)[None], 5, 0)
    for j, bone in enumerate(("root", "neck", "jaw", "eyeLeft", "eyeRight")):
        turn[j] = axis_angle_to_matrix(np.array([angles.get(bone + a, 0.0) for a in ("Pitch", "Yaw", "Roll")]))
    rest = rest + parts["posedirs"] @ (turn[1:] - np.eye(3)).ravel()
    chain = []
    for j, parent in enumerate([-1, 0, 1, 1, 1]):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = turn[j], joints[j] - (joints[parent] if parent >= 0 else 0)
        chain.append(chain[parent] @ local if parent >= 0 else local)
    blend = [c @ np.block([[np.eye(3), -joints[j][:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]) for j, c in enumerate(chain)]
    expected = np.einsum("vj,jab,vb->va", parts["weights"], np.stack(blend), np.c_[rest, np.ones(len(rest))])[:, :3] * 1000
    np.testing.assert_allclose(model.vertices(shape, expression), expected, atol=0.02)
    chin = lambda e: model.points(model.vertices(np.zeros(0), e), "ibug68")[..., 8, :]  # noqa: E731
    opened = np.zeros((3, len(expression)))
    opened[:, model.index("jawPitch")] = 0.0, 0.12, 0.25
    linear = dataclasses.replace(model, joints=None)
    assert chin(opened)[2, 1] < chin(opened)[0, 1] - 8, "a positive pitch opens the jaw"
    assert np.linalg.norm(chin(opened[1]) - linear.points(linear.vertices(np.zeros(0), opened[1]), "ibug68")[8]) < 1.0
    np.testing.assert_allclose(linear.vertices(np.zeros(0), opened[2]), model.vertices(np.zeros(0), opened[2]), atol=0.01)
    np.testing.assert_allclose(model.vertices(shape, np.stack([expression, 0 * expression]))[0], model.vertices(shape, expression), atol=1e-4)


def test_the_fit_leaves_neck_and_eyes_alone_and_finds_jaw_and_pose(models):
    """solve() on landmarks that the exact model made: pose, jaw and landmarks come back."""
    model, frames, rng = models["flame"], 40, np.random.default_rng(4)
    s = np.arange(frames) / 25
    expression = np.zeros((frames, len(model.expression_names)))
    expression[:, model.index("jawPitch")] = 0.13 + 0.13 * np.sin(2 * np.pi * 1.1 * s)
    expression[:, 10] = 0.4 + 0.4 * np.sin(2 * np.pi * 0.7 * s)
    shape = np.r_[rng.normal(size=20) * 0.8, np.zeros(280)]
    rotation = from_head_angles(np.stack([0.2 * np.sin(s * 2), 0.1 * np.sin(s * 3), 0.05 * np.cos(s)], 1))
    translation = np.stack([5 * np.sin(s), 4 * np.cos(s), np.full(frames, 640.0)], 1)
    world = model.points(model.vertices(shape, expression), "mediapipe478") @ np.swapaxes(axis_angle_to_matrix(rotation), -1, -2) + translation[:, None]
    camera = Camera.simple(640, 256, 256, frames)
    report: dict = {}
    found = solve(camera.project(world), np.ones(frames, bool), (0,), 25, 256, 256, model.without_response(), FitConfig(focal=640), report)
    assert found.model_id == model.model_id and found.expression_names == model.expression_names
    assert np.degrees(np.median(angle_between(found.rotation, rotation))) < 1.0
    assert report["landmark_error_iod"] < 0.008
    assert np.corrcoef(found.column("jawPitch"), expression[:, model.index("jawPitch")])[0, 1] > 0.97
    held = [i for i, n in enumerate(model.expression_names) if n.startswith(("neck", "eye"))]
    assert np.abs(found.expression[:, held]).max() == 0 and (found.column("jawPitch") <= 0.6).all()
    part, columns = fitted_part(model)
    assert part.joints is None and len(columns) == 103 and part.expression_names[-3:] == ("jawPitch", "jawYaw", "jawRoll")


def test_mediapipe_points_of_flame_are_taken_as_they_are(files, models):
    model, data = models["flame"], np.load(files["flame"].parent / "mediapipe_landmark_embedding.npz")
    mesh = foreign.flame_parts()
    expected = (mesh["v_template"][mesh["f"][data["lmk_face_idx"]]] * data["lmk_b_coords"][..., None]).sum(1) * 1000
    np.testing.assert_allclose(model.points(model.mean, "mediapipe478")[data["landmark_indices"]], expected, atol=1e-3)
    irises = model.points(model.mean, "mediapipe478")[468:]
    on_eyes = model.regions["eye_left"] | model.regions["eye_right"]
    assert on_eyes[model.faces[model.landmarks["mediapipe478"].faces[468:]]].all() and irises[:5, 0].max() < 0 < irises[5:, 0].min()


def test_static_and_dynamic_embeddings_of_flame(files, tmp_path):
    import shutil

    folder = tmp_path / "flame"
    shutil.copytree(files["flame"].parent, folder)
    both = np.load(folder / "landmark_embedding.npy", allow_pickle=True).item()
    reference = load_model(folder)
    (folder / "landmark_embedding.npy").unlink()
    static = {"lmk_face_idx": both["static_lmk_faces_idx"], "lmk_b_coords": both["static_lmk_bary_coords"]}
    (folder / "flame_static_embedding.pkl").write_bytes(pickle.dumps(static, 2))
    inner = load_model(folder)  # 51 points; the jaw line comes from the default model
    points = lambda m: m.points(m.mean, "ibug68")  # noqa: E731
    np.testing.assert_allclose(points(inner)[17:], points(reference)[17:], atol=0.05)
    assert np.linalg.norm(points(inner)[:17] - points(reference)[:17], axis=1).max() < 6
    np.save(folder / "flame_dynamic_embedding.npy", {"lmk_face_idx": both["dynamic_lmk_faces_idx"], "lmk_b_coords": both["dynamic_lmk_bary_coords"]}, allow_pickle=True)
    np.testing.assert_allclose(points(load_model(folder)), points(reference), atol=1e-3)


def test_a_torch_tensor_in_an_embedding_is_passed_over(files, tmp_path):
    torch = pytest.importorskip("torch")
    import shutil

    folder = tmp_path / "flame"
    shutil.copytree(files["flame"].parent, folder)
    both = np.load(folder / "landmark_embedding.npy", allow_pickle=True).item()
    both["dynamic_lmk_faces_idx"] = torch.zeros(79, 17).long()
    np.save(folder / "landmark_embedding.npy", both, allow_pickle=True)
    assert len(load_model(folder).landmarks["ibug68"].faces) == 68


def test_a_landmark_file_can_be_given(files, tmp_path, capfd):
    import shutil

    folder = tmp_path / "gnm"
    shutil.copytree(files["gnm"].parent, folder)
    (folder / "head_sparse_68.txt").unlink()
    head = foreign.Head()
    (tmp_path / "points.txt").write_text("# mine\n" + "\n".join(str(v) for v in head.landmarks))
    code, out, _ = run("model", "convert", folder, "-o", tmp_path / "gnm.npz", "--landmarks", tmp_path / "points.txt", "--json", capfd=capfd)
    assert code == 0 and '"shapes": 80' in out
    assert np.allclose(load_model(tmp_path / "gnm.npz").points(load_model(files["gnm"]).mean, "ibug68"), head.mean[head.landmarks], atol=0.01)
    (tmp_path / "points.txt").write_text("\n".join("99999" for _ in range(68)))
    code, _, err = run("model", "info", folder, "--landmarks", tmp_path / "points.txt", capfd=capfd)
    assert code == 2 and "landmark" in err
    code, _, err = run("model", "info", "default", "--landmarks", tmp_path / "points.txt", capfd=capfd)
    assert code == 2 and "brings its own" in err


def test_model_info_says_what_there_is(capfd, tmp_path):
    code, out, _ = run("model", "info", "default", capfd=capfd)
    assert code == 0 and "5,511 vertices" in out and "mediapipe478 (478)" in out and "CC0" in out
    code, _, err = run("model", "convert", "default", capfd=capfd)
    assert code == 2 and "-o model.npz" in err
    code, _, err = run("model", "convert", "default", "-o", tmp_path / "x.obj", capfd=capfd)
    assert code == 2 and ".npz" in err


def test_h5_without_landmarks_asks_for_them(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed (pip install 'thnerf[models]')")
    with pytest.raises(InputError, match="landmarks68.txt"):
        load_foreign(foreign.write_bfm_h5(tmp_path / "model2017.h5", landmarks=False))


def test_names_and_units():
    assert [arkit_name(n) for n in ("mouthSmile_L", "browInnerUp_R", "jawOpen", "jawLeft")] == ["mouthSmileLeft", "browInnerUp", "jawOpen", "jawLeft"]
    for unit in (1e-3, 1.0, 10.0, 100.0, 1000.0):
        assert millimetres(load_model().mean / unit) == pytest.approx(unit)
    assert sorted(_MIRROR) == list(range(68)) and all(_MIRROR[_MIRROR[i]] == i for i in range(68))
    mirrored = ibug68(load_model().points(load_model().mean, "mediapipe478") * [-1, 1, 1])[_MIRROR]
    assert np.abs(mirrored - ibug68(load_model().points(load_model().mean, "mediapipe478"))).max() < 6


def test_closest_points_equal_a_dense_search():
    rng, default = np.random.default_rng(5), load_model()
    skin = default.faces[default.regions["skin"][default.faces].all(1)]
    at = default.mean[skin[rng.integers(len(skin), size=25)]].mean(1) + rng.normal(size=(25, 3))
    found, distance = closest_points(at, default.mean, skin)
    centres, spread = default.mean[skin].mean(1), rng.dirichlet(np.ones(3) * 0.7, 3000)
    for point, gap in zip(at, distance):
        around = skin[np.linalg.norm(centres - point, axis=1).argsort()[:40]]
        brute = np.linalg.norm(np.einsum("sk,fkc->fsc", spread, default.mean[around]) - point, axis=-1).min()
        assert gap - 1e-6 <= brute <= np.hypot(gap, 0.4)  # large triangles' samples lie 0.2 mm apart
    np.testing.assert_allclose(np.linalg.norm((default.mean[skin[found.faces]] * found.barycentric[..., None]).sum(1) - at, axis=1), distance, atol=1e-3)


def test_similarity_and_warp_are_exact_on_similarities():
    rng = np.random.default_rng(6)
    points, R = rng.normal(size=(30, 3)) * 50, axis_angle_to_matrix(np.array([0.3, -0.8, 0.2]))
    moved = 1.7 * points @ R.T + [3, -4, 5]
    scale, found, t = similarity(points, moved, rng.random(30))
    assert scale == pytest.approx(1.7) and np.allclose(found, R) and np.allclose(t, [3, -4, 5])
    other = rng.normal(size=(9, 3)) * 70
    np.testing.assert_allclose(warp(points, moved)(other), 1.7 * other @ R.T + [3, -4, 5], atol=1e-6)
    mirrored = points * [-1, 1, 1]
    assert np.linalg.det(similarity(points, mirrored)[1]) == pytest.approx(1)


def test_a_subject_track_of_a_converted_model_keeps_its_id(models, tmp_path):
    """What fit stores by model_id still matches after conversion."""
    save_model(tmp_path / "m.npz", models["ad_nerf"])
    track = Track(25, models["ad_nerf"].model_id, Camera.simple(600, 64, 64, 1), np.zeros(80), np.zeros((1, 52)), np.zeros((1, 3)), np.zeros((1, 3)),
                  np.zeros((1, 2, 2)), np.zeros((1, 0)), np.ones(1, bool), models["ad_nerf"].expression_names)
    assert track.model_id == load_model(tmp_path / "m.npz").model_id


def test_the_detectors_response_goes_along(files, monkeypatch, tmp_path):
    """Pose and constant part for every model, expression part by name; a fit's part of the model keeps its own rows."""
    from recon.formats import common
    from recon.response import Response

    rng, default = np.random.default_rng(7), load_model()
    response = Response(rng.normal(size=(478, 3)), rng.normal(size=(2, 478, 3)), rng.normal(size=(5, 478, 3)), rng.normal(size=(52, 478, 3)))
    measured = dataclasses.replace(default, landmarks={**default.landmarks, "mediapipe478": dataclasses.replace(default.landmarks["mediapipe478"], response=response)})
    monkeypatch.setattr(common, "load_model", lambda: measured)
    ict, flame = load_model(files["ict"]), load_model(files["flame"])
    found = ict.landmarks["mediapipe478"].response
    np.testing.assert_allclose(found.expression[ict.index("jawOpen")], response.expression[default.index("jawOpen")], rtol=1e-6)
    part, columns = fitted_part(flame)
    moved = part.landmarks["mediapipe478"].response
    assert moved.expression.shape == (len(columns), 478, 3) and not moved.expression.any() and len(moved.shape) == 0
    np.testing.assert_array_equal(moved.angles, response.angles)
    save_model(tmp_path / "ict.npz", ict)
    np.testing.assert_allclose(load_model(tmp_path / "ict.npz").landmarks["mediapipe478"].response.offset, response.offset, atol=5e-3)
