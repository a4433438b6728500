"""The motion of a Track, in the coefficients of another face model.

Both heads are laid over the default model (landmarks, then a smooth warp), which gives them corresponding points all over the face.
The target's identity is fitted to the source's neutral face; then each frame's motion of those points is explained by the target's
expressions within their bounds and by a small rigid motion, which joins the head pose (Sumner & Popović 2004 transfer motion in the
same spirit, triangle by triangle). The picture that the camera sees stays where it was, also when the target's head is of another size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recon.model import Embedding, MorphableModel, load_model
from recon.quadratic import bounded_minimum
from recon.smooth import whittaker
from recon.gaze import looks_of
from recon.subject import Subject
from recon.surface import closest_points, similarity, warp
from recon.track import Track
from render.files import InputError, check_number
from render.raster import vertex_normals
from render.rotations import axis_angle_to_matrix, matrix_to_axis_angle

CHUNK = 128
REACH = 10.0  # mm beyond which a point of the default face has no counterpart
SHAPE_RIDGE = 2.0  # mm²: neighbouring points err together, so a few of them count as one
RIDGE, NAMED = 0.0005, 0.3  # pull towards zero, or towards the source's weight of the same name, in parts of an expression's own weight
ROUNDS, SHAPE_ROUNDS = 6, 12
UNSEEN = 0.02  # mm RMS over the face: expressions that move it less are copied by name
LIMIT = 3.0  # of statistical components


def dense_points(model: MorphableModel) -> tuple[Embedding, np.ndarray]:
    """The default model's face vertices on `model`: an Embedding of N points and weights (N,), 0 where there is no counterpart."""
    default = load_model()
    skin = default.regions["skin"] & ~default.regions["mouth_inside"]
    chosen = np.flatnonzero((default.regions["face"] | default.regions["lips"] | default.regions["eyelids"]) & skin)
    normals = vertex_normals(default.mean, default.faces)[chosen]
    if model.model_id == default.model_id:
        found, gap = closest_points(default.mean[chosen], default.mean, default.faces, normals)
        return found, np.ones(len(chosen))
    over = warp(default.points(default.mean, "ibug68"), model.points(model.mean, "ibug68"))
    eyes = sum((m for n, m in model.regions.items() if n.startswith("eye_")), np.zeros(len(model.mean), bool))
    rows = np.flatnonzero(~eyes[model.faces].any(1))
    found, gap = closest_points(over(default.mean[chosen]), model.mean, model.faces[rows], normals)
    return Embedding(rows[found.faces], found.barycentric), np.where(gap < REACH, np.exp(-((gap / REACH) ** 2)), 0.0)


def _at(model: MorphableModel, points: Embedding, vertices: np.ndarray) -> np.ndarray:
    """Points of an embedding on vertices (…,V,3)."""
    return (vertices[..., model.faces[points.faces], :] * points.barycentric[..., None]).sum(-2)


