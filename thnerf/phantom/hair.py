"""Hair, brows and lashes as strands: grown once on the head, shaded and drawn as thin lines each frame.

Shading: Kajiya & Kay 1989 ("Rendering fur with three dimensional textures").
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np

from thnerf.phantom.appearance import Look, hair_mask

# style → strands, points a strand, mm of length on top and at the sides, clearance mm (layers), pull of flow, pull of gravity
_STYLES = {
    "crop": (15000, 5, 20.0, 9.0, 5.0, 0.55, 0.05),
    "swept": (15000, 9, 75.0, 17.0, 11.0, 0.70, 0.06),
    "bob": (16000, 18, 205.0, 175.0, 12.0, 0.55, 1.6),
    "tied": (14000, 13, 150.0, 120.0, 7.0, 0.95, 0.02),
}


@dataclass(frozen=True)
class Strands:
    """N strands of P points: points (N,P,3) mm; outward (N,P,3) unit normals of the hair's surface;
    light (N,P) occlusion 0…1; colour (N,3) linear. In the head frame, neutral expression."""

    points: np.ndarray
    outward: np.ndarray
    light: np.ndarray
    colour: np.ndarray


def sample_surface(vertices: np.ndarray, faces: np.ndarray, weight: np.ndarray, count: int,
                   rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` random points on a mesh, density proportional to per-vertex `weight` (V,): (face index (N,), barycentric (N,3))."""
    corner = vertices[faces]
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    chance = area * weight[faces].mean(1)
    picked = rng.choice(len(faces), count, p=chance / chance.sum())
    a, b = np.sqrt(rng.random(count)), rng.random(count)
    return picked, np.stack([1 - a, a * (1 - b), a * b], -1)


def grow_hair(vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray, rest: np.ndarray, eyes: np.ndarray,
              mean_eyes: np.ndarray, ears: np.ndarray, look: Look) -> Strands:
    """Grow the hair of a look on the skin of a head.

    vertices, normals (V,3): the neutral head of the identity; faces (F,3): its skin only; rest (V,3): the mean head, on
    which the hairline is defined; eyes, mean_eyes (3,): the point between the eyes on both; ears (V,) bool.
    """
    from scipy.spatial import cKDTree

    count, steps, top, side, layers, pull, gravity = _STYLES[look.style]
    rng = look.rng(3)
    picked, weights = sample_surface(vertices, faces, hair_mask(rest, mean_eyes) * ~ears, count, rng)
    mix = lambda values: (values[faces[picked]] * weights[..., None]).sum(1)  # noqa: E731
    p, n = mix(vertices), mix(normals)
    root = p - eyes
    upper = np.clip((root[:, 1] - 15) / 50, 0, 1)
    length = (side + (top - side) * upper) * rng.uniform(0.75, 1.1, count)
    clearance = rng.uniform(0.4, 1.0, count) * layers * np.clip(upper + 0.45, 0, 1)
    skin = np.unique(faces)
    skin = skin[~ears[skin]]  # strands run behind the ears, not round them
    tree = cKDTree(vertices[skin])
    part = rng.choice([-1, 1]) * 18.0
    lift = 0.35 if look.style == "bob" else 1.0
    direction = _unit(lift * n + 0.35 * lift * rng.standard_normal((count, 3)) + _flow(look.style, root, part) * (1.5 - lift))
    points, outward = [p], [n]
    wave = rng.normal(0, 0.16 if look.style != "tied" else 0.05, (count, 3))
    for step in range(1, steps):
        flow = _flow(look.style, p - eyes, part)
        down = gravity * min(1.0, 2 * step / steps) * np.array([0.0, -1.0, 0.0])
        direction = _unit((1 - 0.6 * pull) * direction + pull * flow + down + wave * np.cos(step * 0.9 + picked % 7)[:, None])
        p = p + direction * (length / (steps - 1))[:, None]
        nearest = skin[tree.query(p)[1]]
        need = clearance * min(1.0, 0.35 + step / steps)
        inside = need - ((p - vertices[nearest]) * normals[nearest]).sum(-1)
        p = p + normals[nearest] * np.clip(inside, 0, 12)[:, None]
        if look.style in ("bob", "tied"):
            p = _off_the_face(p, eyes)
        points.append(p)
        outward.append(_unit(p - (eyes + (0.0, 10.0, -75.0)) * 1.0))
    path = np.stack(points, 1)
    along = np.linspace(0, 1, steps)
    light = (0.35 + 0.65 * np.clip(clearance / layers, 0, 1))[:, None] * (0.5 + 0.5 * np.minimum(1, 2.5 * along))[None]
    tint = np.exp(rng.normal(0, 0.22, count))[:, None] * np.exp(rng.normal(0, 0.05, (count, 3)))
    return Strands(path, np.stack(outward, 1), light, look.hair * tint)


def _unit(v: np.ndarray) -> np.ndarray:
    """Vectors (…,3) of length 1."""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-9)


def _flow(style: str, p: np.ndarray, part: float) -> np.ndarray:
    """The direction hair is combed in at points p (N,3) relative to the eyes, unit vectors."""
    crown = np.array([0.0, 110.0, -110.0])
    if style == "crop":
        return _unit(_unit(p - crown) + np.array([0.0, -0.25, 0.25]))
    if style == "swept":
        sides = np.clip((35 - p[:, 1:2]) / 30, 0, 1)
        return _unit(np.array([0.25, 0.30, -1.0]) * (1 - sides) + np.array([0.0, -0.8, -0.6]) * sides)
    if style == "tied":
        return _unit(np.array([0.0, 40.0, -190.0]) - p)
    away = np.sign(p[:, :1] - part)
    high = np.clip((p[:, 1:2] - 40) / 60, 0, 1)
    return _unit(np.concatenate([away * (0.15 + high), -0.9 + 0.6 * high, -0.30 * np.ones_like(high)], -1))


