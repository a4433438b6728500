"""What a detector does to landmarks: where it puts them, against the surface points that they are embedded in.

A detector is a regression: it follows the head's pitch by three quarters, keeps lips nearer to an average mouth than they are, and
sees the chin of one face shape higher than that of another. Over many renders with known truth this is nearly linear in
what is shown, so a fit that places its landmarks *where the detector would see them* is freed of most of the bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from render.rotations import head_angles, matrix_to_axis_angle

REACH = 0.8  # rad; turned farther, the response stays what it is there


@dataclass(frozen=True)
class Response:
    """Displacement of N landmarks in the head frame, mm: ``offset + yaw·angles[0] + pitch·angles[1] + shape·… + expression·…``.

    offset (N,3), angles (2,N,3) per rad of head yaw and pitch, shape (S',N,3) for the first S' coefficients, expression (E,N,3).
    """

    offset: np.ndarray
    angles: np.ndarray
    shape: np.ndarray
    expression: np.ndarray

    def problems(self, landmarks: int, shapes: int, expressions: int) -> str:
        """What does not fit a model of so many landmarks, shape and expression coefficients; '' when all does."""
        fits = (self.offset.shape == (landmarks, 3) and self.angles.shape == (2, landmarks, 3)
                and self.shape.shape == (len(self.shape), landmarks, 3) and len(self.shape) <= shapes
                and self.expression.shape == (expressions, landmarks, 3))
        finite = all(np.isfinite(a).all() for a in (self.offset, self.angles, self.shape, self.expression))
        return "" if fits and finite else "the response of a detector must be finite and match the landmarks and coefficients"


def turned(angles: np.ndarray, R: np.ndarray) -> np.ndarray:
    """The part of a response that follows the pose: angles (2,N,3) mm per rad, R (T,3,3) head to camera → (T,N,3) mm."""
    seen = np.clip(head_angles(matrix_to_axis_angle(R))[..., :2], -REACH, REACH)
    return np.tensordot(seen, angles, 1)


def decode_response(data: Mapping[str, np.ndarray], prefix: str) -> Response | None:
    """The response stored under a prefix by `encode_response`, or None. Raises KeyError when a part is missing."""
    if f"{prefix}/offset" not in data:
        return None
    return Response(*(data[f"{prefix}/{name}"].astype(np.float32) for name in ("offset", "angles", "shape", "expression")))


def encode_response(response: Response, prefix: str) -> dict[str, np.ndarray]:
    """Arrays of a response for an .npz: half precision is 0.01 mm here."""
    return {f"{prefix}/{name}": getattr(response, name).astype(np.float16) for name in ("offset", "angles", "shape", "expression")}
