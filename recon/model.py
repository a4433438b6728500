"""The linear morphable face model: coefficients in, vertices out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

import numpy as np

from render.files import InputError

DEFAULT_MODEL = "default"


@dataclass(frozen=True)
class Embedding:
    """Landmarks as points on the mesh: faces (N,) triangle indices, barycentric (N,3)."""

    faces: np.ndarray
    barycentric: np.ndarray


@dataclass(frozen=True)
class MorphableModel:
    """Linear 3D morphable model (Blanz & Vetter 1999): ``mean + shape · shape_basis + expression · expression_basis``.

    mean (V,3) mm, shape_basis (S,V,3) scaled so that a coefficient of 1 is one standard deviation,
    expression_basis (E,V,3), faces (F,3) int, expression_names (E,). landmarks: Embedding by scheme
    ('mediapipe478', 'ibug68'). regions: named vertex masks (V,) bool ('face', 'eye_left', 'eye_right',
    'teeth_upper', 'teeth_lower', 'tongue', 'scalp', 'neck' where the model has them).
    Model space: mm, y up, z out of the face, +x to the subject's left.
    """

    model_id: str
    mean: np.ndarray
    shape_basis: np.ndarray
    expression_basis: np.ndarray
    faces: np.ndarray
    expression_names: tuple[str, ...]
    landmarks: Mapping[str, Embedding]
    regions: Mapping[str, np.ndarray] = field(default_factory=dict)
    eye_centres: np.ndarray | None = None  # (2,3) mm, [left, right], of the mean head

    def vertices(self, shape: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Coefficients → vertices. shape (…,S) or shorter, expression (…,E); returns (…,V,3) mm float32.

        Raises ValueError when there are more coefficients than the model has.
        """
        shape, expression = np.asarray(shape, np.float32), np.asarray(expression, np.float32)
        if shape.shape[-1] > len(self.shape_basis) or expression.shape[-1] != len(self.expression_basis):
            raise ValueError(f"model {self.model_id} takes up to {len(self.shape_basis)} shape and exactly {len(self.expression_basis)} expression coefficients, got {shape.shape[-1]} and {expression.shape[-1]}")
        identity = np.tensordot(shape, self.shape_basis[: shape.shape[-1]], 1)
        return self.mean + identity + np.tensordot(expression, self.expression_basis, 1)

    def points(self, vertices: np.ndarray, scheme: str) -> np.ndarray:
        """Landmarks of a scheme on posed vertices (…,V,3) → (…,N,3). Raises KeyError for an unknown scheme."""
        e = self.landmarks[scheme]
        return (vertices[..., self.faces[e.faces], :] * e.barycentric[..., None].astype(vertices.dtype)).sum(-2)
