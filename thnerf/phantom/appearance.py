"""What the phantom looks like: everything about a person that a Track does not say, drawn from the identity seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.model import MorphableModel
from render.light import linear

# sRGB 0–255; skin from light to dark, the others as found in people
_SKIN = ((236, 196, 170), (226, 178, 148), (208, 158, 124), (178, 126, 92), (134, 90, 64), (96, 62, 44))
_HAIR = ((24, 18, 15), (44, 30, 22), (74, 48, 30), (112, 72, 40), (164, 120, 70), (120, 54, 28), (120, 116, 112))
_IRIS = ((70, 44, 24), (98, 66, 34), (104, 96, 52), (84, 112, 84), (84, 122, 150), (104, 122, 134))
_CLOTH = ((44, 62, 92), (116, 44, 48), (58, 84, 70), (88, 88, 94), (196, 188, 172), (30, 32, 38), (150, 110, 62), (84, 66, 110))
_WALL = ((176, 170, 160), (150, 160, 168), (168, 156, 146), (140, 150, 138), (186, 180, 176))
HAIR_STYLES = ("crop", "swept", "bob", "tied")
ATLAS_HEIGHT, ATLAS_WIDTH = 768, 1024
_AXIS_Z = -80.0  # mm behind the eyes: the axis of the cylinder that the skin is unrolled from
_TOP, _BOTTOM = 150.0, -230.0  # mm above the eyes: rows of the atlas

# MediaPipe-478 indices, subject's right side first where there are two
_LIPS_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146)
LIPS_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
BROWS = (((70, 63, 105, 66, 107), (46, 53, 52, 65, 55)), ((300, 293, 334, 296, 336), (276, 283, 282, 295, 285)))
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (263, 466, 388, 387, 386, 385, 384, 398, 362))
_LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (263, 249, 390, 373, 374, 380, 381, 382, 362))
_JAW = (454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234)


@dataclass(frozen=True)
class Look:
    """One person's colours (linear RGB, (3,) float64), hair style, clothes, light and room, with the seed they came from."""

    seed: int
    skin: np.ndarray
    melanin: float  # 0 light … 1 dark
    hair: np.ndarray
    iris: np.ndarray
    cloth: np.ndarray
    stripe: np.ndarray | None
    wall: np.ndarray
    style: str
    stubble: float  # 0 none … 1 heavy
    freckles: float
    key_direction: np.ndarray  # unit, world axes, towards the light
    key: np.ndarray
    warmth: float

    def rng(self, purpose: int) -> np.random.Generator:
        """A generator for one part of the person, independent of the order in which parts are made."""
        return np.random.default_rng([self.seed, 0xFACE, purpose])


def _linear(srgb: np.ndarray | tuple[float, ...]) -> np.ndarray:
    """sRGB in 0…255 → linear light in 0…1, float64."""
    return linear(np.asarray(srgb, np.float64) / 255).astype(np.float64)


def draw_look(identity: int) -> Look:
    """The look of identity seed `identity`; the same seed gives the same person."""
    rng = np.random.default_rng([identity, 0xB0D1])
    tone = float(rng.uniform(0.3, len(_SKIN) - 1.2))
    skin = _linear(_SKIN[int(tone)]) * (1 - tone % 1) + _linear(_SKIN[int(tone) + 1]) * (tone % 1)
    skin = 0.86 * skin + 0.14 * skin.mean()  # photographs of skin are less saturated than the charts
    dark = tone / (len(_SKIN) - 1)
    hair = _linear(_HAIR[int(rng.integers(0, 3))] if dark > 0.5 else _HAIR[int(rng.integers(0, len(_HAIR)))])
    iris = _linear(_IRIS[int(rng.integers(0, 2))] if dark > 0.5 else _IRIS[int(rng.integers(0, len(_IRIS)))])
    style = HAIR_STYLES[int(rng.integers(0, len(HAIR_STYLES)))]
    cloth = _linear(_CLOTH[int(rng.integers(0, len(_CLOTH)))])
    azimuth, elevation = rng.choice([-1, 1]) * rng.uniform(0.5, 0.85), rng.uniform(0.45, 0.75)
    direction = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)])
    warmth = float(rng.uniform(-0.06, 0.08))
    exposure = min(1.0, (0.33 / skin.mean()) ** 0.7)  # fair skin would burn out
    return Look(
        seed=int(identity), skin=skin, melanin=dark, hair=hair, iris=iris, cloth=cloth,
        stripe=_linear(_CLOTH[int(rng.integers(0, len(_CLOTH)))]) if rng.random() < 0.35 else None,
        wall=_linear(_WALL[int(rng.integers(0, len(_WALL)))]), style=style,
        stubble=float(rng.uniform(0.2, 0.7)) if style in ("crop", "swept") and rng.random() < 0.5 else 0.0,
        freckles=float(rng.random() < 0.4) * (1 - dark), key_direction=direction,
        key=2.0 * exposure * np.array([1 + warmth, 1.0, 1 - 1.4 * warmth]), warmth=warmth)


