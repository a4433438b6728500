"""Lips that touch where the footage shows them touch.

The fit weighs all landmarks at once and shrinks what only few of them tell: lips that meet over an open jaw, as for /p b m/, come out a few
millimetres apart. Here the lips of a finished Track are brought as close as the detected inner lips are; the jaw stays.
"""

from __future__ import annotations

import numpy as np

from recon import landmarks as lm
from recon.model import MorphableModel
from recon.quadratic import project
from recon.track import Track
from render.rotations import axis_angle_to_matrix

SURE, UNSURE = 2.5, 6.0
"""Detected gaps in mm up to which the lips follow the detector, and from which the fit is believed: it knows how far a mouth is open."""
PRESS = {"mouthPressLeft": 0.25, "mouthPressRight": 0.25, "mouthRollLower": 0.10, "mouthRollUpper": 0.06}
"""How lips that touch are pressed together at most: a neutral mesh still has a gap, in which a detector sees lips parted by 1 to 2 mm."""


def lips_as_seen(track: Track, points: np.ndarray, model: MorphableModel) -> Track:
    """A Track whose inner lips are no further apart than detected landmarks (T,478|68,2) px of its own picture say, where these nearly touch; nothing opens.

    First mouthClose rises, up to jawOpen, then what else parts the lips shrinks, then they are pressed. Frames that are not valid stay as they are, and so does a Track of a model without these two coefficients.
    """
    names, scheme = track.expression_names, lm.SCHEMES[points.shape[1]]
    if not {"mouthClose", "jawOpen"} <= set(names) or names != model.expression_names or scheme not in model.landmarks:
        return track
    upper, lower = np.array(lm.LIP_PAIRS[points.shape[1]]).T
    height = lambda vertices: model.points(np.asarray(vertices, np.float64), scheme)[..., 1]  # noqa: E731
    parting = lambda y: (y[..., upper] - y[..., lower]).mean(-1)  # noqa: E731 - linear in the coefficients
    neutral = float(parting(height(model.vertices(track.shape, np.zeros(len(names))))))
    opens = parting(height(model.expression_basis))
    close, jaw = names.index("mouthClose"), names.index("jawOpen")
    if opens[close] > -1:
        return track
    e = track.expression.astype(np.float64)
    with np.errstate(invalid="ignore"):
        seen = lm.inner_lip_gap(points) * track.translation[:, 2] / track.camera.K[1, 1]  # mm
    wanted = np.where(track.valid & np.isfinite(seen), seen, np.inf)
    trust = np.clip((UNSURE - wanted) / (UNSURE - SURE), 0, 1)
    excess = np.where(trust > 0, trust * np.maximum(neutral + e @ opens - wanted, 0), 0)
    rise = np.minimum(np.maximum(e[:, jaw] - e[:, close], 0), excess / -opens[close])
    e[:, close] += rise
    excess += rise * opens[close]
    parts = np.array([n.startswith("mouth") for n in names]) & (opens > 0)
    total = e[:, parts] @ opens[parts]
    share = np.clip(excess / np.maximum(total, 1e-6), 0, 1)
    e[:, parts] *= 1 - share[:, None]
    excess -= share * total
    press = np.array([PRESS.get(n, 0.0) for n in names])
    if press @ opens < -0.1:
        e = np.maximum(e, np.clip(excess / -(press @ opens), 0, 1)[:, None] * press)
    return track.replace(expression=e)


def landmark_shift(before: Track, after: Track, model: MorphableModel, count: int) -> np.ndarray:
    """By how many px (T,N,2) the landmarks of a Track move when its expressions become those of another with the same shape and poses; count: 478 or 68 landmarks. 0 where the model has none such."""
    scheme, moved = lm.SCHEMES[count], np.zeros((len(before), count, 2))
    changed = np.flatnonzero((before.expression != after.expression).any(1) & before.valid)
    if scheme not in model.landmarks or not len(changed):
        return moved
    neutral, basis = model.points(model.vertices(before.shape, np.zeros(len(model.expression_basis))), scheme), model.points(model.expression_basis, scheme)
    R, t, focal = axis_angle_to_matrix(before.rotation[changed]), before.translation[changed], before.camera.K[0, 0]
    there, here = (project(neutral + np.tensordot(track.expression[changed], basis, 1), R, t, focal)[1] for track in (after, before))
    moved[changed] = there - here
    return moved