def _off_the_face(p: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Points (N,3) turned about the vertical axis of the head until none hangs in the face."""
    q = p - eyes - (0.0, 0.0, -80.0)
    angle, radius = np.arctan2(q[:, 0], q[:, 2]), np.hypot(q[:, 0], q[:, 2])
    limit = np.deg2rad(np.interp(q[:, 1], (-230, -110, -40, 10, 40, 64), (78, 70, 66, 56, 36, 0)))
    angle = np.where(np.abs(angle) < limit, np.copysign(limit, angle), angle)
    return np.stack([np.sin(angle) * radius, q[:, 1], np.cos(angle) * radius], -1) + eyes + (0.0, 0.0, -80.0)


@numba.njit(parallel=True, cache=True)
def shade_strands(points, outward, light, colour, rotation, translation, key_direction, key, sky, gloss):
    """Place strands (N,P,3) in the world and light them: returns (world points (N,P,3), linear RGB (N,P,3)) float32."""
    count, steps = points.shape[:2]
    world = np.empty((count, steps, 3), np.float32)
    shaded = np.empty((count, steps, 3), np.float32)
    for s in numba.prange(count):
        for j in range(steps):
            for k in range(3):
                world[s, j, k] = rotation[k, 0] * points[s, j, 0] + rotation[k, 1] * points[s, j, 1] + rotation[k, 2] * points[s, j, 2] + translation[k]
        for j in range(steps):
            a, b = max(0, j - 1), min(steps - 1, j + 1)
            tx, ty, tz = world[s, b, 0] - world[s, a, 0], world[s, b, 1] - world[s, a, 1], world[s, b, 2] - world[s, a, 2]
            norm = 1.0 / max(1e-6, np.sqrt(tx * tx + ty * ty + tz * tz))
            vx, vy, vz = -world[s, j, 0], -world[s, j, 1], -world[s, j, 2]
            inverse = 1.0 / np.sqrt(vx * vx + vy * vy + vz * vz)
            hx, hy, hz = key_direction[0] + vx * inverse, key_direction[1] + vy * inverse, key_direction[2] + vz * inverse
            inverse = 1.0 / np.sqrt(hx * hx + hy * hy + hz * hz)
            tl = (tx * key_direction[0] + ty * key_direction[1] + tz * key_direction[2]) * norm
            th = (tx * hx + ty * hy + tz * hz) * norm * inverse
            facing, up = 0.0, 0.0
            for k in range(3):
                n = rotation[k, 0] * outward[s, j, 0] + rotation[k, 1] * outward[s, j, 1] + rotation[k, 2] * outward[s, j, 2]
                facing += n * key_direction[k]
                if k == 1:
                    up = -n
            visible = min(1.0, max(0.04, 0.30 + 0.8 * facing)) * light[s, j]
            diffuse = np.sqrt(max(0.0, 1 - tl * tl)) * visible
            lobe = np.sqrt(max(0.0, 1 - th * th))
            sharp, broad = lobe**70, lobe**14
            for k in range(3):
                ambient = sky[k] * (0.65 + 0.35 * up) * light[s, j]
                tinted = key[k] * diffuse * 0.75 + ambient + key[k] * visible * broad * 0.9 * gloss
                shaded[s, j, k] = colour[s, k] * tinted + key[k] * visible * sharp * 0.045 * gloss
    return world, shaded


@numba.njit(cache=True)
def draw_strands(world, shaded, K, image, depth, bias, wide, opacity):
    """Draw strands (N,P,3) as lines into `image` (H,W,3) linear and `depth` (H,W), both changed; `bias` mm wins against the skin;
    opacity: share of a hair's colour in its pixels, from root to tip falling to half."""
    height, width = depth.shape
    for s in range(world.shape[0]):
        for j in range(world.shape[1] - 1):
            z0, z1 = world[s, j, 2], world[s, j + 1, 2]
            if z0 < 1 or z1 < 1:
                continue
            x0, y0 = K[0, 0] * world[s, j, 0] / z0 + K[0, 2], K[1, 1] * world[s, j, 1] / z0 + K[1, 2]
            x1, y1 = K[0, 0] * world[s, j + 1, 0] / z1 + K[0, 2], K[1, 1] * world[s, j + 1, 1] / z1 + K[1, 2]
            steps = int(max(abs(x1 - x0), abs(y1 - y0))) + 1
            if steps > 4000:
                continue
            for i in range(steps):
                t = (i + 0.5) / steps
                z = z0 + (z1 - z0) * t
                for dx in range(2 if wide else 1):
                    column, row = int(x0 + (x1 - x0) * t) + dx, int(y0 + (y1 - y0) * t)
                    if 0 <= column < width and 0 <= row < height and z - bias < depth[row, column]:
                        if z < depth[row, column] - 3:
                            depth[row, column] = z + 3
                        cover = opacity * (1 - 0.5 * (j + t) / (world.shape[1] - 1))
                        for k in range(3):
                            colour = shaded[s, j, k] + (shaded[s, j + 1, k] - shaded[s, j, k]) * t
                            image[row, column, k] += cover * (colour - image[row, column, k])
