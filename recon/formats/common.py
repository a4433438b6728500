"""What all loaders share: units, orientation, landmarks beside a file, and landmarks carried over from the default model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Mapping

import numpy as np

from recon.joints import Joints
from recon.landmarks import IRIS
from recon.model import Embedding, MorphableModel, load_model
from recon.response import Response
from recon.surface import closest_points, warp
from render.files import InputError

LANDMARK_FILE = "landmarks68.txt"
SLIDING = [*range(8), *range(9, 17)]  # iBUG's jaw line but its chin: it lies on the outline, not on the skin
LOOSE, FIRM = 60.0, 1.0  # slack of anchors of the warp, for sliding and other landmarks
FACE_REACH = 10.0  # mm between a vertex and the default model's face for it to count as face
FEWEST = 6  # landmarks that an alignment needs
_MIRROR = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
           *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65]  # iBUG's points as seen in a mirror


def millimetres(vertices: np.ndarray) -> float:
    """mm per unit of a head's or face's vertices (V,3): the power of ten under which its height is 10 cm to 1 m. Raises ValueError for none."""
    height = float(np.ptp(np.asarray(vertices, np.float64)[:, 1]))
    if not np.isfinite(height) or height <= 0:
        raise ValueError("its vertices are flat or not finite")
    return float(10.0 ** np.ceil(2 - np.log10(height) - 1e-9))


def components(basis: np.ndarray, deviations: np.ndarray | None = None) -> np.ndarray:
    """Columns (3V,N) → (N,V,3) float32, multiplied by their standard deviations (N,) where given. Raises ValueError on odd sizes."""
    basis = np.asarray(basis)
    if basis.ndim != 2 or basis.shape[0] % 3:
        raise ValueError(f"a basis has the shape {basis.shape}")
    rows = basis.T.astype(np.float32)
    if deviations is not None:
        rows = rows * np.asarray(deviations, np.float32).reshape(-1, 1)
    return np.ascontiguousarray(rows.reshape(rows.shape[0], -1, 3))


def read_landmarks(path: Path, vertices: np.ndarray) -> np.ndarray:
    """A text file of 68 lines, each a vertex index from 0 or pairs `index weight …`, → (68,3) in units of `vertices`.

    (GNM's head_sparse_68.txt is one.) Raises InputError when it is missing or damaged.
    """
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        points = [vertices[int(r[0])] if len(r) == 1 else sum(w * vertices[_index(i, vertices)] for i, w in zip(r[::2], r[1::2], strict=True)) for r in rows]
        out = np.asarray(points, np.float64)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not a readable landmark file ({error}); it needs 68 lines with a vertex index each, iBUG's order") from None
    if out.shape != (68, 3):
        raise InputError(f"{path} has {len(out)} landmarks; it needs 68 lines with a vertex index each, iBUG's order")
    return out


def _index(value: float, vertices: np.ndarray) -> int:
    if value != int(value) or not 0 <= value < len(vertices):
        raise ValueError(f"{value:g} is no vertex")
    return int(value)


def landmarks_beside(source: Path, given: Path | None, vertices: np.ndarray, also: tuple[str, ...] = ()) -> dict[int, np.ndarray] | None:
    """iBUG points by number from a given file or one of the usual names beside the model; None when there is none."""
    for path in [given] if given else [source.parent / name for name in (LANDMARK_FILE, *also)]:
        if given or path.is_file():
            return dict(enumerate(read_landmarks(path, vertices)))
    return None


def assemble(kind: str, source: Path, licence: str, mean: np.ndarray, shape_basis: np.ndarray, expression_basis: np.ndarray, faces: np.ndarray,
             names: tuple[str, ...], ibug: Mapping[int, np.ndarray] | None, *, skin: np.ndarray | None = None, eyes: Mapping[str, np.ndarray] | None = None,
             eye_centres: np.ndarray | None = None, joints: Joints | None = None, bounds: np.ndarray | None = None,
             embeddings: Mapping[str, Embedding] | None = None, mediapipe: Mapping[int, Embedding] | None = None) -> MorphableModel:
    """A whole model from what a file holds, all in the file's units; axes as ours.

    mean (V,3), bases (N,V,3), faces (F,3). ibug: points (3,) by iBUG number, at least FEWEST of them. skin: mask (V,) of what landmarks
    may lie on. eyes: masks (V,) 'left', 'right'. joints: positions, motions and correctives in the file's units. embeddings: whole
    schemes known exactly; mediapipe: single points of that scheme known exactly (each an Embedding of one point).
    Schemes that are not known come from the default model. Raises InputError when there are too few landmarks or the head lies wrong.
    """
    unit = millimetres(mean)
    mean = (np.asarray(mean, np.float64) * unit).astype(np.float32)
    shape_basis, expression_basis = (np.asarray(b, np.float32) * np.float32(unit) for b in (shape_basis, expression_basis))
    if not ibug or len(ibug) < FEWEST:
        raise InputError(f"{source} comes without landmarks; put a {LANDMARK_FILE} beside it (68 lines, each the index of iBUG's next point among its "
                         f"vertices, from 0) or name one with --landmarks")
    numbers = np.array(sorted(ibug))
    points = np.stack([np.asarray(ibug[n], np.float64) for n in numbers]) * unit
    _check_axes(source, numbers, points)
    faces = np.asarray(faces, np.int64)
    inward = _faces_inward(mean, faces)
    turned = lambda e: Embedding(e.faces, e.barycentric[:, ::-1]) if inward else e  # noqa: E731
    faces = faces[:, ::-1] if inward else faces
    skin = np.ones(len(mean), bool) if skin is None else skin
    eyes = dict(eyes or {})
    if joints is not None:
        joints = _scaled(joints, unit)
        expression_basis = expression_basis.copy()
        expression_basis[joints.columns] = joints.linearised(mean, len(names))
    default = load_model()
    there = default.points(default.mean, "ibug68")[numbers].astype(np.float64)
    slack = np.where(np.isin(numbers, SLIDING), LOOSE, FIRM)
    over = warp(there, points, slack)
    landmarks = {scheme: turned(e) for scheme, e in (embeddings or {}).items()}
    skin = skin & ~sum(eyes.values(), np.zeros(len(mean), bool))
    rows = np.flatnonzero(skin[faces].all(1))
    for scheme, here in (("ibug68", dict(zip(numbers.tolist(), points))), ("mediapipe478", {})):
        if scheme in landmarks:
            continue
        target = over(default.points(default.mean, scheme))
        for n, point in here.items():
            target[n] = point
        found, _ = closest_points(target, mean, faces[rows])
        at, bary = rows[found.faces], found.barycentric
        if scheme == "mediapipe478":
            for side, mask in eyes.items():
                ball = np.flatnonzero(mask[faces].all(1))
                if len(ball):
                    on, _ = closest_points(target[list(IRIS[side])], mean, faces[ball])
                    at[list(IRIS[side])], bary[list(IRIS[side])] = ball[on.faces], on.barycentric
            for n, e in (mediapipe or {}).items():
                at[n], bary[n] = e.faces[0], turned(e).barycentric[0]
        landmarks[scheme] = Embedding(at.astype(np.int64), bary.astype(np.float32), _response(default, scheme, names))
    regions: dict[str, np.ndarray] = {f"eye_{side}": mask for side, mask in eyes.items()}
    regions["face"] = _face(default, over, mean) & skin
    if len(eyes) == 2 and eye_centres is None:
        eye_centres = np.stack([(mean[eyes[s]].min(0) + mean[eyes[s]].max(0)) / 2 for s in ("left", "right")])
    elif eye_centres is not None:
        eye_centres = np.asarray(eye_centres, np.float32) * np.float32(unit)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a, np.float32).tobytes() for a in (mean, shape_basis, expression_basis))).hexdigest()[:8]
    return MorphableModel(f"{kind}-{digest}", mean, shape_basis, expression_basis, faces.astype(np.int32), names, landmarks, regions,
                          eye_centres if len(eyes) == 2 else None, joints, bounds, licence)


def _response(default: MorphableModel, scheme: str, names: tuple[str, ...]) -> Response | None:
    """The detector's response as measured on the default model: what belongs to the pose, and to expressions that have the same names here."""
    known = default.landmarks[scheme].response
    if known is None:
        return None
    expression = np.zeros((len(names),) + known.offset.shape, np.float32)
    for i, name in enumerate(names):
        if name in default.expression_names:
            expression[i] = known.expression[default.index(name)]
    return Response(known.offset, known.angles, np.zeros((0,) + known.offset.shape, np.float32), expression)


def _check_axes(source: Path, numbers: np.ndarray, points: np.ndarray) -> None:
    """Raise InputError unless the landmarks stand as on a head with y up, z out of the face and +x to its left."""
    at = dict(zip(numbers.tolist(), points))
    pairs: list[tuple[Any, Any, int, str]] = [(36, 45, 0, "+x to the subject's left"), (48, 54, 0, "+x to the subject's left"), (8, 30, 1, "y up"),
                                              (45, 30, 2, "z out of the face"), (54, 51, 2, "z out of the face")]
    for low, high, axis, what in pairs:
        if low in at and high in at and at[low][axis] >= at[high][axis]:
            raise InputError(f"{source} or its landmarks do not fit: the model needs {what}, and landmarks in iBUG's order")


def unmirrored(points: np.ndarray) -> np.ndarray:
    """68 points (68,3), in iBUG's order even when they were listed as in a mirror (left and right exchanged)."""
    return points[_MIRROR] if points[36, 0] > points[45, 0] else points


def _faces_inward(mean: np.ndarray, faces: np.ndarray) -> bool:
    """Whether the triangles at the front of the head face -z."""
    corners = mean[faces].astype(np.float64)
    normal_z = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2]
    front = corners[..., 2].mean(1) > np.percentile(mean[:, 2], 70)
    return bool(normal_z[front].sum() < 0)


def _face(default: MorphableModel, over: Any, mean: np.ndarray) -> np.ndarray:
    """Which vertices lie where the default model's face is, (V,)."""
    from scipy.spatial import cKDTree

    skin = np.flatnonzero(default.regions["skin"])
    distance, nearest = cKDTree(over(default.mean[skin])).query(mean)
    return default.regions["face"][skin][nearest] & (distance < FACE_REACH)


def _scaled(joints: Joints, unit: float) -> Joints:
    """Joints in mm."""
    from dataclasses import replace

    lengths = {n: (np.asarray(getattr(joints, n), np.float32) * np.float32(unit)) for n in ("positions", "shape_motion", "expression_motion", "correctives")}
    return replace(joints, weights=np.asarray(joints.weights, np.float32), **lengths)
