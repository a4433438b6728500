"""Joints by name: which carry the pose and the gaze, and which expressions the angles of all others are."""

from __future__ import annotations

from typing import Mapping, Optional

import numpy as np

from recon.joints import angle_names
from render.rotations import matrix_to_axis_angle

HEAD = "head"
EYES = ("eye_left", "eye_right")
MOST = 32  # joints beside head and eyes; a face has a neck and a jaw


def joint_angles(turns: Mapping[str, np.ndarray], parents: Mapping[str, Optional[str]], local: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names (A,) and values (T,A) rad of the angles of a face model's joints: components of each rotation vector against its parent.

    turns: rotation (T,3,3) of each joint from rest to the world, the head's among them. parents: of each, None for the root. local (3,3): model axes → axes of the mesh.
    """
    joints = [name for name in turns if name not in (HEAD, *EYES)][:MOST]
    names, values = [], [np.zeros((len(turns[HEAD]), 0))]
    for name in joints:
        above = turns[parents.get(name) or HEAD]
        names += angle_names([name])
        values.append(matrix_to_axis_angle(local.T @ np.swapaxes(above, 1, 2) @ turns[name] @ local))
    return names, np.concatenate(values, 1)
