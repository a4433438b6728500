"""GNM Head (Google 2026), as its gnm_head.npz."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from recon.formats.common import assemble, landmarks_beside, unmirrored
from recon.formats.pickles import read_npz
from recon.joints import Joints, angle_names
from recon.model import MorphableModel
from render.files import InputError

LICENCE = "GNM Head: Apache-2.0 (Google); not shipped with thnerf"
NEEDED = ("template_vertex_positions", "template_joint_positions", "vertex_identity_basis", "joint_identity_basis", "expression_basis", "expression_names",
          "joint_names", "joint_parent_indices", "skinning_weights", "triangles")
FITTED = {"left_eye_region": 20, "right_eye_region": 20, "lower_face_region": 40}  # leading components that landmarks can tell apart
SKIN, MOUTH = ("skin_exterior", "skin"), "mouth_sock"
SPARSE = ("head_sparse_68.txt", "../../landmarks/head_sparse_68.txt")


def load_gnm(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """GNM Head: identity and expression components in standard deviations, angles of neck, head and eyes (rad) that pose it exactly.

    Its landmarks are a separate file of the same project, head_sparse_68.txt, expected beside it or where its repository keeps it.
    A fit uses the leading expression components of each region. Raises InputError when the file is damaged or lacks a part.
    """
    data = read_npz(source)
    missing = [n for n in NEEDED if n not in data]
    if missing:
        raise InputError(f"{source} is no GNM head: it lacks {', '.join(missing)}; give gnm_head.npz")
    array = lambda name: np.asarray(data[name], np.float32)  # noqa: E731
    words = lambda name: [str(n) for n in np.asarray(data[name]).ravel().tolist()]  # noqa: E731
    mean, basis = array("template_vertex_positions"), array("expression_basis")
    V, bones = len(mean), tuple(_bone(n) for n in words("joint_names"))
    J, angles = len(bones), angle_names([_bone(n) for n in words("joint_names")])
    named = tuple(words("expression_names"))
    if basis.shape != (len(named), V, 3) or array("skinning_weights").shape != (J, V):
        raise InputError(f"{source} is no GNM head: its arrays have other sizes than its names; give gnm_head.npz")
    names = named + angles
    correctives = array("pose_correctives_regressor").reshape(J, 9, V, 3) if "pose_correctives_regressor" in data else np.zeros((0, 9, V, 3), np.float32)
    joints = Joints(
        names=bones, parents=np.asarray(data["joint_parent_indices"], np.int64).ravel(), weights=array("skinning_weights").T,
        positions=array("template_joint_positions"), shape_motion=array("joint_identity_basis"), expression_motion=np.zeros((len(names), J, 3), np.float32),
        columns=np.arange(len(named), len(names)), joint=np.repeat(np.arange(J), 3), axis=np.tile(np.arange(3), J),
        correctives=correctives if correctives.any() else np.zeros((0, 9, V, 3), np.float32))
    if what := joints.problems(V, len(array("vertex_identity_basis")), len(names)):
        raise InputError(f"{source} is no GNM head: {what}; give gnm_head.npz")
    balls = [(joints.weights[:, j] > 0.5, joints.positions[j]) for j, bone in enumerate(bones) if bone in ("eyeLeft", "eyeRight")]
    balls = sorted((b for b in balls if b[0].any()), key=lambda b: -b[1][0])
    eyes = {"left": balls[0][0], "right": balls[1][0]} if len(balls) == 2 else {}
    points = landmarks_beside(source, landmarks, mean, SPARSE)
    if points is not None and len(points) == 68:
        points = dict(enumerate(unmirrored(np.stack([points[i] for i in range(68)]))))
    return assemble("gnm", source, LICENCE, mean, array("vertex_identity_basis"), np.concatenate([basis, np.zeros((len(angles), V, 3), np.float32)]),
                    np.asarray(data["triangles"], np.int64), names, points, skin=_skin(data, V), eyes=eyes,
                    eye_centres=np.stack([b[1] for b in balls]) if eyes else None, joints=joints, bounds=_bounds(named, angles))


def _bone(name: str) -> str:
    """'left_eye' → 'eyeLeft'."""
    return {"left_eye": "eyeLeft", "right_eye": "eyeRight"}.get(name, re.sub(r"_(\w)", lambda m: m[1].upper(), name))


def _bounds(named: tuple[str, ...], angles: tuple[str, ...]) -> np.ndarray:
    """What a fit may move; everything but the angles where the names are not those of GNM Head 3."""
    number = [re.fullmatch(r"(\w+?)_(\d+)", n) for n in named]
    free = [bool(m) and int(m[2]) < FITTED.get(m[1], 0) for m in number]
    free = free if any(free) else [True] * len(named)
    return np.array([(-3.0, 3.0) if f else (0.0, 0.0) for f in free] + [(0.0, 0.0)] * len(angles), np.float32)


def _skin(data: dict[str, np.ndarray], vertices: int) -> np.ndarray | None:
    """The vertices of the outer skin, where the file says which."""
    if "vertex_groups" not in data or "vertex_group_names" not in data:
        return None
    groups, names = np.asarray(data["vertex_groups"], np.float32), [str(n) for n in np.asarray(data["vertex_group_names"]).ravel().tolist()]
    for name in SKIN:
        if name in names and groups.shape == (len(names), vertices) and (groups[names.index(name)] > 0.5).any():
            inside = groups[names.index(MOUTH)] > 0.5 if MOUTH in names else False
            return (groups[names.index(name)] > 0.5) & ~np.asarray(inside)
    return None
