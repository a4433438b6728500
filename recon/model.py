"""The morphable face model: coefficients in, vertices out. Linear, plus joints where the model has them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from recon.assets import asset
from recon.joints import Joints
from recon.response import Response, decode_response, encode_response
from render.files import InputError, atomic_path
from render.rotations import axis_angle_to_matrix

DEFAULT_MODEL = "default"
VERSION = 2  # of files with joints or bounds; those without are written as 1
SIDES = ("left", "right")


@dataclass(frozen=True)
class Embedding:
    """Landmarks as points on the mesh: faces (N,) triangle indices, barycentric (N,3). response: how the detector that this
    scheme belongs to deviates from these points, where that was measured."""

    faces: np.ndarray
    barycentric: np.ndarray
    response: Response | None = None


@dataclass(frozen=True)
class MorphableModel:
    """Linear 3D morphable model (Blanz & Vetter 1999): ``mean + shape · shape_basis + expression · expression_basis``.

    mean (V,3) mm, shape_basis (S,V,3) scaled so that a coefficient of 1 is one standard deviation,
    expression_basis (E,V,3), faces (F,3) int, expression_names (E,). landmarks: Embedding by scheme
    ('mediapipe478', 'ibug68'). regions: named vertex masks (V,) bool ('face', 'eye_left', 'eye_right',
    'teeth_upper', 'teeth_lower', 'tongue', 'scalp', 'neck' where the model has them).
    Model space: mm, y up, z out of the face, +x to the subject's left.

    joints: jaw, neck and eyes of models that have them (FLAME, GNM). Their angles (rad, components of a rotation vector) are
    expressions by name (jawPitch, neckYaw, …): `vertices` turns the joints exactly, while their rows of expression_basis are mm per rad
    of a chord, for whoever needs a linear model (the solver). bounds (E,2): what a fit may give each expression, equal where it
    must leave it alone (neck, because the pose turns the head; eyes, because the gaze turns them); None = ARKit weights in [0, 1]
    when there is a jawOpen, else ±3. licence: a sentence for the user.
    """

    model_id: str
    mean: np.ndarray
    shape_basis: np.ndarray
    expression_basis: np.ndarray
    faces: np.ndarray
    expression_names: tuple[str, ...]
    landmarks: Mapping[str, Embedding]
    regions: Mapping[str, np.ndarray] = field(default_factory=dict)
    eye_centres: np.ndarray | None = None  # (2,3) mm, [left, right], of the mean head
    joints: Joints | None = None
    bounds: np.ndarray | None = None
    licence: str = ""

    def vertices(self, shape: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Coefficients → vertices. shape (…,S) or shorter, expression (…,E); returns (…,V,3) mm float32.

        Raises ValueError when there are more coefficients than the model has.
        """
        shape, expression = np.asarray(shape, np.float32), np.asarray(expression, np.float32)
        if shape.shape[-1] > len(self.shape_basis) or expression.shape[-1] != len(self.expression_basis):
            raise ValueError(
                f"model {self.model_id} takes up to {len(self.shape_basis)} shape and exactly {len(self.expression_basis)} "
                f"expression coefficients, got {shape.shape[-1]} and {expression.shape[-1]}")
        identity = np.tensordot(shape, self.shape_basis[: shape.shape[-1]], 1)
        if self.joints is None:
            return self.mean + identity + np.tensordot(expression, self.expression_basis, 1)
        linear = expression.copy()
        linear[..., self.joints.columns] = 0
        return self.joints.pose(self.mean + identity + np.tensordot(linear, self.expression_basis, 1), shape, expression)

    def points(self, vertices: np.ndarray, scheme: str) -> np.ndarray:
        """Landmarks of a scheme on posed vertices (…,V,3) → (…,N,3). Raises KeyError for an unknown scheme."""
        e = self.landmarks[scheme]
        return (vertices[..., self.faces[e.faces], :] * e.barycentric[..., None].astype(vertices.dtype)).sum(-2)

    def without_response(self) -> MorphableModel:
        """The same model for landmarks that lie exactly where they are embedded, not where a detector sees them."""
        return replace(self, landmarks={scheme: Embedding(e.faces, e.barycentric) for scheme, e in self.landmarks.items()})

    def index(self, name: str) -> int:
        """Position of one expression. Raises KeyError for an unknown name."""
        if name not in self.expression_names:
            raise KeyError(f"model {self.model_id} has no expression {name!r}")
        return self.expression_names.index(name)

    @cached_property
    def _eye_motion(self) -> np.ndarray:
        """(S,2,3): how one unit of each shape coefficient moves the eyeball centres.

        Eyeballs deform by translation and uniform scale only, so both follow from least squares over their vertices.
        """
        motion = np.zeros((len(self.shape_basis), 2, 3), np.float32)
        for side, centre in enumerate(self.eye_centres):
            mask = self.regions[f"eye_{SIDES[side]}"]
            offset = (self.mean[mask] - centre).astype(np.float64)  # basis = translation + scale * offset
            basis = self.shape_basis[:, mask].astype(np.float64)
            spread = offset - offset.mean(0)
            scale = np.einsum("svi,vi->s", basis, spread) / (spread**2).sum()
            motion[:, side] = basis.mean(1) - scale[:, None] * offset.mean(0)
        return motion

    def eyes(self, shape: np.ndarray) -> np.ndarray:
        """Centres of the eyeballs of an identity: shape (…,S) or shorter → (…,2,3) mm float32, [left, right].

        Raises ValueError when the model has no eyeballs.
        """
        if self.eye_centres is None:
            raise ValueError(f"model {self.model_id} has no eyeballs")
        shape = np.asarray(shape, np.float32)
        return self.eye_centres.astype(np.float32) + np.tensordot(shape, self._eye_motion[: shape.shape[-1]], 1)


