"""Face models in other projects' formats, made from the default head: no licensed file is needed to test the loaders."""

import json
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np

from recon.model import MorphableModel, load_model
from recon.surface import closest_points


class Head:
    """The default head cut to `vertices` vertices (neck and tongue go first), in other units, as plain arrays with 68 vertices as landmarks.

    mean (V,3), shapes (S,V,3), motions (52,V,3), names (52,), faces (F,3), landmarks (68,) vertex indices.
    """

    def __init__(self, unit: float = 1.0, vertices: int | None = None, order: np.random.Generator | None = None) -> None:
        default = load_model()
        kept = np.arange(len(default.mean))
        if vertices is not None:
            spare = default.regions["neck"] * 2 + default.regions["tongue"]
            kept = np.sort(np.argsort(-spare.astype(int), kind="stable")[len(default.mean) - vertices :])
        if order is not None:
            kept = order.permutation(kept)
        where = np.full(len(default.mean), -1)
        where[kept] = np.arange(len(kept))
        faces = where[default.faces]
        self.faces, self.names, self.kept = faces[(faces >= 0).all(1)], default.expression_names, kept
        self.mean = default.mean[kept].astype(np.float64) / unit
        self.shapes, self.motions = default.shape_basis[:, kept] / np.float32(unit), default.expression_basis[:, kept] / np.float32(unit)
        self.regions = {n: m[kept] for n, m in default.regions.items()}
        self.unit = unit
        points = default.points(default.mean, "ibug68")
        skin = np.flatnonzero(self.regions["skin"] & ~self.regions["mouth_inside"])
        self.landmarks = skin[np.linalg.norm(self.mean[skin][None] * unit - points[:, None], axis=-1).argmin(1)]


def columns(basis: np.ndarray) -> np.ndarray:
    """(N,V,3) → (3V,N)."""
    return np.asarray(basis).reshape(len(basis), -1).T


