"""The phantom's geometry: the morphable head, its neck prolonged into a dressed bust, posed by a Track."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.assets import asset
from recon.model import MorphableModel
from recon.track import Track
from render.raster import vertex_normals
from render.rotations import FRONTAL, axis_angle_to_matrix, from_head_angles
from thnerf.phantom.appearance import BROWS, UPPER_LIDS, Look, atlas_coordinates
from thnerf.phantom.geometry import eye_points, rest_translation
from thnerf.phantom.hair import Strands, grow_hair, sample_surface
from thnerf.phantom.shading import collar

SKIN, EYE_LEFT, EYE_RIGHT, TEETH_UPPER, TONGUE, MOUTH, TEETH_LOWER = range(7)  # skin is cloth below the collar
_TORSO_CENTRE = np.array([0.0, -260.0, -90.0])  # mm from the eyes, model axes: what the torso's similarity turns and scales about


@dataclass(frozen=True)
class Figure:
    """A person ready to be posed.

    neutral (N,3): the identity without expression, mm; faces (F,3), material (F,) int8; rest (V,3): undeformed
    positions relative to the eyes, for textures; uv (V,2) atlas px;
    follow (V,): 1 moves with the head … 0 with the torso; bust (B,3): vertices after the head's, in model space;
    cloth_offset (V,3): how far the cloth stands off the skin;
    eye_centres (2,3) and eyes (3,) of this identity. hair in the head frame; brows and lashes are rooted on the skin
    at (face, barycentric) with directions in the head frame.
    """

    model: MorphableModel
    neutral: np.ndarray
    look: Look
    faces: np.ndarray
    material: np.ndarray
    rest: np.ndarray
    uv: np.ndarray
    follow: np.ndarray
    bust: np.ndarray
    cloth_offset: np.ndarray
    eye_masks: tuple[np.ndarray, np.ndarray]
    eye_centres: np.ndarray
    eyes: np.ndarray
    hair: Strands
    brows: tuple[np.ndarray, np.ndarray, np.ndarray]

    def pose(self, track: Track, index: int) -> np.ndarray:
        """World vertices (V,3) mm of frame `index`: head by its pose, torso by its similarity, neck in between."""
        expression = track.expression[index]
        active = np.flatnonzero(expression)
        local = self.neutral + np.tensordot(expression[active], self.model.expression_basis[active], 1)
        for side, mask in enumerate(self.eye_masks):
            yaw, pitch = track.gaze[index, side]
            turn = FRONTAL @ axis_angle_to_matrix(from_head_angles(np.array([yaw, pitch, 0.0])))
            local[mask] = (local[mask] - self.eye_centres[side]) @ turn.T + self.eye_centres[side]
        local = np.concatenate([local, self.bust])
        local += self.cloth_offset
        head = local @ axis_angle_to_matrix(track.rotation[index]).T + track.translation[index]
        return self.follow[:, None] * head + (1 - self.follow[:, None]) * self._torso(local, track, index)

    def _torso(self, local: np.ndarray, track: Track, index: int) -> np.ndarray:
        """Model points (V,3) carried by the torso of frame `index`."""
        tx, ty, scale, angle = (track.torso[index].astype(np.float64) if track.torso.shape[1] >= 4 else np.zeros(4))[:4]
        rest = rest_translation(track.camera, self.eyes)
        centre = FRONTAL @ (self.eyes + _TORSO_CENTRE) + rest
        turn = axis_angle_to_matrix(np.array([0.0, 0.0, angle])) * np.exp(scale)
        shift = np.array([tx, ty, 0.0]) * track.camera.width / track.camera.K[0, 0] * centre[2]
        return (local @ FRONTAL.T + rest - centre) @ turn.T + centre + shift


def build_figure(model: MorphableModel, shape: np.ndarray, look: Look) -> Figure:
    """Dress an identity: materials, neck, bust, hair, brows and lashes."""
    neutral = np.zeros(len(model.expression_names))
    vertices = model.vertices(shape, neutral).astype(np.float64)
    mean_centres, centres = eye_points(model, np.zeros(1)), eye_points(model, shape)
    mean_eyes, eyes = mean_centres.mean(0), centres.mean(0)
    with np.load(asset("bust.npz"), allow_pickle=False) as data:
        bust, bust_faces, joint = data["skin_vertices"].astype(np.float64), data["skin_faces"].astype(np.int64), data["skin_head_vertex"]
    rest = np.concatenate([model.mean.astype(np.float64), bust]) - mean_eyes
    bust = _attach(bust, joint, model.mean, vertices)
    bust = bust + _lower_arms(rest[len(vertices) :]) * (joint < 0)[:, None]
    welded = np.where(joint >= 0, joint, np.arange(len(bust)) + len(vertices))  # head and bust share the vertices where they meet
    faces = np.concatenate([model.faces, welded[bust_faces]])
    material = _materials(model)
    skin = model.faces[material == SKIN]
    everything = np.concatenate([vertices, bust])
    stand = np.interp(-collar(*rest.T), (-4, 0, 5, 16, 30), (0, 0, 5, 6, 4))
    offset = vertex_normals(everything, np.concatenate([skin, welded[bust_faces]])) * stand[:, None]
    normals = vertex_normals(vertices, skin).astype(np.float64)
    return Figure(
        model, vertices, look, np.ascontiguousarray(faces, np.int32), np.concatenate([material, np.full(len(bust_faces), SKIN, np.int8)]),
        np.ascontiguousarray(rest, np.float32), atlas_coordinates(rest, np.zeros(3)).astype(np.float32), _follow(rest), bust, offset,
        (model.regions["eye_left"], model.regions["eye_right"]), centres, eyes,
        grow_hair(vertices, normals, skin, model.mean, eyes, mean_eyes, model.regions["ears"], look), _brows(model, skin, look.rng(4)))


def _materials(model: MorphableModel) -> np.ndarray:
    """Material of each face of the model (F,) int8."""
    material = np.full(len(model.faces), SKIN, np.int8)
    regions = (
        ("eye_left", EYE_LEFT), ("eye_right", EYE_RIGHT), ("teeth_upper", TEETH_UPPER), ("teeth_lower", TEETH_LOWER),
        ("tongue", TONGUE), ("mouth_inside", MOUTH))
    for name, value in regions:
        material[model.regions[name][model.faces].all(1)] = value
    return material


def _attach(bust: np.ndarray, joint: np.ndarray, mean: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Move the bust's upper edge to the neck of an identity; the rest of it follows with distance."""
    edge = np.flatnonzero(joint >= 0)
    moved = vertices[joint[edge]] - mean[joint[edge]]
    distance = np.linalg.norm(bust[:, None] - bust[edge][None], axis=-1)
    weight = np.exp(-distance / 12)
    fade = np.exp(-distance.min(1) / 60)
    out = bust + fade[:, None] * (weight @ moved) / np.maximum(weight.sum(1, keepdims=True), 1e-12)
    out[edge] = vertices[joint[edge]]
    return out