def apply_gaze(model: MorphableModel, vertices: np.ndarray, shape: np.ndarray, gaze: np.ndarray) -> np.ndarray:
    """Turn the eyeballs about their centres; everything else stays.

    vertices (…,V,3) mm in model space, of identity `shape` (S,) or (…,S). gaze (…,2,2) rad, [left, right] × [yaw, pitch],
    + to the subject's left and up; zero looks straight out of the face. Returns a new array (…,V,3).
    Raises ValueError when the model has no eyeballs.
    """
    gaze = np.asarray(gaze, np.float64)
    rotation = gaze_rotation(gaze).astype(np.float32)
    centres = model.eyes(shape)
    out = np.broadcast_to(vertices, np.broadcast_shapes(vertices.shape, gaze.shape[:-2] + (1, 1))).astype(np.float32)  # astype copies
    for side, name in enumerate(SIDES):
        mask = model.regions[f"eye_{name}"]
        centre = centres[..., side, None, :]
        out[..., mask, :] = (out[..., mask, :] - centre) @ np.swapaxes(rotation[..., side, :, :], -1, -2) + centre
    return out


def gaze_rotation(gaze: np.ndarray) -> np.ndarray:
    """Eyeball rotation in model axes: yaw, pitch (…,2) rad → (…,3,3), yaw about +y after pitch about -x."""
    gaze = np.asarray(gaze, np.float64)
    zero = np.zeros_like(gaze[..., 0])
    yaw = axis_angle_to_matrix(np.stack([zero, gaze[..., 0], zero], -1))
    return yaw @ axis_angle_to_matrix(np.stack([-gaze[..., 1], zero, zero], -1))


def fitted_part(model: MorphableModel) -> tuple[MorphableModel, np.ndarray]:
    """The linear model of what a fit may move, and the columns of `model` that its expressions are."""
    if model.bounds is None:
        return model, np.arange(len(model.expression_names))
    columns = np.flatnonzero(model.bounds[:, 1] > model.bounds[:, 0])
    names = tuple(model.expression_names[i] for i in columns)
    landmarks = {s: e if e.response is None else replace(e, response=replace(e.response, expression=e.response.expression[columns]))
                 for s, e in model.landmarks.items()}
    return replace(model, expression_basis=model.expression_basis[columns], expression_names=names, bounds=model.bounds[columns], joints=None,
                   landmarks=landmarks), columns


