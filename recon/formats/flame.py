"""FLAME 2020 and 2023 (Li et al. 2017), as its publisher's pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recon.formats.common import assemble, landmarks_beside
from recon.formats.pickles import read_npy, read_npz, read_pickle
from recon.joints import Joints, angle_names
from recon.model import Embedding, MorphableModel
from render.files import InputError

SHAPES = 300  # of the columns of shapedirs; expressions follow
JOINTS = ("root", "neck", "jaw", "eyeLeft", "eyeRight")
NEEDED = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
LIMITS = {"jawPitch": (-0.05, 0.6), "jawYaw": (-0.1, 0.1), "jawRoll": (-0.05, 0.05)}  # rad; other angles are left to pose and gaze
LICENCE = "FLAME: the Max Planck Society's licence, non-commercial research only, except 'FLAME 2023 Open' (CC BY 4.0); not shipped with thnerf"
STATIC = ("landmark_embedding.npy", "landmark_embedding_with_eyes.npy", "flame_static_embedding_68.npz", "flame_static_embedding_68_v4.npz",
          "flame_static_embedding.pkl")
DYNAMIC = ("flame_dynamic_embedding.npy",)
MEDIAPIPE = ("mediapipe_landmark_embedding.npz",)
FOLDERS = ("", "landmarks", "mediapipe_landmark_embedding", "embedding")


def load_flame(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """FLAME from its pickle: 300 shapes, the expressions `expression000` …, and angles of neck, jaw and eyes (rad) that pose it exactly.

    Landmark embeddings are taken from beside it: landmark_embedding.npy (DECA's), flame_static_embedding.pkl with
    flame_dynamic_embedding.npy (its frontal row), mediapipe_landmark_embedding.npz (105 points; the rest come from the default model).
    Raises InputError when the file is hostile, damaged or lacks a part, and when there is no embedding.
    """
    data = read_pickle(source)
    missing = [name for name in NEEDED if not isinstance(data, dict) or name not in data]
    if missing:
        raise InputError(f"{source} is no FLAME model: it lacks {', '.join(missing)}; give generic_model.pkl or flame2023.pkl")
    array = lambda name: np.asarray(data[name], np.float64)  # noqa: E731
    mean, directions, posed = array("v_template"), array("shapedirs"), array("posedirs")
    V, J = len(mean), len(JOINTS)
    regressor, weights, faces = array("J_regressor"), array("weights"), np.asarray(data["f"], np.int64)
    parents = np.asarray(data["kintree_table"], np.int64)[0]
    if directions.shape[:2] != (V, 3) or directions.shape[2] <= SHAPES or posed.shape != (V, 3, 9 * (J - 1)) or regressor.shape != (J, V) \
            or weights.shape != (V, J) or len(parents) != J:
        raise InputError(f"{source} is no FLAME model: its arrays have other sizes (shapedirs {directions.shape}, posedirs {posed.shape}); "
                         f"give generic_model.pkl or flame2023.pkl")
    parents[0] = -1
    modes = np.moveaxis(directions, 2, 0)
    angles = angle_names(JOINTS[1:])
    count = len(modes) - SHAPES
    names = tuple(f"expression{i:03d}" for i in range(count)) + angles
    motion = np.einsum("jv,nvk->njk", regressor, modes, optimize=True)
    correctives = np.concatenate([np.zeros((1, 9, V, 3)), np.moveaxis(posed, 2, 0).reshape(J - 1, 9, V, 3)])
    joints = Joints(
        names=JOINTS, parents=parents, weights=weights, positions=regressor @ mean, shape_motion=motion[:SHAPES],
        expression_motion=np.concatenate([motion[SHAPES:], np.zeros((len(angles), J, 3))]), columns=np.arange(count, len(names)),
        joint=np.repeat(np.arange(1, J), 3), axis=np.tile(np.arange(3), J - 1), correctives=correctives if correctives.any() else correctives[:0])
    bounds = np.array([LIMITS.get(n, (0.0, 0.0) if n in angles else (-3.0, 3.0)) for n in names], np.float32)
    eyes, centres = _eyes(joints)
    ibug, exact = _ibug(source, landmarks, mean, faces)
    return assemble(
        "flame", source, LICENCE, mean, modes[:SHAPES], np.concatenate([modes[SHAPES:], np.zeros((len(angles), V, 3))]), faces, names, ibug,
        eyes=eyes, eye_centres=centres, joints=joints, bounds=bounds, embeddings={"ibug68": exact} if exact else None,
        mediapipe=_mediapipe(source, landmarks))


def _eyes(joints: Joints) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Vertices of the eyeballs by side and their centres [left, right], where both have vertices."""
    found = sorted(((joints.positions[j, 0], joints.weights[:, j] > 0.5, joints.positions[j]) for j in (3, 4)), key=lambda x: -x[0])
    if not all(mask.any() for _, mask, _ in found):
        return {}, None
    return {"left": found[0][1], "right": found[1][1]}, np.stack([found[0][2], found[1][2]])


def _beside(source: Path, names: tuple[str, ...], given: Path | None) -> Path | None:
    if given is not None:
        return given if given.name in names or given.suffix in {Path(n).suffix for n in names} else None
    return next((source.parent / folder / name for name in names for folder in FOLDERS if (source.parent / folder / name).is_file()), None)


def _content(path: Path) -> dict[str, Any]:
    data = {".npy": read_npy, ".npz": read_npz}.get(path.suffix.lower(), read_pickle)(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} is no landmark embedding of FLAME; it needs faces and barycentric coordinates by name")
    return data


def _points(path: Path, faces: Any, barycentric: Any, frontal: bool = False) -> Embedding | None:
    """An embedding from its two arrays, None when they are no arrays. frontal: the first row of a table over yaw angles."""
    if not isinstance(faces, np.ndarray) or not isinstance(barycentric, np.ndarray):
        return None
    faces, barycentric = (faces[0], barycentric[0]) if frontal or faces.ndim == 2 else (faces, barycentric)
    if faces.ndim != 1 or barycentric.shape != (len(faces), 3):
        raise InputError(f"{path} is a damaged landmark embedding: {faces.shape} faces and {barycentric.shape} coordinates; get it again")
    return Embedding(faces.astype(np.int64), barycentric.astype(np.float32))


def _ibug(source: Path, given: Path | None, mean: np.ndarray, faces: np.ndarray) -> tuple[dict[int, np.ndarray] | None, Embedding | None]:
    """iBUG points by number, and all 68 as an embedding when the files hold them."""
    if (path := _beside(source, STATIC, given)) is None or (given and given.suffix == ".txt"):
        return landmarks_beside(source, given if given and given.suffix == ".txt" else None, mean), None
    data = _content(path)
    found = None
    for f, b in (("full_lmk_faces_idx", "full_lmk_bary_coords"), ("lmk_face_idx", "lmk_b_coords"), ("static_lmk_faces_idx", "static_lmk_bary_coords")):
        if f in data and (found := _points(path, data[f], data.get(b))) is not None:
            break
    if found is None or len(found.faces) not in (51, 68, 70):
        raise InputError(f"{path} holds no 51 or 68 landmarks of FLAME; give landmark_embedding.npy or flame_static_embedding.pkl")
    found = Embedding(found.faces[:68], found.barycentric[:68])
    if len(found.faces) == 51 and (contour := _beside(source, DYNAMIC, None)) is not None:
        data = _content(contour)
        jaw = _points(contour, data.get("lmk_face_idx"), data.get("lmk_b_coords"), frontal=True)
        if jaw is not None and len(jaw.faces) == 17:
            found = Embedding(np.concatenate([jaw.faces, found.faces]), np.concatenate([jaw.barycentric, found.barycentric]))
    if found.faces.min() < 0 or found.faces.max() >= len(faces):
        raise InputError(f"{path} belongs to another mesh than {source.name}; give the embedding of this model")
    first = 68 - len(found.faces)
    points = (mean[faces[found.faces]] * found.barycentric[..., None]).sum(1)
    return {first + i: p for i, p in enumerate(points)}, found if first == 0 else None


def _mediapipe(source: Path, given: Path | None) -> dict[int, Embedding] | None:
    """The points of mediapipe_landmark_embedding.npz by their number among the 478."""
    if (path := _beside(source, MEDIAPIPE, given if given and given.name in MEDIAPIPE else None)) is None:
        return None
    data = _content(path)
    found = _points(path, data.get("lmk_face_idx"), data.get("lmk_b_coords"))
    numbers = np.asarray(data.get("landmark_indices", ()))
    if found is None or numbers.shape != found.faces.shape or numbers.min() < 0 or numbers.max() > 477:
        raise InputError(f"{path} is no MediaPipe embedding of FLAME; it needs lmk_face_idx, lmk_b_coords and landmark_indices")
    return {int(n): Embedding(found.faces[i : i + 1], found.barycentric[i : i + 1]) for i, n in enumerate(numbers)}
