"""Where the phantom sits in front of its camera."""

from __future__ import annotations

import numpy as np

from recon.model import MorphableModel
from render.camera import Camera
from render.rotations import FRONTAL

FIELD_MM = 360.0  # how much the camera sees, left to right, at the distance of the eyes


def eye_points(model: MorphableModel, shape: np.ndarray) -> np.ndarray:
    """Centres (2,3) mm of the [left, right] eyeball of an identity (S,), neutral expression."""
    vertices = model.vertices(shape, np.zeros(len(model.expression_names))).astype(np.float64)
    return np.stack([(vertices[m].min(0) + vertices[m].max(0)) / 2 for m in (model.regions["eye_left"], model.regions["eye_right"])])


def rest_translation(camera: Camera, eyes: np.ndarray) -> np.ndarray:
    """Where a head at rest is: translation (3,) mm that puts the point between its eyes (3,) slightly above the image centre."""
    distance = camera.K[0, 0] * FIELD_MM / camera.width
    return np.array([0.0, -0.05 * FIELD_MM, distance]) - FRONTAL @ eyes