def _moving(model: MorphableModel, points: Embedding, shape: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Points (T,N,3) of T expressions (T,E), joints included."""
    if model.joints is None:
        neutral = _at(model, points, model.vertices(shape, np.zeros(len(model.expression_names))))
        return neutral + np.tensordot(expression.astype(np.float32), _at(model, points, model.expression_basis), 1)
    parts = [_at(model, points, model.vertices(shape, expression[i : i + CHUNK])) for i in range(0, len(expression), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(points.faces), 3), np.float32)


class _Target:
    """The target model on the dense points, fitted to a source's neutral face (N,3) mm."""

    def __init__(self, model: MorphableModel, points: Embedding, weights: np.ndarray, neutral: np.ndarray) -> None:
        self.model, self.points, self.weights = model, points, weights
        mean, shapes = (_at(model, points, a).astype(np.float64) for a in (model.mean, model.shape_basis))
        flat = (shapes * np.sqrt(weights)[:, None]).reshape(len(shapes), -1)
        system = flat @ flat.T + SHAPE_RIDGE * np.eye(len(shapes))
        self.shape = np.zeros(len(shapes))
        for _ in range(SHAPE_ROUNDS):
            self.scale, self.R, self.t = similarity(neutral, mean + np.tensordot(self.shape, shapes, 1), weights)
            wanted = self.place(neutral)
            if not len(shapes):
                break
            self.shape = np.clip(np.linalg.solve(system, flat @ ((wanted - mean) * np.sqrt(weights)[:, None]).ravel()), -4, 4)
        self.neutral = mean + np.tensordot(self.shape, shapes, 1)
        self.misfit = self.place(neutral) - self.neutral
        self.basis = _at(model, points, model.expression_basis).astype(np.float64)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points of the source's space in the target's."""
        return self.scale * points @ self.R.T + self.t

    def exact(self, expression: np.ndarray) -> np.ndarray:
        """Points (T,N,3) of expressions (T,E)."""
        if self.model.joints is None:
            return self.neutral + np.tensordot(expression, self.basis, 1)
        return _moving(self.model, self.points, self.shape.astype(np.float32), expression).astype(np.float64)


def retarget(track: Track, source: MorphableModel, target: MorphableModel, smoothing: float = 0.04) -> tuple[Track, dict[str, Any]]:
    """The same performance in the coefficients of `target`, and a report.

    track: of the model `source`. smoothing: strength of the zero-lag smoothing of what is found, as `FitConfig.expression_smoothing`; no
    clip border is crossed. eyeLook expressions follow the gaze, mouthClose stays below jawOpen, expressions that do not move the
    face (tongueOut) are copied by name. Report: identity_mm (mean distance of the neutral faces), residual_mm and residual_p95_mm
    (of the motion, over points and frames), worst_frame, frame_mean_mm and frame_p95_mm (T,), scale, points.
    Raises ValueError when the track belongs to another model.
    """
    if track.model_id != source.model_id or track.expression_names != source.expression_names:
        raise ValueError(f"the track belongs to the face model {track.model_id}, not to {source.model_id}")
    (here, weights), (there, other) = dense_points(source), dense_points(target)
    weights = weights * other
    if (weights > 0).sum() < 100:
        raise ValueError(f"the face models {source.model_id} and {target.model_id} share too little of the face")
    neutral = _moving(source, here, track.shape, np.zeros((1, len(source.expression_names)), np.float32))[0].astype(np.float64)
    fitted = _Target(target, there, weights, neutral)
    lower, upper = _bounds(target)
    outlook = _turned(track.gaze.astype(np.float64), np.repeat(fitted.R[None], len(track), 0))  # the eyes keep looking where they looked
    given = _given(track, target, fitted, outlook)
    ridge, lean = _lean(track, source, target)
    expression, rotation, translation = np.zeros((len(track), len(lower))), np.zeros((len(track), 3)), np.zeros((len(track), 3))
    for chunk in _chunks(len(track)):
        wanted = fitted.place(_moving(source, here, track.shape, track.expression[chunk]).astype(np.float64)) - fitted.misfit
        expression[chunk], rotation[chunk], translation[chunk] = _explain(fitted, wanted, given[chunk], lower, upper, ridge, lean[chunk])
    strength = smoothing * (track.fps / 25) ** 4
    smooth = lambda x: whittaker(x, strength, track.clip_starts)  # noqa: E731
    expression, rotation, translation = np.clip(smooth(expression), lower, upper), smooth(rotation), smooth(translation)
    expression = np.where(np.isfinite(given), given, expression)
    _close(expression, target.expression_names)
    turn = axis_angle_to_matrix(rotation)
    means, tails = np.zeros(len(track)), np.zeros(len(track))
    for chunk in _chunks(len(track)):
        wanted = fitted.place(_moving(source, here, track.shape, track.expression[chunk]).astype(np.float64)) - fitted.misfit
        found = fitted.exact(expression[chunk]) @ np.swapaxes(turn[chunk], -1, -2) + translation[chunk, None]
        gap = np.linalg.norm(found - wanted, axis=-1)[:, weights > 0]
        means[chunk], tails[chunk] = gap.mean(1), np.percentile(gap, 95, axis=1)
    report = {"frames": len(track), "source": source.model_id, "target": target.model_id, "points": int((weights > 0).sum()), "scale": fitted.scale,
              "identity_mm": float(np.average(np.linalg.norm(fitted.misfit, axis=1), weights=weights)), "residual_mm": float(means.mean()) if len(track) else 0.0,
              "residual_p95_mm": float(tails.mean()) if len(track) else 0.0, "worst_frame": int(means.argmax()) if len(track) else 0,
              "frame_mean_mm": means.round(4).tolist(), "frame_p95_mm": tails.round(4).tolist()}
    pose = axis_angle_to_matrix(track.rotation.astype(np.float64)) @ fitted.R.T
    moved = np.einsum("tij,tj->ti", pose, translation - fitted.t) + fitted.scale * track.translation
    gaze = _turned(outlook, np.swapaxes(turn, -1, -2))
    note = {n: report[n] for n in ("source", "identity_mm", "residual_mm", "residual_p95_mm")}
    out = track.replace(model_id=target.model_id, shape=fitted.shape, expression=expression, expression_names=target.expression_names,
                        rotation=matrix_to_axis_angle(pose @ turn), translation=moved, gaze=gaze, meta={**track.meta, "retarget": note})
    return out, report


def _chunks(frames: int) -> list[slice]:
    return [slice(i, min(i + CHUNK, frames)) for i in range(0, frames, CHUNK)]


def _bounds(model: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of each expression, (E,)."""
    if model.bounds is not None:
        low, high = model.bounds.T.astype(np.float64)
        shut = low == high  # a whole surface tells more components apart than landmarks do; angles stay with pose and gaze
        if model.joints is not None:
            shut[model.joints.columns] = False
        return np.where(shut, -LIMIT, low), np.where(shut, LIMIT, high)
    units = "jawOpen" in model.expression_names
    return np.full(len(model.expression_names), 0.0 if units else -LIMIT), np.full(len(model.expression_names), 1.0 if units else LIMIT)


def _given(track: Track, target: MorphableModel, fitted: _Target, gaze: np.ndarray) -> np.ndarray:
    """Expressions that geometry does not decide, (T,E) with NaN for all others; gaze (T,2,2) rad in the target's head frame."""
    out = looks_of(target.expression_names, gaze)
    weak = np.sqrt((fitted.basis**2).sum(-1).mean(1)) < UNSEEN
    for i in np.flatnonzero(weak):
        name = target.expression_names[i]
        same = name in track.expression_names and not (target.joints is not None and i in target.joints.columns)
        out[:, i] = track.column(name) if same else 0.0
    return out


def _lean(track: Track, source: MorphableModel, target: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """Relative strength (E,) and centre (T,E) of the pull on each expression: between models that both have ARKit's weights a name means something."""
    ridge, lean = np.full(len(target.expression_names), RIDGE), np.zeros((len(track), len(target.expression_names)))
    if "jawOpen" in source.expression_names and "jawOpen" in target.expression_names:
        for i, name in enumerate(target.expression_names):
            if name in source.expression_names:
                ridge[i], lean[:, i] = NAMED, track.column(name)
    return ridge, lean


def _close(expression: np.ndarray, names: tuple[str, ...]) -> None:
    """Keep mouthClose at or below jawOpen, in place."""
    if {"mouthClose", "jawOpen"} <= set(names):
        i, j = names.index("mouthClose"), names.index("jawOpen")
        expression[:, i] = np.minimum(expression[:, i], expression[:, j])


def _explain(fitted: _Target, wanted: np.ndarray, given: np.ndarray, lower: np.ndarray, upper: np.ndarray,
             ridge: np.ndarray, lean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expressions (T,E), rotation vectors (T,3) and translations (T,3) that bring the target's points to `wanted` (T,N,3).

    Gauss–Newton in a box. The motion is linear in everything but rotations, so each round corrects for what the joints and the rigid
    motion really do; the normal equations stay the same.
    """
    E, T, root = len(fitted.basis), len(wanted), np.sqrt(fitted.weights)[:, None]
    centre = fitted.weights @ fitted.neutral / fitted.weights.sum()
    arm = fitted.neutral - centre
    rigid = np.stack([*(np.cross(axis, arm) for axis in np.eye(3)), *(np.broadcast_to(axis, arm.shape) for axis in np.eye(3))])
    flat = (np.concatenate([fitted.basis, rigid]) * root).reshape(E + 6, -1)
    H = flat @ flat.T
    pull = ridge * np.diag(H)[:E]
    H[np.diag_indices(E)] += pull
    H[np.diag_indices(E + 6)] += 1e-6 * max(float(np.diag(H).max()), 1.0)
    low, high = (np.repeat(np.concatenate([b, np.full(6, big)])[None], T, 0) for b, big in ((lower, -1e3), (upper, 1e3)))
    fixed = np.isfinite(given)
    low[:, :E], high[:, :E] = np.where(fixed, given, low[:, :E]), np.where(fixed, given, high[:, :E])
    e = np.clip(np.zeros((T, E)), low[:, :E], high[:, :E])
    R, t = np.repeat(np.eye(3)[None], T, 0), np.zeros((T, 3))
    names = fitted.model.expression_names
    close, jaw = (names.index("mouthClose"), names.index("jawOpen")) if {"mouthClose", "jawOpen"} <= set(names) else (None, None)
    stacked = np.repeat(H[None], T, 0)
    for round_ in range(ROUNDS):
        local = (wanted - t[:, None]) @ R
        left = local - fitted.exact(e) + np.tensordot(e, fitted.basis, 1)
        g = (left * root).reshape(T, -1) @ flat.T
        g[:, :E] += pull * lean
        top = high.copy()
        if close is not None:
            top[:, close] = np.minimum(top[:, close], np.maximum(e[:, jaw], 0.02) if round_ else 1.0)
        z = bounded_minimum(stacked, g, np.concatenate([e, np.zeros((T, 6))], 1), np.minimum(low, top), top)
        e = z[:, :E]
        turn = axis_angle_to_matrix(z[:, E : E + 3])
        t = np.einsum("tij,tj->ti", R, centre - turn @ centre + z[:, E + 3 :]) + t
        R = R @ turn
    return e, matrix_to_axis_angle(R), t


def _turned(gaze: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Gaze (T,2,2) rad of a head frame in another, `rotation` (T,3,3) from the one to the other."""
    yaw, pitch = gaze[..., 0], gaze[..., 1]
    direction = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)
    d = np.einsum("tij,tsj->tsi", rotation, direction)
    return np.stack([np.arctan2(d[..., 0], d[..., 2]), np.arcsin(np.clip(d[..., 1], -1, 1))], -1)


def retarget_file(track: Path, model: str, out: Path, source: str | None = None, smoothing: float = 0.04) -> dict[str, Any]:
    """``thnerf retarget``: read a Track (.npz or subject folder), write it for another model, return the report.

    source: face model of the track, needed when it is neither the default nor a subject's. Raises InputError on bad input.
    """
    if out.suffix.lower() != ".npz":
        raise InputError(f"{out} must end in .npz; a track is written as one")
    check_number("--smoothing", smoothing, 0, 1000)
    subject = Subject.open(track) if track.is_dir() else None
    found = subject.track if subject else Track.load(track)
    if source is None and subject is None and found.model_id != load_model().model_id:
        raise InputError(f"{track} belongs to the face model {found.model_id}; name its file with --source")
    origin = load_model(source) if source else subject.model if subject else load_model()
    target = load_model(model)
    try:
        result, report = retarget(found, origin, target, smoothing)
    except ValueError as error:
        raise InputError(f"{error}; name the right files with --source and --model") from None
    result.save(out)
    return {"file": str(out), **report}