def atlas_coordinates(points: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """Points (…,3) of the mean head → atlas pixels (…,2) [column, row]: the skin unrolled from a cylinder.

    eyes (3,): the point between the eyes. The seam is at the back of the head.
    """
    p = np.asarray(points, np.float64) - eyes
    column = (0.5 + np.arctan2(p[..., 0], p[..., 2] - _AXIS_Z) / (2 * np.pi)) * ATLAS_WIDTH
    row = (_TOP - p[..., 1]) / (_TOP - _BOTTOM) * ATLAS_HEIGHT
    return np.stack([column, row], -1)


def hair_mask(points: np.ndarray, eyes: np.ndarray) -> np.ndarray:
    """How much hair grows at points (…,3) of the mean head, 0…1: above a hairline that runs from brow to sideburn to nape."""
    p = np.asarray(points, np.float64) - eyes
    angle = np.abs(np.rad2deg(np.arctan2(p[..., 0], p[..., 2] - _AXIS_Z)))
    line = np.interp(angle, (0, 18, 32, 42, 52, 60, 74, 86, 98, 180), (62, 64, 58, 42, 30, 6, 2, 18, -30, -62))
    # no hair on the ears, which stand out from the head
    ear = (angle > 66) & (angle < 112) & (np.abs(p[..., 0]) > 79) & (p[..., 1] < 16)
    return np.where(ear, 0.0, np.clip((p[..., 1] - line) / 7 + 0.5, 0, 1))


def paint_skin(model: MorphableModel, look: Look, eyes: np.ndarray) -> np.ndarray:
    """The unrolled skin: (768,1024,4) float32, linear albedo and gloss (strength of the highlight)."""
    import cv2

    rng = look.rng(1)
    at = atlas_coordinates(model.points(model.mean, "mediapipe478"), eyes)
    red, yellow = np.array([1.12, 0.90, 0.88]), np.array([1.02, 1.0, 0.94])
    image = np.broadcast_to(look.skin, (ATLAS_HEIGHT, ATLAS_WIDTH, 3)).copy()
    mottle = sum(_noise_image(rng, s) * a for s, a in ((60, 0.030), (18, 0.030), (5, 0.030), (1.6, 0.035)))
    image *= 1 + mottle[..., None] * np.array([0.8, 1.0, 1.15])
    pale = 1 - 0.6 * look.melanin
    for index, radius, amount in ((50, 34, 0.55), (280, 34, 0.55), (4, 20, 0.5), (205, 30, 0.3), (425, 30, 0.3), (152, 26, 0.2)):
        image *= 1 + (red - 1) * (_spot(at[index], radius) * amount * 1.6 * pale)[..., None]
    image *= 1 + (yellow - 1) * _spot(at[151], 60)[..., None]
    for lids in _LOWER_LIDS:  # the thin skin under and beside the eyes
        image *= 1 - _spot(at[list(lids)].mean(0) + (0, 8), 17)[..., None] * np.array([0.10, 0.13, 0.09])
    for lids in UPPER_LIDS:
        image *= 1 - _spot(at[list(lids)].mean(0) - (0, 6), 15)[..., None] * np.array([0.12, 0.17, 0.15])
    if look.freckles:
        _freckles(image, at, rng, look)
    if look.stubble:
        _stubble(image, at, rng, look)
    gloss = 0.35 + 0.5 * sum(_spot(at[i], r) for i, r in ((4, 22), (151, 50), (50, 24), (280, 24), (152, 20)))
    _lips(image, gloss, at, rng, look)
    for lids, width in ((UPPER_LIDS, 3), (_LOWER_LIDS, 1)):
        for lid in lids:
            line = np.zeros((ATLAS_HEIGHT, ATLAS_WIDTH), np.float32)
            cv2.polylines(line, [_fixed(at[list(lid)])], False, 1.0, width, cv2.LINE_AA, 4)
            line = cv2.GaussianBlur(line, (0, 0), 1.0)
            image *= 1 - (np.clip(line, 0, 1) * (0.75 if width == 3 else 0.35))[..., None]
    for upper, lower in BROWS:  # the shade of the small hairs under the strands
        patch = np.zeros((ATLAS_HEIGHT, ATLAS_WIDTH), np.float32)
        cv2.fillPoly(patch, [_fixed(np.concatenate([at[list(upper)], at[list(lower)][::-1]]))], 1.0, cv2.LINE_AA, 4)
        patch = cv2.GaussianBlur(patch, (0, 0), 4) * 0.45
        image = image * (1 - patch[..., None]) + look.hair * 0.8 * patch[..., None]
    return np.ascontiguousarray(np.concatenate([np.clip(image, 0.002, 1), gloss[..., None]], -1), np.float32)


def _fixed(points: np.ndarray) -> np.ndarray:
    """Pixel coordinates in OpenCV's fixed point with 4 fractional bits."""
    return np.round(points * 16).astype(np.int32)


def _noise_image(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Smooth noise over the atlas with unit deviation and correlation length `sigma` px."""
    import cv2

    noise = cv2.GaussianBlur(rng.standard_normal((ATLAS_HEIGHT, ATLAS_WIDTH)).astype(np.float32), (0, 0), sigma)
    return noise / noise.std()


def _spot(centre: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian spot on the atlas, 1 at its centre."""
    rows, columns = np.ogrid[:ATLAS_HEIGHT, :ATLAS_WIDTH]
    return np.exp(-((columns - centre[0]) ** 2 + (rows - centre[1]) ** 2) / (2 * radius**2))


def _freckles(image: np.ndarray, at: np.ndarray, rng: np.random.Generator, look: Look) -> None:
    """Small brown dots on nose and cheeks. Changes `image`."""
    import cv2

    dots = np.zeros((ATLAS_HEIGHT, ATLAS_WIDTH), np.float32)
    for index in (50, 280, 4, 205, 425, 6):
        for _ in range(22):
            where = at[index] + rng.normal(0, 24, 2)
            cv2.circle(dots, tuple(_fixed(where)), int(rng.uniform(8, 20)), float(rng.uniform(0.15, 0.5)), -1, cv2.LINE_AA, 4)
    image *= 1 - cv2.GaussianBlur(dots, (0, 0), 0.8)[..., None] * np.array([0.35, 0.5, 0.6]) * look.freckles


def _stubble(image: np.ndarray, at: np.ndarray, rng: np.random.Generator, look: Look) -> None:
    """The shade of a shaved beard around mouth, chin and jaw. Changes `image`."""
    import cv2

    area = np.zeros((ATLAS_HEIGHT, ATLAS_WIDTH), np.float32)
    inner = (205, 98, 2, 327, 425)
    cv2.fillPoly(area, [_fixed(np.concatenate([at[list(_JAW)] + (0, 14), at[list(inner)]]))], 1.0, cv2.LINE_AA, 4)
    area = cv2.GaussianBlur(area, (0, 0), 9)
    grain = np.clip(0.7 + 0.22 * _noise_image(rng, 0.8), 0, 1)
    shade = (area * grain * look.stubble * 0.6)[..., None]
    image *= 1 - shade * (1 - np.clip(look.hair / image, 0.25, 1))


def _lips(image: np.ndarray, gloss: np.ndarray, at: np.ndarray, rng: np.random.Generator, look: Look) -> None:
    """Redder lips with a soft border, fine vertical creases and a moist highlight. Changes `image` and `gloss`."""
    import cv2

    mask = np.zeros((ATLAS_HEIGHT, ATLAS_WIDTH), np.float32)
    cv2.fillPoly(mask, [_fixed(at[list(_LIPS_OUTER)])], 1.0, cv2.LINE_AA, 4)
    inner = np.zeros_like(mask)
    cv2.fillPoly(inner, [_fixed(at[list(LIPS_INNER)])], 1.0, cv2.LINE_AA, 4)
    cv2.polylines(inner, [_fixed(at[list(LIPS_INNER)])], True, 1.0, 2, cv2.LINE_AA, 4)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.6)[..., None]
    creases = cv2.GaussianBlur(rng.standard_normal(mask.shape[:2]).astype(np.float32), (0, 0), 1.1, sigmaY=7)
    colour = look.skin * np.array([0.88, 0.50, 0.55]) * (1 + 0.6 * creases[..., None])
    image[:] = image * (1 - 0.85 * mask) + colour * 0.85 * mask
    image *= 1 - 0.35 * cv2.GaussianBlur(inner, (0, 0), 2.0)[..., None]
    gloss += 0.8 * mask[..., 0]


def paint_room(look: Look, size: int) -> np.ndarray:
    """An out-of-focus room behind the phantom: (size,size,3) float32 linear."""
    import cv2

    rng, s = look.rng(2), size / 256
    rows, columns = np.mgrid[:size, :size] / size
    side = 1 if look.key_direction[0] > 0 else -1
    glow = np.exp(-(((columns - 0.5 - 0.55 * side) / 0.5) ** 2 + ((rows - 0.3) / 0.6) ** 2))
    image = (look.wall * 0.55)[None, None] * (0.55 + 0.75 * glow[..., None]) * (1.05 - 0.25 * rows[..., None])
    left = 0.03 if side > 0 else 0.66  # a shelf away from the window, the window beside the light
    for shelf in range(4):
        top = 0.06 + 0.2 * shelf
        cv2.rectangle(image, _pixel(left, top + 0.155, size), _pixel(left + 0.32, top + 0.17, size), tuple(_linear((92, 70, 52)) * 0.6), -1)
        x = left + 0.01
        while x < left + 0.28:
            width, height = rng.uniform(0.015, 0.045), rng.uniform(0.08, 0.14)
            colour = _linear(rng.uniform(70, 190) + rng.uniform(-38, 38, 3)) * 0.45
            if rng.random() < 0.8:
                cv2.rectangle(image, _pixel(x, top + 0.155 - height, size), _pixel(x + width, top + 0.155, size), tuple(colour), -1)
            x += width + 0.004
    frame = 0.70 if side > 0 else 0.02
    cv2.rectangle(image, _pixel(frame, 0.04, size), _pixel(frame + 0.28, 0.5, size), tuple(np.array([0.92, 0.95, 1.0]) * 0.62), -1)
    cv2.rectangle(image, _pixel(frame + 0.13, 0.04, size), _pixel(frame + 0.15, 0.5, size), tuple(look.wall * 0.5), -1)
    for _ in range(26):  # leaves of a plant under the window
        centre = np.array([frame + 0.14, 0.72]) + rng.normal(0, (0.07, 0.08))
        turn, green = float(rng.uniform(0, 180)), tuple(_linear((52, 92, 48)) * rng.uniform(0.5, 1.1))
        cv2.ellipse(image, _pixel(*centre, size), (int(14 * s), int(5 * s)), turn, 0, 360, green, -1)
    return cv2.GaussianBlur(image, (0, 0), 6.5 * s).astype(np.float32)


def _pixel(x: float, y: float, size: int) -> tuple[int, int]:
    """Fractions of the image → whole pixels."""
    return int(round(x * size)), int(round(y * size))
