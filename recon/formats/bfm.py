"""The Basel Face Model: 2009 (Paysan et al. 2009) with Guo et al.'s expressions in three packings, 2017 and 2019 (Gerig et al. 2018)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recon.formats.common import assemble, components, landmarks_beside
from recon.formats.pickles import read_npy
from recon.model import MorphableModel
from render.files import InputError

LICENCE = "Basel Face Model: the University of Basel's licence, non-commercial research only; not shipped with thnerf"
# Landmarks of the 2017 and 2019 files, by name, that iBUG has too.
NAMED = {"center.chin.tip": 8, "center.nose.tip": 30, "right.eye.corner_outer": 36, "right.eye.corner_inner": 39, "left.eye.corner_inner": 42,
         "left.eye.corner_outer": 45, "right.lips.corner": 48, "center.lips.upper.outer": 51, "left.lips.corner": 54,
         "center.lips.lower.outer": 57, "center.lips.upper.inner": 62, "center.lips.lower.inner": 66}


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"expression{i:03d}" for i in range(count))


def _mat(path: Path, *names: str) -> list[np.ndarray]:
    """Some variables of a MATLAB file. Raises InputError when the file is missing, damaged or lacks one."""
    from scipy.io import loadmat

    try:
        data = loadmat(path, variable_names=list(names))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; put it there") from None
    except NotImplementedError:
        raise InputError(f"{path} is a MATLAB 7.3 file; save it as version 7 (save -v7) or give the original") from None
    missing = [n for n in names if n not in data or not isinstance(data[n], np.ndarray) or data[n].dtype.hasobject]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; give the Basel Face Model's 01_MorphableModel.mat or Deep3D's BFM_model_front.mat")
    return [data[n] for n in names]


def _whole(indices: np.ndarray, limit: int, source: Path, what: str) -> np.ndarray:
    """1-based indices as 0-based ones, checked."""
    out = np.asarray(indices).ravel().astype(np.int64) - 1
    if not len(out) or out.min() < 0 or out.max() >= limit:
        raise InputError(f"{source}: {what} points outside its {limit} vertices; the files belong to different models")
    return out


def load_deep3d(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """Deep3D's BFM_model_front.mat (Deng et al. 2019): 80 shapes, 64 expressions in standard deviations, 35,709 vertices, 68 keypoints.

    Any other .mat goes to `load_bfm09` when it holds that model. Raises InputError when it holds neither.
    """
    from scipy.io import whosmat

    if "shapeMU" in {name for name, _, _ in whosmat(source)}:
        return load_bfm09(source, landmarks)
    mean, identity, expression, tri, keypoints = _mat(source, "meanshape", "idBase", "exBase", "tri", "keypoints")
    mean = mean.reshape(-1, 3)
    points = landmarks_beside(source, landmarks, mean) if landmarks else dict(enumerate(mean[_whole(keypoints, len(mean), source, "keypoints")]))
    faces = _whole(tri, len(mean), source, "tri").reshape(-1, 3)
    return assemble("bfm09-deep3d", source, LICENCE, mean, components(identity), components(expression), faces, _names(expression.shape[1]), points)


def load_bfm09(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """01_MorphableModel.mat with Exp_Pca.bin (Guo et al. 2018): 199 shapes, 79 expressions, 53,215 vertices.

    Beside it: Exp_Pca.bin, std_exp.txt (the expressions' standard deviations) and BFM_exp_idx.mat (which vertices they have), all as
    Deep3D lays them out; keypoints from facemodel_info.mat with BFM_front_idx.mat, or landmarks68.txt for the 53,215 vertices.
    Raises InputError naming what is missing.
    """
    mean, basis, deviations, tri = _mat(source, "shapeMU", "shapePC", "shapeEV", "tl")
    mean = mean.reshape(-1, 3)
    folder = source.parent
    for name in ("Exp_Pca.bin", "std_exp.txt"):
        if not (folder / name).is_file():
            raise InputError(f"{source} has no expressions of its own; put {name} beside it (docs/models.md says where it comes from)")
    kept = np.arange(len(mean))
    if (folder / "BFM_exp_idx.mat").is_file():
        kept = _whole(_mat(folder / "BFM_exp_idx.mat", "trimIndex")[0], len(mean), folder / "BFM_exp_idx.mat", "trimIndex")
    spread = np.loadtxt(folder / "std_exp.txt", ndmin=1).ravel()
    middle, expression = _expressions(folder / "Exp_Pca.bin", len(kept))
    if len(spread) != len(expression):
        raise InputError(f"{folder / 'std_exp.txt'} has {len(spread)} numbers for {len(expression)} expressions; the files belong to different models")
    where = np.full(len(mean), -1)
    where[kept] = np.arange(len(kept))
    faces = where[_whole(tri, len(mean), source, "tl")].reshape(-1, 3)
    mean = mean[kept] + middle
    points = landmarks_beside(source, landmarks, mean)
    if points is None and (folder / "facemodel_info.mat").is_file() and (folder / "BFM_front_idx.mat").is_file():
        front = _whole(_mat(folder / "BFM_front_idx.mat", "idx")[0], len(mean), folder / "BFM_front_idx.mat", "idx")
        keys = _whole(_mat(folder / "facemodel_info.mat", "keypoints")[0], len(front), folder / "facemodel_info.mat", "keypoints")
        points = dict(enumerate(mean[front[keys]]))
    return assemble("bfm09", source, LICENCE, mean, components(basis, deviations)[:, kept], expression * spread[:, None, None].astype(np.float32),
                    faces[(faces >= 0).all(1)], _names(len(expression)), points)


def _expressions(path: Path, vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Exp_Pca.bin: int32 count, float32 mean (3V), float32 components (count,3V) → (V,3), (count,V,3)."""
    data = np.fromfile(path, "<f4")
    count = int(data[:1].view("<i4")[0]) if len(data) else 0
    if not 0 < count <= 1000 or len(data) < 1 + 3 * vertices * (1 + count):
        raise InputError(f"{path} does not hold expressions of {vertices:,} vertices; put BFM_exp_idx.mat beside it, or get it again")
    middle, rest = data[1 : 1 + 3 * vertices], data[1 + 3 * vertices : 1 + 3 * vertices * (1 + count)]
    return middle.reshape(-1, 3), rest.reshape(count, -1, 3)


def load_ad_nerf(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """AD-NeRF's set: 3DMM_info.npy (its convert_BFM.py writes it), topology_info.npy and keys_info.npy beside it.

    Raises InputError naming what is missing.
    """
    info, topology = _dict(source, "mu_shape", "b_shape", "sig_shape", "mu_exp", "b_exp", "sig_exp"), _dict(source.parent / "topology_info.npy", "tris")
    array = lambda name: np.asarray(info[name], np.float32)  # noqa: E731
    mean = (array("mu_shape").ravel() + array("mu_exp").ravel()).reshape(-1, 3)
    if landmarks:
        points = landmarks_beside(source, landmarks, mean)
    else:
        keys = np.asarray(_dict(source.parent / "keys_info.npy", "keyinds")["keyinds"]).astype(np.int64)
        points = dict(enumerate(mean[_whole(keys + 1, len(mean), source.parent / "keys_info.npy", "keyinds")]))
    faces = _whole(np.asarray(topology["tris"]) + 1, len(mean), source.parent / "topology_info.npy", "tris").reshape(-1, 3)
    expression = components(array("b_exp").T, info["sig_exp"])
    return assemble("bfm09-adnerf", source, LICENCE, mean, components(array("b_shape").T, info["sig_shape"]), expression, faces, _names(len(expression)), points)


def _dict(path: Path, *names: str) -> dict[str, Any]:
    data = read_npy(path)
    missing = [n for n in names if not isinstance(data, dict) or n not in data]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; give AD-NeRF's 3DMM_info.npy with keys_info.npy and topology_info.npy beside it")
    return data


def load_bfm_h5(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """BFM 2017 or 2019, any of its meshes with expressions (Statismo's HDF5): 199 shapes, 100 expressions, landmarks inside.

    Raises InputError when h5py is not installed, or the file is damaged or lacks a part.
    """
    try:
        import h5py
    except ImportError:
        raise InputError("reading .h5 models needs h5py; install it with: pip install 'thnerf[models]'") from None
    try:
        with h5py.File(source, "r") as file:
            part = lambda group: (np.asarray(file[f"{group}/model/mean"], np.float32).ravel(), _scaled_basis(file[f"{group}/model"]))  # noqa: E731
            (mean, shape), (middle, expression) = part("shape"), part("expression")
            faces = np.asarray(file["shape/representer/cells"], np.int64)
            words = np.asarray(file["metadata/landmarks/json"][()]).tobytes().rstrip(b"\0") if "metadata/landmarks/json" in file else b"[]"
            if isinstance(file.get("metadata/landmarks/json"), h5py.Dataset) and h5py.check_string_dtype(file["metadata/landmarks/json"].dtype):
                words = file["metadata/landmarks/json"].asstr()[()].encode()
    except (OSError, KeyError) as error:
        raise InputError(f"{source} is no Basel Face Model of 2017 or 2019 with expressions ({str(error)[:100]}); get it again, or give another file") from None
    vertices = (mean + middle).reshape(-1, 3)
    faces = faces.T if faces.shape[0] == 3 and faces.shape[1] != 3 else faces
    points = landmarks_beside(source, landmarks, vertices) or _named_landmarks(words, mean.reshape(-1, 3), vertices)
    return assemble("bfm", source, LICENCE, vertices, shape, expression, faces, _names(len(expression)), points)


def _scaled_basis(model: Any) -> np.ndarray:
    """(N,V,3) in standard deviations. Statismo has stored its components with and without them; the variances always stand beside."""
    basis, variance = np.asarray(model["pcaBasis"], np.float32), np.asarray(model["pcaVariance"], np.float64).ravel()
    length = np.linalg.norm(basis.astype(np.float64), axis=0)
    return components(basis, np.sqrt(np.maximum(variance, 0)) / np.maximum(length, 1e-12))


def _named_landmarks(words: bytes, mean: np.ndarray, vertices: np.ndarray) -> dict[int, np.ndarray]:
    """Named landmarks of the file, moved to their nearest vertex of the mean head with its mean expression."""
    from scipy.spatial import cKDTree

    items = json.loads(words.decode("utf-8"))
    named = items if isinstance(items, dict) else {item["id"]: item["coordinates"] for item in items}
    known = {NAMED[name]: np.asarray(at, np.float64) for name, at in named.items() if name in NAMED}
    if not known:
        return {}
    _, nearest = cKDTree(mean).query(np.stack(list(known.values())))
    return {number: vertices[v] for number, v in zip(known, nearest)}