def flame_parts(vertices: int | None = 5023, expressions: int = 100) -> dict:
    """The arrays of a FLAME file, in metres: 300 shapes, `expressions` expressions, a jaw that turns."""
    head = Head(1000.0, vertices)
    V, default = len(head.mean), load_model()
    modes = np.zeros((V, 3, 300 + expressions))
    modes[..., :80] = np.moveaxis(head.shapes, 0, -1)
    kept = [i for i, n in enumerate(head.names) if not n.startswith(("jaw", "eyeLook", "tongue"))][:expressions]
    modes[..., 300 : 300 + len(kept)] = np.moveaxis(head.motions[kept], 0, -1)
    follow = np.linalg.norm(default.expression_basis[default.index("jawOpen")], axis=-1)[head.kept]
    weights = np.zeros((V, 5))
    weights[:, 2] = np.clip(follow / np.percentile(follow, 99), 0, 1)
    for j, side in ((3, "left"), (4, "right")):
        weights[head.regions[f"eye_{side}"]] = 0
        weights[head.regions[f"eye_{side}"], j] = 1
    weights[:, 1] = 1 - weights.sum(1)
    places = np.array([[0, -0.13, -0.02], [0, -0.08, -0.02], [0, 0.0, 0.01], [0.0284, 0.0219, 0.0599], [-0.0284, 0.0219, 0.0599]])
    near = np.linalg.norm(head.mean[None] - places[:, None], axis=-1).argsort(1)[:, :40]
    regressor = np.zeros((5, V))
    for j, ring in enumerate(near):  # weights of 40 vertices that average to the place
        A = np.concatenate([head.mean[ring].T, np.ones((1, 40))])
        regressor[j, ring] = np.linalg.lstsq(A, np.append(places[j], 1), rcond=None)[0]
    rng = np.random.default_rng(0)
    return {"f": head.faces.astype(np.uint32), "v_template": head.mean, "shapedirs": modes, "weights": weights, "bs_style": "lbs", "bs_type": "lrotmin",
            "posedirs": rng.normal(size=(V, 3, 36)) * 1e-4, "J_regressor": regressor, "J": regressor @ head.mean,
            "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32)}


class Chumpy:
    """Pickles as chumpy.ch.Ch does: a new-style object whose state holds 'x'."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self._dirty_vars = "set()"


def dumps_like_python2(value: dict, protocol: int = 2) -> bytes:
    """A pickle with the module names of numpy 1 and of chumpy, none of which need exist here."""
    module = types.ModuleType("chumpy.ch")
    module.Ch = Chumpy
    Chumpy.__module__, Chumpy.__qualname__, Chumpy.__name__ = "chumpy.ch", "Ch", "Ch"
    sys.modules.update({"chumpy": types.ModuleType("chumpy"), "chumpy.ch": module})
    try:
        data = pickle.dumps(value, protocol=protocol)
    finally:
        del sys.modules["chumpy.ch"], sys.modules["chumpy"]
    return data.replace(b"cnumpy._core.", b"cnumpy.core.")


def write_flame(folder: Path, parts: dict | None = None, chumpy: bool = True) -> Path:
    """generic_model.pkl with DECA's landmark_embedding.npy and mediapipe_landmark_embedding.npz beside it."""
    from scipy.sparse import csc_matrix

    parts = flame_parts() if parts is None else parts
    stored = {**parts, "J_regressor": csc_matrix(parts["J_regressor"])}
    if chumpy:
        stored["shapedirs"] = Chumpy(parts["shapedirs"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generic_model.pkl").write_bytes(dumps_like_python2(stored))
    default, unit = load_model(), 1000.0
    full, _ = closest_points(default.points(default.mean, "ibug68") / unit, parts["v_template"], parts["f"])
    np.save(folder / "landmark_embedding.npy", {
        "full_lmk_faces_idx": full.faces[None], "full_lmk_bary_coords": full.barycentric[None].astype(np.float64),
        "static_lmk_faces_idx": full.faces[17:], "static_lmk_bary_coords": full.barycentric[17:],
        "dynamic_lmk_faces_idx": np.repeat(full.faces[None, :17], 79, 0), "dynamic_lmk_bary_coords": np.repeat(full.barycentric[None, :17], 79, 0)},
        allow_pickle=True)
    numbers = np.r_[33:138]  # 105 points
    dense, _ = closest_points(default.points(default.mean, "mediapipe478")[numbers] / unit, parts["v_template"], parts["f"])
    np.savez(folder / "mediapipe_landmark_embedding.npz", lmk_face_idx=dense.faces, lmk_b_coords=dense.barycentric, landmark_indices=numbers)
    return folder / "generic_model.pkl"


def write_deep3d(folder: Path) -> Path:
    """BFM_model_front.mat: decimetres, 1-based indices."""
    from scipy.io import savemat

    head = Head(100.0)
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "BFM_model_front.mat", {
        "meanshape": head.mean.reshape(1, -1).astype(np.float32), "idBase": columns(head.shapes), "exBase": columns(head.motions).astype(np.float64),
        "meantex": np.zeros((1, head.mean.size), np.float32), "texBase": np.zeros((head.mean.size, 2), np.float32), "tri": head.faces + 1,
        "point_buf": np.ones((len(head.mean), 8)), "tri_mask2": head.faces[:9] + 1, "keypoints": head.landmarks[None] + 1,
        "frontmask2_idx": np.ones((9, 1)), "skinmask": np.ones((1, len(head.mean)))})
    return folder / "BFM_model_front.mat"


def write_bfm09(folder: Path) -> Path:
    """01_MorphableModel.mat with all companions: micrometres; 120 vertices have no expressions; keypoints by way of the front model."""
    from scipy.io import savemat

    head, rng = Head(1e-3), np.random.default_rng(1)
    V, spread = len(head.mean), rng.uniform(0.5, 2.0, len(head.motions))
    lost = head.mean[:, 1].argsort()[:120]
    kept = np.setdiff1d(np.arange(V), lost)
    deviation = np.linalg.norm(columns(head.shapes), axis=0)
    folder.mkdir(parents=True, exist_ok=True)
    middle = rng.normal(size=(len(kept), 3)) * 50
    mean = head.mean.copy()
    mean[kept] -= middle
    savemat(folder / "01_MorphableModel.mat", {
        "shapeMU": mean.reshape(-1, 1).astype(np.float32), "shapePC": (columns(head.shapes) / deviation).astype(np.float32), "shapeEV": deviation[:, None],
        "texMU": np.zeros((3 * V, 1), np.float32), "texPC": np.zeros((3 * V, 2), np.float32), "texEV": np.ones((2, 1)), "tl": head.faces[:, ::-1] + 1, "segbin": np.zeros((V, 4))})
    pieces = [struct.pack("<i", len(spread)), middle.astype("<f4").tobytes(), (head.motions[:, kept] / spread[:, None, None]).astype("<f4").tobytes()]
    (folder / "Exp_Pca.bin").write_bytes(b"".join(pieces))
    np.savetxt(folder / "std_exp.txt", spread[None])
    savemat(folder / "BFM_exp_idx.mat", {"trimIndex": kept[:, None] + 1})
    front = rng.permutation(len(kept))
    where = np.empty(len(kept), int)
    where[front] = np.arange(len(kept))
    position = {v: i for i, v in enumerate(kept)}
    savemat(folder / "BFM_front_idx.mat", {"idx": front[:, None] + 1})
    savemat(folder / "facemodel_info.mat", {"keypoints": where[[position[v] for v in head.landmarks]][None] + 1})
    return folder / "01_MorphableModel.mat"


def write_ad_nerf(folder: Path) -> Path:
    """3DMM_info.npy, keys_info.npy, topology_info.npy: micrometres, pickled dicts."""
    head = Head(1e-3)
    folder.mkdir(parents=True, exist_ok=True)
    ones, V = (lambda n: np.full(n, 2.0)), len(head.mean)
    rows = lambda basis: (basis / 2).reshape(len(basis), -1)  # noqa: E731
    np.save(folder / "3DMM_info.npy", {
        "mu_shape": head.mean.ravel() - 7, "b_shape": rows(head.shapes), "sig_shape": ones(len(head.shapes)), "mu_exp": np.full(3 * V, 7.0),
        "b_exp": rows(head.motions), "sig_exp": ones(len(head.motions)), "mu_tex": np.zeros(3 * V), "b_tex": np.zeros((2, 3 * V)), "sig_tex": ones(2)}, allow_pickle=True)
    np.save(folder / "keys_info.npy", {"keyinds": head.landmarks, "left_contour": np.zeros((8, 9), int), "right_contour": np.zeros((8, 9), int),
                                       "rigid_ids": np.arange(5)}, allow_pickle=True)
    np.save(folder / "topology_info.npy", {"sub_inds": np.arange(V), "tris": head.faces, "vert_tris": np.zeros((V, 8), int)}, allow_pickle=True)
    return folder / "3DMM_info.npy"


def write_bfm_h5(path: Path, landmarks: bool = True) -> Path:
    """A Statismo file of BFM 2019: mm, orthonormal components beside variances, landmarks by name in a JSON text."""
    import h5py

    from recon.formats.bfm import NAMED

    head = Head()
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for group, mean, basis in (("shape", head.mean - 0.5, head.shapes), ("expression", np.full_like(head.mean, 0.5), head.motions)):
            length = np.linalg.norm(columns(basis), axis=0)
            file[f"{group}/model/mean"] = mean.ravel().astype(np.float32)
            file[f"{group}/model/pcaBasis"] = (columns(basis) / np.maximum(length, 1e-9)).astype(np.float32)
            file[f"{group}/model/pcaVariance"] = length**2
            file[f"{group}/model/noiseVariance"] = np.zeros(1)
            file[f"{group}/representer/cells"] = head.faces.T.astype(np.int32)
            file[f"{group}/representer/points"] = head.mean.T
        names = {number: name for name, number in NAMED.items()}
        items = [{"id": names[n], "coordinates": (head.mean[head.landmarks[n]] - 0.5).tolist()} for n in names] + [{"id": "left.ear.top", "coordinates": [70, 10, 0]}]
        if landmarks:
            file["metadata/landmarks/json"] = json.dumps(items)
    return path


def write_ict(folder: Path, identities: int = 12) -> Path:
    """A FaceXModel folder: centimetres, ICT's names, quads among the triangles."""
    head = Head(10.0)
    folder.mkdir(parents=True, exist_ok=True)
    text = lambda v: "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in v)  # noqa: E731
    quads = "".join(f"f {a + 1}/1/1 {b + 1}/1/1 {c + 1}/1/1\n" for a, b, c in head.faces)
    (folder / "generic_neutral_mesh.obj").write_text("# neutral\n" + text(head.mean) + "vt 0 0\n" + quads)
    for i in range(identities):
        (folder / f"identity{i:03d}.obj").write_text(text(head.mean + head.shapes[i]))
    names = []
    for name, motion in zip(head.names, head.motions):
        if name in ("tongueOut",):
            continue
        if name in ("browInnerUp", "cheekPuff"):
            for side, half in (("L", head.mean[:, :1] >= 0), ("R", head.mean[:, :1] < 0)):
                names.append(f"{name}_{side}")
                (folder / f"{names[-1]}.obj").write_text(text(head.mean + motion * half))
            continue
        sided = name.endswith(("Left", "Right")) and name not in ("jawLeft", "jawRight", "mouthLeft", "mouthRight")
        names.append(name.removesuffix("Left").removesuffix("Right") + ("_L" if name.endswith("Left") else "_R") if sided else name)
        (folder / f"{names[-1]}.obj").write_text(text(head.mean + motion))
    (folder / "vertex_indices.json").write_text(json.dumps({"expressions": names, "idx_to_landmark_verts": head.landmarks.tolist()}))
    return folder


def write_gnm(folder: Path) -> Path:
    """gnm_head.npz (metres) and head_sparse_68.txt (mirrored order, as published)."""
    from recon.formats.common import _MIRROR

    head, parts = Head(1000.0), flame_parts(None)
    V = len(head.mean)
    weights = np.stack([0.2 * (1 - parts["weights"][:, 3:].sum(1)), 0.8 * (1 - parts["weights"][:, 3:].sum(1)), parts["weights"][:, 3], parts["weights"][:, 4]])
    regressor = parts["J_regressor"][[0, 1, 3, 4]]
    groups = np.stack([head.regions["skin"], head.regions["eye_left"] | head.regions["eye_right"]]).astype(np.float32)
    names = [f"left_eye_region_{i:03d}" for i in range(26)] + [f"lower_face_region_{i:03d}" for i in range(25)] + ["pupils_000"]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "gnm_head.npz", version="3.0", variant="head", template_vertex_positions=head.mean, template_joint_positions=regressor @ head.mean,
             vertex_identity_basis=head.shapes, joint_identity_basis=np.einsum("jv,svk->sjk", regressor, head.shapes), expression_basis=head.motions,
             identity_names=np.array([f"head_{i:03d}" for i in range(len(head.shapes))]), joint_names=np.array(["neck", "head", "left_eye", "right_eye"], object),
             expression_names=np.array(names, object), joint_parent_indices=np.array([-1, 0, 1, 1]), skinning_weights=weights, quads=np.zeros((1, 4), int),
             triangles=head.faces, mesh_component_names=np.array(["skin"]), mirror_indices=np.arange(V), joint_regressor=regressor,
             pose_correctives_regressor=np.zeros((36, 3 * V), np.float32), vertex_groups=groups, vertex_group_names=np.array(["skin", "eyes"]))
    lines = "".join(f"{v} 1.0 {v} 0.0 {v} 0.0\n" for v in head.landmarks[_MIRROR])
    (folder / "head_sparse_68.txt").write_text(lines)
    return folder / "gnm_head.npz"


def small_model(seed: int = 3) -> MorphableModel:
    """The default model again, its vertices in another order, in another file's way: what a remeshed copy is."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        from recon.formats import load_foreign

        return load_foreign(write_ad_nerf(Path(folder)))
