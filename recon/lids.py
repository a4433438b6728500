"""Lids at rest: what of eyeBlink is a blink, and what is how this person's lids are held.

Lids follow the eyes, and the eyes hold the camera while the head nods. Of that pitch of the eyes a detector's irises show only a third, so
that eyeLookDown comes out too small and eyeBlink takes up the rest of the lids' way; so it does for a person whose lids rest lower than the model's.
Both are the same whenever the head is turned the same way, and a blink is over in a quarter of a second: the level that the open
eyes of a clip keep to, as a function of the head's angles, is told from blinks by how little of the time these take.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from render.rotations import head_angles

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
LEVEL = 0.1  # expectile that is the open eye's: a blink above it weighs a ninth of what lies below (Newey & Powell 1987)
HIGHEST = 0.3  # eyes that are shut further than this are not at rest
RIDGE = 1.0  # in frames: a few of them say little about how the lids are held
ROUNDS = 12
YAW, PITCH = 0.5, 0.3  # rad, the unit of either angle


def blinks_alone(expression: np.ndarray, names: Sequence[str], rotation: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Expressions (T,E) with eyeBlink counted from the level of the person's open eyes: 0 there, 1 still shut; all others as they are.

    rotation (T,3): the head's. The level is found in the frames with `valid` (T,). Names without eyeBlink: nothing changes.
    """
    columns = [names.index(name) for name in BLINKS if name in names]
    if not columns:
        return expression
    yaw, pitch = (head_angles(rotation)[:, :2] / (YAW, PITCH)).T
    X = np.stack([np.ones(len(yaw)), yaw, pitch, yaw**2, pitch**2], 1)
    out = np.array(expression, np.float64)
    for column in columns:
        level = np.clip(X @ _expectile(X[valid], out[valid, column]), 0, HIGHEST)
        out[:, column] = np.clip((out[:, column] - level) / (1 - level), 0, 1)
    return out


def _expectile(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients (C,) of the LEVEL expectile of y (T,) by X (T,C): least squares in which what lies below weighs more, reweighted."""
    w = np.full(len(y), 0.5)
    for _ in range(ROUNDS):
        coefficients = np.linalg.solve((X * w[:, None]).T @ X + RIDGE * np.eye(X.shape[1]), (X * w[:, None]).T @ y)
        w = np.where(y > X @ coefficients, LEVEL, 1 - LEVEL)
    return coefficients
