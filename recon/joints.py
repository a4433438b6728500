"""Joints of a face model (jaw, neck, eyes) and linear blend skinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from render.rotations import axis_angle_to_matrix

AXES = ("Pitch", "Yaw", "Roll")  # components of a joint's rotation vector: about +x (jaw: opens), +y, +z
CHORD = {"jawPitch": (0.0, 0.25)}  # rad between which an angle is linearised; others about zero
AROUND_ZERO = (-0.1, 0.1)


@dataclass(frozen=True)
class Joints:
    """J joints that V vertices follow (Loper et al. 2015, SMPL, as FLAME uses it: Li et al. 2017).

    names (J,), parents (J,) with -1 for the root and every parent before its children, weights (V,J) with rows that sum to 1,
    positions (J,3) mm of the mean head, shape_motion (S,J,3) and expression_motion (E,J,3): how one unit of a coefficient moves
    them. columns, joint, axis (A,): expression column A turns `joint` by that component of its rotation vector, rad.
    correctives (J,9,V,3) mm or (0,9,V,3): what the entries of a joint's rotation matrix minus the identity add to the vertices at rest.
    """

    names: tuple[str, ...]
    parents: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    shape_motion: np.ndarray
    expression_motion: np.ndarray
    columns: np.ndarray
    joint: np.ndarray
    axis: np.ndarray
    correctives: np.ndarray

    def pose(self, rest: np.ndarray, shape: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Turn vertices at rest (…,V,3) mm by the angles in `expression` (…,E), for the identity `shape` (…,S) or shorter; (…,V,3)."""
        angles = np.zeros(expression.shape[:-1] + (len(self.names), 3))
        angles[..., self.joint, self.axis] = expression[..., self.columns]
        if not angles.any():
            return rest
        turn = axis_angle_to_matrix(angles)
        if len(self.correctives):
            bent = (turn - np.eye(3)).reshape(turn.shape[:-3] + (-1,)).astype(np.float32)
            rest = rest + np.tensordot(bent, self.correctives.reshape(-1, *rest.shape[-2:]), 1)
        at = self.positions + np.tensordot(shape, self.shape_motion[: shape.shape[-1]], 1) + np.tensordot(expression, self.expression_motion, 1)
        at = np.broadcast_to(at, angles.shape)
        turns, moves = [], []
        for j, parent in enumerate(self.parents):  # of each joint in the head's frame: x → turn · (x - at) + move
            if parent < 0:
                turns.append(turn[..., j, :, :])
                moves.append(at[..., j, :])
            else:
                turns.append(turns[parent] @ turn[..., j, :, :])
                moves.append(np.einsum("...ij,...j->...i", turns[parent], at[..., j, :] - at[..., parent, :]) + moves[parent])
        out = np.zeros(np.broadcast_shapes(rest.shape, angles.shape[:-2] + rest.shape[-2:]), np.float32)
        for j in range(len(self.names)):
            shift = moves[j] - np.einsum("...ij,...j->...i", turns[j], at[..., j, :])
            out += self.weights[:, j, None] * (rest @ np.swapaxes(turns[j], -1, -2).astype(np.float32) + shift[..., None, :].astype(np.float32))
        return out

    def linearised(self, mean: np.ndarray, expressions: int) -> np.ndarray:
        """Vertices' motion per rad of each angle (A,V,3) on the mean head (V,3); `expressions`: how many columns there are.

        A chord, not a tangent: over CHORD's range a jaw of 90 mm deviates from it by 0.7 mm, from its tangent by 2.8 mm.
        """
        out = np.empty((len(self.columns),) + mean.shape, np.float32)
        for a, (column, joint, axis) in enumerate(zip(self.columns, self.joint, self.axis)):
            low, high = CHORD.get(self.names[joint] + AXES[axis], AROUND_ZERO)
            expression = np.zeros((2, expressions), np.float32)
            expression[:, column] = low, high
            ends = self.pose(np.repeat(mean[None], 2, 0), np.zeros(0, np.float32), expression)
            out[a] = (ends[1] - ends[0]) / (high - low)
        return out

    def problems(self, vertices: int, shapes: int, expressions: int) -> str:
        """What does not fit together, as half a sentence, or ''."""
        J, A = len(self.names), len(self.columns)
        shapes_ok = (self.parents.shape == (J,) and self.weights.shape == (vertices, J) and self.positions.shape == (J, 3)
                     and self.shape_motion.shape == (shapes, J, 3) and self.expression_motion.shape == (expressions, J, 3)
                     and self.joint.shape == self.axis.shape == (A,) and self.correctives.shape in ((J, 9, vertices, 3), (0, 9, vertices, 3)))
        if not shapes_ok:
            return "its joints have arrays of other sizes than its mesh"
        if (self.parents >= np.arange(J)).any() or (self.parents < -1).any():
            return "its joints do not form a tree with parents first"
        inside = lambda a, n: not len(a) or (a.min() >= 0 and a.max() < n)  # noqa: E731
        if not (inside(self.columns, expressions) and inside(self.joint, J) and inside(self.axis, 3)):
            return "its joint angles point outside its expressions"
        arrays = (self.weights, self.positions, self.shape_motion, self.expression_motion, self.correctives)
        return "" if all(np.isfinite(a).all() for a in arrays) else "its joints have values that are not finite"


def angle_names(names: Sequence[str]) -> tuple[str, ...]:
    """Expression names of the angles of joints: jawPitch, jawYaw, jawRoll, …"""
    return tuple(name + axis for name in names for axis in AXES)