def load_model(path: str | Path = DEFAULT_MODEL) -> MorphableModel:
    """The default model ('default', read once), a file that `save_model` wrote (its arrays are read-only), or a model of another
    project in its own files: see `recon.formats`.

    Raises InputError when the file is missing, damaged, or not a face model.
    """
    if str(path) == DEFAULT_MODEL:
        return _default()
    path = Path(path)
    if path.exists() and not _is_ours(path):
        from recon.formats import load_foreign

        return load_foreign(path)
    return _read(path)


def _is_ours(path: Path) -> bool:
    """Whether a path is a file that `save_model` may have written; a damaged .npz counts as one."""
    if path.is_dir() or path.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return "template_vertex_positions.npy" not in archive.namelist()  # GNM's
    except (OSError, zipfile.BadZipFile):
        return True


@lru_cache(maxsize=1)
def _default() -> MorphableModel:
    return _read(asset("face_model.npz"))


def _read(path: Path) -> MorphableModel:
    """Read and check one file."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if "version" not in data.files or int(data["version"]) > VERSION:
                raise InputError(f"{path} is not a face model that this version reads; give another file or update thnerf")
            model = _decode({name: data[name] for name in data.files})
    except FileNotFoundError:
        raise InputError(f"the face model {path} does not exist; give 'default' or the path of a model file") from None
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and KeyError: each raises its own kind on a damaged file
        raise InputError(f"{path} is not a readable face model ({error}); give 'default' or another file") from None
    check_model(model, path)
    return model


def _decode(data: Mapping[str, np.ndarray]) -> MorphableModel:
    """Arrays of a file → model with read-only arrays. Raises KeyError or ValueError when some are missing or odd."""

    def read_only(array: np.ndarray) -> np.ndarray:
        array.setflags(write=False)
        return array

    def basis(name: str) -> np.ndarray:
        stored, step = data[name], float(data[f"{name}_step"])
        return read_only(stored.astype(np.float32) * np.float32(step) if step else stored.astype(np.float32))

    mean = read_only(data["mean"].astype(np.float32))
    schemes = sorted({name.split("/")[1] for name in data if name.startswith("landmarks/")})
    landmarks = {
        s: Embedding(read_only(data[f"landmarks/{s}/faces"].astype(np.int64)), read_only(data[f"landmarks/{s}/barycentric"].astype(np.float32)),
                     decode_response(data, f"landmarks/{s}/response"))
        for s in schemes}
    centres = read_only(data["eye_centres"].astype(np.float32)) if "eye_centres" in data else None
    regions = {n.split("/")[1]: read_only(np.unpackbits(data[n], count=len(mean)).astype(bool)) for n in data if n.startswith("regions/")}
    return MorphableModel(
        model_id=str(data["model_id"]), mean=mean, shape_basis=basis("shape_basis"), expression_basis=basis("expression_basis"),
        faces=read_only(data["faces"].astype(np.int32)), expression_names=tuple(str(n) for n in data["expression_names"].tolist()),
        landmarks=landmarks, regions=regions, eye_centres=centres, joints=_decode_joints(data),
        bounds=read_only(data["bounds"].astype(np.float32)) if "bounds" in data else None, licence=str(data["licence"]) if "licence" in data else "")


def _decode_joints(data: Mapping[str, np.ndarray]) -> Joints | None:
    """The joints of a file, or None. Raises KeyError when some of their arrays are missing."""
    if "joints/names" not in data:
        return None
    arrays = {f.name: data[f"joints/{f.name}"] for f in fields(Joints) if f.name != "names"}
    whole = {n: a.astype(np.int64 if n in ("parents", "columns", "joint", "axis") else np.float32) for n, a in arrays.items()}
    return Joints(names=tuple(str(n) for n in data["joints/names"].tolist()), **whole)


def check_model(model: MorphableModel, path: Path) -> None:
    """Raise InputError where arrays do not fit together, so that nothing indexes outside the mesh later."""
    V, F = len(model.mean), len(model.faces)
    problems = [
        (model.mean.ndim != 2 or model.mean.shape[1:] != (3,) or not V, "mean must be (V,3)"),
        (model.shape_basis.shape[1:] != (V, 3) or model.expression_basis.shape[1:] != (V, 3), "bases must be (N,V,3)"),
        (model.faces.ndim != 2 or model.faces.shape[1:] != (3,) or not F or model.faces.min() < 0 or model.faces.max() >= V,
         "faces must be (F,3) indices of vertices"),
        (not len(model.expression_names) == len(set(model.expression_names)) == len(model.expression_basis), "every expression needs its own name"),
        (not all(np.isfinite(a).all() for a in (model.mean, model.shape_basis, model.expression_basis)), "it has values that are not finite"),
        (any(e.faces.ndim != 1 or e.barycentric.shape != (len(e.faces), 3) or (len(e.faces) and (e.faces.min() < 0 or e.faces.max() >= F))
             or not np.isfinite(e.barycentric).all() for e in model.landmarks.values()), "landmarks must lie on faces"),
        (model.eye_centres is not None and (model.eye_centres.shape != (2, 3) or any(f"eye_{s}" not in model.regions for s in SIDES)),
         "eye centres need eye regions"),
        (model.bounds is not None and (model.bounds.shape != (len(model.expression_names), 2) or not np.isfinite(model.bounds).all()),
         "bounds must be (E,2)"),
    ]
    problems += [(True, what) for e in model.landmarks.values() if e.response is not None
                 and (what := e.response.problems(len(e.faces), len(model.shape_basis), len(model.expression_basis)))]
    if model.joints is not None and (what := model.joints.problems(V, len(model.shape_basis), len(model.expression_basis))):
        problems.append((True, what))
    for wrong, what in problems:
        if wrong:
            raise InputError(f"{path} is not a usable face model: {what}; give 'default' or another file")


def save_model(path: str | Path, model: MorphableModel, step: float = 0.0) -> None:
    """Write a model as .npz without pickle, atomically. step: 0 keeps float32; else bases are rounded to multiples of `step` mm (int16).

    Raises ValueError when a basis is too large for its step.
    """
    plain = model.joints is None and model.bounds is None
    arrays: dict[str, Any] = {"version": 1 if plain else VERSION, "model_id": model.model_id, "mean": model.mean.astype(np.float32), "faces": model.faces,
                              "expression_names": np.array(model.expression_names, dtype=str)}
    if len(model.mean) <= 65536:
        arrays["faces"] = model.faces.astype(np.uint16)
    for name in ("shape_basis", "expression_basis"):
        value = getattr(model, name)
        if step and len(value) and np.abs(value).max() > 32767 * step:
            raise ValueError(f"{name} reaches {np.abs(value).max():.1f} mm, too much for steps of {step} mm")
        arrays[name] = np.round(value / step).astype(np.int16) if step else value.astype(np.float32)
        arrays[f"{name}_step"] = step
    for scheme, e in model.landmarks.items():
        arrays[f"landmarks/{scheme}/faces"] = e.faces.astype(np.int32)
        arrays[f"landmarks/{scheme}/barycentric"] = e.barycentric.astype(np.float32)
        if e.response is not None:
            arrays |= encode_response(e.response, f"landmarks/{scheme}/response")
    for name, mask in model.regions.items():
        arrays[f"regions/{name}"] = np.packbits(mask)
    if model.eye_centres is not None:
        arrays["eye_centres"] = model.eye_centres.astype(np.float32)
    if model.bounds is not None:
        arrays["bounds"] = model.bounds.astype(np.float32)
    if model.licence:
        arrays["licence"] = model.licence
    if model.joints is not None:
        arrays |= {f"joints/{f.name}": np.asarray(getattr(model.joints, f.name)) for f in fields(Joints)}
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)
