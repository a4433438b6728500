"""The head as programs with a skeleton and blend shapes want it: what USD and glTF have in common.

A vertex is ``Σ_j w_j · J_j(t) · inv(J_j(rest)) · (neutral + Σ_k weight_k(t) · offset_k)``: blend shapes first, then linear blend skinning. Joint 0
is the head and carries its pose; its rest is the identity, so a mesh at rest lies in the head's own coordinates. Eyeballs have joints
of their own, as have the jaw and neck of face models with joints, whose angles are then no blend shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recon.model import SIDES, MorphableModel, gaze_rotation
from recon.gaze import LOOK_ANGLE, LOOKS
from render.raster import vertex_normals
from render.rotations import axis_angle_to_matrix
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions
from thnerf.export.rig_names import EYES, HEAD
from thnerf.export.scene import Scene
from thnerf.export.space import Space
from thnerf.unwrap import texture_coordinates


@dataclass(frozen=True)
class Shape:
    """A sparse blend shape: name, index (N,) of the vertices it moves, offsets (N,3) and how their normals change (N,3) at a weight of 1."""

    name: str
    index: np.ndarray
    offsets: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Rig:
    """points, normals (V,3), faces (F,3), uv (F,3,2) with v up; shapes (K) with weights (T,K); joints (J) with parents (-1: none), rest (J,3)
    positions, influences (V,4) and their strengths (V,4); rotation (T,J,3,3) and position (T,J,3) against the parent. All in the units and
    axes of `space`.
    """

    space: Space
    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    shapes: tuple[Shape, ...]
    weights: np.ndarray
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    rest: np.ndarray
    influences: np.ndarray
    strengths: np.ndarray
    rotation: np.ndarray
    position: np.ndarray

    def at_rest(self, joint: int) -> np.ndarray:
        """Position (3,) of a joint at rest against its parent."""
        parent = self.parents[joint]
        return self.rest[joint] - (self.rest[parent] if parent >= 0 else 0)

    def world(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (T,J,3,3) and position (T,J,3) of all joints in the world."""
        rotation, position = self.rotation.copy(), self.position.copy()
        for j, parent in enumerate(self.parents):  # parents come first
            if parent >= 0:
                position[:, j] = np.einsum("tij,tj->ti", rotation[:, parent], position[:, j]) + position[:, parent]
                rotation[:, j] = rotation[:, parent] @ rotation[:, j]
        return rotation, position

    def posed(self, frame: int) -> np.ndarray:
        """Vertices (V,3) of one frame in the world: what a program has to show."""
        points = self.points.copy()
        for shape, weight in zip(self.shapes, self.weights[frame]):
            if weight:
                points[shape.index] += weight * shape.offsets
        one = replace(self, rotation=self.rotation[frame : frame + 1], position=self.position[frame : frame + 1])
        rotation, position = (a[0] for a in one.world())
        out = np.zeros_like(points)
        for j in range(len(self.joints)):
            strength = np.where(self.influences == j, self.strengths, 0).sum(1)
            used = strength > 0
            out[used] += strength[used, None] * ((points[used] - self.rest[j]) @ rotation[j].T + position[j])
        return out

    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner (3,) of a box in the world that holds the head in all frames."""
        margin = max((float(np.abs(s.offsets).max()) for s in self.shapes if len(s.index)), default=0.0)
        low, high = self.points.min(0) - margin, self.points.max(0) + margin
        corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])
        posed = np.einsum("tij,cj->tci", self.rotation[:, 0], corners) + self.position[:, 0, None]
        return posed.min((0, 1)), posed.max((0, 1))


def make_rig(scene: Scene, options: ExportOptions, unit: str) -> Rig:
    """The rig of a scene; `unit` is the format's own. Raises InputError when the track's face model is not at hand."""
    model, track, space = scene.model, scene.track, scene.space(options, unit)
    neutral = scene.neutral
    linear = np.ones(len(model.expression_names), bool)
    if model.joints is not None:
        linear[model.joints.columns] = False
    normals = vertex_normals(neutral, model.faces).astype(np.float64)
    basis = _basis(model, scene, options)
    shapes = []
    for k in np.flatnonzero(linear):
        index = np.flatnonzero(np.abs(basis[k]).max(1) > 1e-6)
        bent = vertex_normals(neutral + basis[k], model.faces)[index] - normals[index]
        name = model.expression_names[k]
        shapes.append(Shape(swap_side(name) if options.sides == "viewer" else name, index, space.points(basis[k][index]), bent @ space.local.T))
    joints = _Joints(scene, options)
    rotation, position = space.head(track.rotation, track.translation)
    rotations, positions = [rotation], [position]
    for j in range(1, len(joints.names)):
        rotations.append(space.local @ joints.turn[:, j] @ space.local.T)
        positions.append(space.points(joints.move[:, j]))
    influences, strengths = _strongest(joints.weights)
    return Rig(
        space, space.points(neutral), normals @ space.local.T, model.faces, texture_coordinates(model), tuple(shapes),
        track.expression[:, linear].astype(np.float64), tuple(joints.names), tuple(joints.parents), space.points(np.array(joints.rest)), influences, strengths,
        np.stack(rotations, 1), np.stack(positions, 1))


def _basis(model: MorphableModel, scene: Scene, options: ExportOptions) -> np.ndarray:
    """Expression offsets (E,V,3) mm; with eyes as blend shapes the eyeLook shapes turn the eyeballs by `LOOK_ANGLE`."""
    basis = model.expression_basis.astype(np.float64)
    if options.eyes != "blendshape" or model.eye_centres is None:
        return basis
    basis, centres = basis.copy(), model.eyes(scene.track.shape)
    for side, (label, outward) in enumerate((("Left", 1), ("Right", -1))):
        mask = model.regions[f"eye_{SIDES[side]}"]
        ball = scene.neutral[mask] - centres[side]
        for stem, (yaw, pitch) in zip(LOOKS, ((0, 1), (0, -1), (-outward, 0), (outward, 0))):
            if stem + label in model.expression_names:
                turn = gaze_rotation(np.array([yaw, pitch]) * LOOK_ANGLE)
                basis[model.index(stem + label), mask] += ball @ turn.T - ball
    return basis


class _Joints:
    """The skeleton in model space: names, parents, rest positions (J,3) mm, weights (V,J), turn (T,J,3,3) and move (T,J,3) mm against the parent."""

    def __init__(self, scene: Scene, options: ExportOptions) -> None:
        model, frames = scene.model, len(scene.track)
        self.names, self.parents, self.rest = [HEAD], [-1], [np.zeros(3)]
        self.weights = np.ones((len(model.mean), 1))
        self.turn, self.move = np.repeat(np.eye(3)[None, None], frames, 0), np.zeros((frames, 1, 3))
        if model.joints is not None:
            self._model_joints(scene)
        if model.eye_centres is not None and options.eyes == "rotation":
            self._eyes(scene, options)

    def _add(self, name: str, parent: int, rest: np.ndarray, turn: np.ndarray, move: np.ndarray) -> None:
        """One more joint without weights."""
        self.names.append(name)
        self.parents.append(parent)
        self.rest.append(np.asarray(rest, np.float64))
        self.weights = np.concatenate([self.weights, np.zeros((len(self.weights), 1))], 1)
        self.turn = np.concatenate([self.turn, turn[:, None]], 1)
        self.move = np.concatenate([self.move, move[:, None]], 1)

    def _model_joints(self, scene: Scene) -> None:
        """Jaw, neck and eyes of the face model (without its pose correctives, which no skeleton knows)."""
        joints, track = scene.model.joints, scene.track
        angles = np.zeros((len(track), len(joints.names), 3))
        angles[:, joints.joint, joints.axis] = track.expression[:, joints.columns]
        rest = joints.positions + np.tensordot(track.shape, joints.shape_motion[: len(track.shape)], 1)
        at = rest + np.tensordot(track.expression, joints.expression_motion, 1)
        for j, parent in enumerate(joints.parents):
            before = at[:, parent] if parent >= 0 else 0
            name = joints.names[j] if joints.names[j] not in (HEAD, *EYES) else f"{joints.names[j]}_joint"
            self._add(name, 0 if parent < 0 else int(parent) + 1, rest[j], axis_angle_to_matrix(angles[:, j]), np.broadcast_to(at[:, j] - before, (len(track), 3)))
        self.weights[:, 0] = 0
        self.weights[:, 1 : 1 + len(joints.names)] = joints.weights

    def _eyes(self, scene: Scene, options: ExportOptions) -> None:
        """Eyeballs, which the gaze turns."""
        model, turns = scene.model, gaze_rotation(scene.gaze(options))
        centres = model.eyes(scene.track.shape).astype(np.float64)
        for side, name in enumerate(EYES):
            self._add(name, 0, centres[side], turns[:, side], np.repeat(centres[side : side + 1], len(scene.track), 0))
            mask = model.regions[f"eye_{SIDES[side]}"]
            self.weights[mask] = 0
            self.weights[mask, -1] = 1


def _strongest(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (V,J) → the four strongest joints (V,4) and their weights (V,4), which sum to 1; joint 0 with weight 0 fills up."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, :4]
    best = np.take_along_axis(weights, order, 1)
    pad = ((0, 0), (0, 4 - order.shape[1]))
    order, best = np.pad(order, pad), np.pad(best, pad)
    return np.where(best > 0, order, 0), best / best.sum(1, keepdims=True)


def quaternions(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices (T,J,3,3) → quaternions (T,J,4) x, y, z, w whose sign never flips from one frame to the next."""
    from scipy.spatial.transform import Rotation

    out = Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_quat().reshape(matrix.shape[:2] + (4,))
    flips = np.cumprod(np.where((out[1:] * out[:-1]).sum(-1) < 0, -1, 1), 0)
    out[1:] *= flips[..., None]
    return out
