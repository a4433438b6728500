"""Gaze: the directions of the eyeballs from the irises, and the eyeLook coefficients (the lids) that go with a gaze."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence

import numpy as np

from recon import landmarks as lm
from recon.model import MorphableModel
from recon.quadratic import project
from recon.smooth import fill_gaps, whittaker
from render.rotations import axis_angle_to_matrix

if TYPE_CHECKING:
    from recon.problem import Identity, Problem

LOOKS = ("eyeLookUp", "eyeLookDown", "eyeLookIn", "eyeLookOut")  # follow from gaze, not from landmarks
LOOK_ANGLE = np.deg2rad(30)  # gaze at which an eyeLook coefficient is 1


def find_gaze(problem: Problem, identity: Identity, rotation: np.ndarray, t: np.ndarray, e: np.ndarray, points: np.ndarray, clip_starts: Sequence[int],
          model: MorphableModel, per_second: float) -> np.ndarray:
    """Directions of the eyeballs (T,2,2) rad from the irises: where the iris' ray meets the eyeball, bridged over blinks."""
    R = axis_angle_to_matrix(rotation)
    _, seen = project(problem.place(identity.head, e, R), R, t, identity.focal)
    centres = np.asarray(model.eyes(identity.shape), np.float64)
    straight = problem.head + np.tensordot(identity.shape[: len(problem.shapes)], problem.shapes, 1)
    opening = lm.eye_opening(points)
    gaze = np.zeros((len(t), 2, 2))
    for side, name in enumerate(("left", "right")):
        radius = float(np.linalg.norm(model.mean[model.regions[f"eye_{name}"]] - model.eye_centres[side], axis=-1).max())
        lids = [lm.LIDS[name][0], lm.LIDS[name][8]]  # the corners, which stay while the eye turns
        iris = problem.picture[:, list(lm.IRIS[name])].mean(1) - (problem.picture[:, lids] - seen[:, lids]).mean(1)
        centre = np.einsum("tij,j->ti", R, centres[side]) + t
        ray = np.concatenate([iris / identity.focal, np.ones((len(t), 1))], -1)
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        along = (ray * centre).sum(-1)
        inside = radius**2 - ((centre**2).sum(-1) - along**2)
        hit = ray * (along - np.sqrt(np.maximum(inside, (0.2 * radius) ** 2)))[:, None] - centre
        d = np.einsum("tji,tj->ti", R, hit)
        ahead = straight[list(lm.IRIS[name])].mean(0) - centres[side]  # where the detector sees the iris of an eye that looks straight out
        gaze[:, side] = _directions(d) - _directions(ahead[None])
    open_ = problem.valid & (opening.min(1) > 0.6 * np.median(opening[problem.valid].min(1)))
    gaze = fill_gaps(gaze, open_ if open_.any() else problem.valid, clip_starts)
    gaze = 0.3 * gaze + 0.7 * gaze.mean(1, keepdims=True)  # eyes turn together; what differs is mostly noise
    return np.clip(whittaker(gaze, 0.3 * per_second, clip_starts), -0.7, 0.7)


def _directions(d: np.ndarray) -> np.ndarray:
    """Yaw and pitch (…,2) rad of directions (…,3) in the head frame."""
    d = d / np.linalg.norm(d, axis=-1, keepdims=True)
    return np.stack([np.arctan2(d[..., 0], d[..., 2]), np.arcsin(np.clip(d[..., 1], -1, 1))], -1)


def looks_of(names: tuple[str, ...], gaze: np.ndarray) -> np.ndarray:
    """The eyeLook coefficients that belong to a gaze, (T,E) with NaN for all others."""
    out = np.full((len(gaze), len(names)), np.nan)
    for side, (label, outward) in enumerate((("Left", 1), ("Right", -1))):
        yaw, pitch = outward * gaze[:, side, 0] / LOOK_ANGLE, gaze[:, side, 1] / LOOK_ANGLE
        for name, value in zip(LOOKS, (pitch, -pitch, -yaw, yaw)):
            if name + label in names:
                out[:, names.index(name + label)] = np.clip(value, 0, 1)
    return out