def _follow(rest: np.ndarray) -> np.ndarray:
    """How much each head vertex moves with the head (1) rather than the torso (0): the neck is a smooth blend."""
    height = np.clip((rest[:, 1] + 100 + 0.7 * (rest[:, 2] + 60) + 62) / 68, 0, 1)
    return height * height * (3 - 2 * height)


def _lower_arms(rest: np.ndarray) -> np.ndarray:
    """Displacement (B,3) that lowers the arms of the bust, smoothly from the shoulders outwards."""
    out = np.zeros_like(rest)
    for side in (-1, 1):
        bend = np.clip((side * rest[:, 0] - 120) / 70, 0, 1) ** 2 * np.deg2rad(38)
        x, y = rest[:, 0] - side * 130.0, rest[:, 1] + 225.0
        c, s = np.cos(bend), np.sin(-side * bend)
        out[:, 0] += c * x - s * y - x
        out[:, 1] += s * x + c * y - y
    return out


def _brows(model: MorphableModel, skin: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brow hairs: (vertex indices (N,3), barycentric (N,3), direction × length mm (N,3) in the head frame)."""
    from matplotlib.path import Path as Polygon

    points = model.points(model.mean, "mediapipe478")
    corners, weights, directions = [], [], []
    for side, (upper, lower) in zip((-1, 1), BROWS):
        outline = np.concatenate([points[list(upper)], points[list(lower)][::-1]])
        grown = outline[:, :2].mean(0) + (outline[:, :2] - outline[:, :2].mean(0)) * (1.0, 1.15)
        inside = Polygon(grown)
        near = (np.abs(model.mean[:, :2] - grown.mean(0)).max(1) < 45) & (model.mean[:, 2] > outline[:, 2].min() - 25)
        picked, bary = sample_surface(model.mean.astype(np.float64), skin, near.astype(float), 9000, rng)
        spots = (model.mean[skin[picked]] * bary[..., None]).sum(1)
        keep = np.nonzero(inside.contains_points(spots[:, :2]))[0][:420]
        inner = side * grown[:, 0].max() if side < 0 else grown[:, 0].min()
        along = (side * spots[keep, 0] - side * inner) / max(1e-6, np.ptp(grown[:, 0]))
        along = np.clip(np.abs(along) if side > 0 else 1 - np.clip((spots[keep, 0] - grown[:, 0].min()) / np.ptp(grown[:, 0]), 0, 1), 0, 1)
        slope = np.interp(along, (0, 0.3, 0.7, 1), (1.1, 0.5, 0.1, -0.45)) + rng.normal(0, 0.18, len(keep))
        direction = np.stack([side * np.ones(len(keep)), slope, 0.15 * np.ones(len(keep))], -1)
        directions.append(direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(3.5, 6.5, (len(keep), 1)))
        corners.append(skin[picked[keep]])
        weights.append(bary[keep])
    return np.concatenate(corners), np.concatenate(weights), np.concatenate(directions)


def lash_curves(figure: Figure, vertices: np.ndarray, rotation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Upper lashes (N,3,3) world mm on posed vertices: they stand away from the eyeball, so they drop with the lid."""
    points = figure.model.points(vertices[: len(figure.model.mean)], "mediapipe478")
    curves = []
    for side, lid in zip((1, 0), UPPER_LIDS):  # UPPER_LIDS starts with the subject's right eye
        line = points[list(lid)]
        centre = vertices[: len(figure.model.mean)][figure.eye_masks[side]].mean(0)
        t = np.sort(rng.uniform(0.6, len(lid) - 2.0, 60))
        low = t.astype(int)
        root = line[low] + (line[low + 1] - line[low]) * (t - low)[:, None]
        out = root - centre
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        up = rotation @ np.array([0.0, 1.0, 0.0])
        length = rng.uniform(2.2, 4.0, (60, 1))
        curves.append(np.stack([root, root + 0.6 * length * out, root + length * out + 0.3 * length * up], 1))
    return np.concatenate(curves)
