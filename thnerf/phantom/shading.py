"""Per-pixel shading of the phantom (numba): skin, eyes, teeth, cloth under a key light with shadows and a soft room light."""

from __future__ import annotations

import numba
import numpy as np


@numba.vectorize(["float64(float64,float64,float64)"], cache=True)
def collar(x, y, z):
    """Signed distance (mm, + bare skin, − cloth) of rest points from the edge of the collar: a ring round the neck, lower in front."""
    forward = min(1.0, max(-1.0, (z + 75) / 60))
    return 76 + 6 * forward - np.sqrt(x * x + (z + 78) ** 2) - 0.9 * min(60.0, max(0.0, -165 - y)) + min(60.0, max(0.0, y + 150))


@numba.njit(cache=True, inline="always")
def _hash(x, y, z):
    """Repeatable noise in 0…1 of three integers."""
    h = (x * 374761393 + y * 668265263 + z * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65535.0


@numba.njit(cache=True)
def _sample(atlas, column, row, out):
    """Bilinear sample of atlas (H,W,4) into out (4,)."""
    height, width = atlas.shape[:2]
    x, y = min(max(column - 0.5, 0.0), width - 1.001), min(max(row - 0.5, 0.0), height - 1.001)
    i, j = int(x), int(y)
    fx, fy = x - i, y - j
    for k in range(4):
        out[k] = (atlas[j, i, k] * (1 - fx) + atlas[j, i + 1, k] * fx) * (1 - fy) + (atlas[j + 1, i, k] * (1 - fx) + atlas[j + 1, i + 1, k] * fx) * fy


@numba.njit(cache=True)
def _shadow(shadow, x, y, z):
    """How much of the key light arrives (0…1): 16 taps of the light's depth map (H,W) around pixel (x, y), depth z."""
    size, lit = shadow.shape[0], 0.0
    for a in range(4):
        for b in range(4):
            i, j = int(x + (a - 1.5) * 1.1), int(y + (b - 1.5) * 1.1)
            if i < 0 or j < 0 or i >= size or j >= size or shadow[j, i] > z - 4.5:
                lit += 1.0
    return lit / 16


@numba.njit(cache=True)
def _tooth(x, upper):
    """Tone of a tooth x mm from the middle of the arch: darker in the gaps between teeth and towards the back."""
    arc = abs(x) * (1 + 0.35 * min(1.0, abs(x) / 26.0))
    edges = (0.0, 8.6, 15.4, 23.0, 30.0, 37.0) if upper else (0.0, 5.4, 11.2, 18.0, 25.0, 32.0)
    gap, low = 10.0, 0.0
    for e in range(6):
        if arc >= edges[e]:
            low = edges[e]
        gap = min(gap, abs(arc - edges[e]))
    return 1.0 - 0.38 * np.exp(-((gap / 0.38) ** 2)) - 0.004 * low


@numba.njit(cache=True)
def _eye(r, eye, iris, side, albedo):
    """Fill `albedo` of an eyeball at rest position r (3,): eye (4,) its centre and radius. Returns (occlusion, gloss, gloss power)."""
    ex, ey, ez = r[0] - eye[0], r[1] - eye[1], r[2] - eye[2]
    norm = 1.0 / np.sqrt(ex * ex + ey * ey + ez * ez)
    ex, ey, ez = ex * norm, ey * norm, ez * norm
    radius = np.sqrt(ex * ex + ey * ey) * eye[3] if ez > 0 else 99.0  # mm from the axis
    white = 0.60 - 0.012 * max(0.0, radius - 6)
    albedo[0], albedo[1], albedo[2] = white, white * 0.93, white * 0.90
    spokes = 0.75 + 0.5 * _hash(int((np.arctan2(ey, ex) + 4) * 14), side - 1, 5)
    ring = min(1.0, max(0.0, (6.2 - radius) / 0.8))
    for k in range(3):
        colour = iris[k] * spokes * (1.25 if radius < 3.4 else 0.9) * min(1.0, max(0.25, (6.1 - radius) / 1.4))
        if radius < 2.3:
            colour *= max(0.0, (radius - 1.9) / 0.4)
        albedo[k] = albedo[k] * (1 - ring) + colour * ring
    return 0.62 + 0.38 * min(1.0, max(0.0, (5.6 - ey * eye[3]) / 5.0)), 1.3, 320.0  # in the upper lid's shade


@numba.njit(cache=True)
def _mouth(r, kind, lips, openness, albedo):
    """Fill `albedo` of teeth, tongue or the mouth's lining at rest position r (3,). Returns (occlusion, gloss, gloss power)."""
    behind = max(0.0, lips[1] - r[2])
    depth = np.exp(-behind / (10 + 16 * openness))
    if kind == 3 or kind == 6:
        upper = kind == 3
        tone = _tooth(r[0], upper)
        albedo[0], albedo[1], albedo[2] = 0.60 * tone, 0.55 * tone, 0.46 * tone
        occlusion = (0.25 + 0.75 * openness) * min(1.0, 1.5 * depth) * (0.95 if upper else 0.66)
        return occlusion * np.exp(-max(0.0, abs(r[0]) - 15.0) / 7.0), 0.10, 40.0
    if kind == 4:
        albedo[0], albedo[1], albedo[2] = 0.44, 0.15, 0.14
        return (0.15 + 0.75 * openness) * depth, 0.06, 20.0
    albedo[0], albedo[1], albedo[2] = 0.26, 0.07, 0.065
    return (0.22 + 0.45 * openness) * depth * depth, 0.0, 20.0


@numba.njit(cache=True)
def _cloth(r, bare, cloth, stripe, albedo):
    """Fill `albedo` of the jumper at rest position r (3,), `bare` mm from its collar (negative): weave, ribbed collar, stripes."""
    weave = 0.90 + 0.14 * _hash(int(r[0] * 1.6 + 4000), int(r[1] * 1.6 + 4000), int(r[2] * 0.8 + 4000))
    rib = 0.0
    if bare > -15:  # the band of the collar
        rib = -0.4 if bare < -13.8 else 0.16 * np.sin(np.arctan2(r[0], r[2] + 75) * 95)
    striped = stripe[3] > 0 and bare < -22 and (r[1] + 4000) % 26 < 9
    for k in range(3):
        albedo[k] = (stripe[k] if striped else cloth[k]) * (weave + rib)


@numba.njit(parallel=True, cache=True)
def shade(face, bary, faces, material, world, normals, rest, uv, atlas, eyes, iris, cloth, stripe, lips, openness,
          shadow, light_pose, light_focal, light, key, sky, ground, image):
    """Shade every covered pixel into `image` (H,W,3) float32 linear RGB, changed in place.

    face (H,W), bary (H,W,3): fragments; faces (F,3), material (F,), see figure.py; world, normals, rest (V,3), uv (V,2): per vertex;
    atlas (768,1024,4); eyes (2,3) eyeball centres in rest space and their radius in eyes[:, 3]; iris (3,); cloth (3,), stripe (4,):
    colour and 1 when there are stripes; lips (2,): rest y and z between the lips; openness: 0…1 light that gets
    into the mouth; shadow (S,S) depth seen from the light with light_pose (4,4) and light_focal px; light (3,) unit vector to the key light; key, sky, ground (3,) linear RGB.
    """
    height, width = face.shape
    for row in numba.prange(height):
        texel = np.zeros(4)
        albedo = np.zeros(3)
        n, p, r = np.zeros(3), np.zeros(3), np.zeros(3)
        for column in range(width):
            f = face[row, column]
            if f < 0:
                continue
            kind = material[f]
            n[:] = 0.0
            p[:] = 0.0
            r[:] = 0.0
            tu, tv = 0.0, 0.0
            for c in range(3):
                w, v = bary[row, column, c], faces[f, c]
                for k in range(3):
                    n[k] += w * normals[v, k]
                    p[k] += w * world[v, k]
                    r[k] += w * rest[v, k]
                tu += w * uv[v, 0]
                tv += w * uv[v, 1]
            inverse = 1.0 / max(1e-9, np.sqrt(n[0] ** 2 + n[1] ** 2 + n[2] ** 2))
            inverse_view = -1.0 / np.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2)
            facing = 0.0
            for k in range(3):
                n[k] *= inverse
                facing += n[k] * p[k] * inverse_view
            if facing < 0 and kind != 5:
                for k in range(3):
                    n[k] = -n[k]
            bare = collar(r[0], r[1], r[2])
            occlusion, gloss, power, soft = 1.0, 0.0, 20.0, 0.0
            if kind == 0 and bare > 0:
                _sample(atlas, tu, tv, texel)
                for k in range(3):
                    albedo[k] = texel[k]
                gloss, power, soft = 0.055 * texel[3], 14.0, 1.0
                behind = lips[1] - r[2]  # the inside of the lips, where it turns into the mouth
                if abs(r[0]) < 24 and abs(r[1] - lips[0]) < 9 and behind > 3:
                    occlusion = 1.0 / (1 + max(0.0, behind - 3) * 0.12)
            elif kind == 1 or kind == 2:
                occlusion, gloss, power = _eye(r, eyes[kind - 1], iris, kind, albedo)
            elif kind >= 3:
                occlusion, gloss, power = _mouth(r, kind, lips, openness, albedo)
            else:
                _cloth(r, bare, cloth, stripe, albedo)
                soft = 0.3
            lx = light_pose[0, 0] * p[0] + light_pose[0, 1] * p[1] + light_pose[0, 2] * p[2] + light_pose[0, 3]
            ly = light_pose[1, 0] * p[0] + light_pose[1, 1] * p[1] + light_pose[1, 2] * p[2] + light_pose[1, 3]
            lz = light_pose[2, 0] * p[0] + light_pose[2, 1] * p[1] + light_pose[2, 2] * p[2] + light_pose[2, 3]
            half = shadow.shape[0] / 2
            lit = _shadow(shadow, lx / lz * light_focal + half, ly / lz * light_focal + half, lz)
            if kind == 1 or kind == 2 or kind == 3 or kind == 6:
                lit = 0.5 + 0.5 * lit
            nl = n[0] * light[0] + n[1] * light[1] + n[2] * light[2]
            nf = -0.80 * n[2] - 0.6 * light[0] * n[0]  # a weak fill from the camera's other side
            frontal = 2.6 if kind == 1 or kind == 2 else 1.0  # eyes mirror a lamp nearer to the camera, or the lids would hide it
            hx, hy, hz = light[0] + frontal * p[0] * inverse_view, light[1] + frontal * p[1] * inverse_view, light[2] + frontal * p[2] * inverse_view
            nh = (n[0] * hx + n[1] * hy + n[2] * hz) / np.sqrt(hx * hx + hy * hy + hz * hz)
            fresnel = 0.4 + 2.2 * (1 - min(1.0, abs(facing))) ** 4
            highlight = gloss * max(0.0, nh) ** power * lit * (fresnel if soft == 1.0 else 1.0)
            up = 0.5 - 0.5 * n[1]
            for k in range(3):
                # light leaks round the terminator, red furthest: subsurface scattering by wrapped diffuse
                wrap = soft * (0.30, 0.14, 0.08)[k]
                diffuse = max(0.0, (nl + wrap) / (1 + wrap)) * (lit if wrap == 0 else min(1.0, lit + 0.25 * wrap))
                fill = 0.16 * max(0.0, nf)
                ambient = ground[k] + (sky[k] - ground[k]) * up
                image[row, column, k] = albedo[k] * occlusion * (key[k] * (diffuse + fill) + ambient) + key[k] * highlight * min(1.0, occlusion + 0.2)
