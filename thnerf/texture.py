"""A texture for the fitted head, unwrapped from the footage.

Every texel is a point of the face model. Frames that show the head from different sides each give it a colour where they see it: in front of
everything else, turned to the camera, on the person's matte. The colours are averaged with weights that grow with how frontally a frame sees the
point and fall with how far its colour is from the others (iteratively reweighted, Cauchy). What no frame sees takes the colour of the nearest
seen surface of the same kind, hair for hair, smoothed over the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recon.model import MorphableModel
from recon.overlay import posed_vertices
from recon.subject import Subject
from render.camera import Camera
from render.files import InputError, atomic_path
from render.isosurface import neighbours
from render.light import Light, coded, linear, separate
from render.progress import progress
from render.raster import rasterise, vertex_normals
from render.rotations import head_angles
from thnerf.unwrap import texture_coordinates

SIZE = 1024
VIEWS = 48
VERSION = "1"
GUTTER = 8  # texels around a patch that repeat its edge, for filtering and mip maps
BEHIND_MM = 2.0  # so much behind the nearest surface a point still counts as seen
RIM = 0.012  # of the width of the picture: so near to the edge of the matte a pixel may show the background
EDGE_MM = 8.0  # no deeper step than this may be next to a point: the model's outline is not exact
GRAZING = 0.2  # cosine of the angle of view below which a frame says nothing
SPREAD = 0.07  # of colours in [0,1]: beyond it a sample counts less
ENOUGH = 0.25  # total weight at which a texel's own colour has taken over from what is filled in
PARTS = {  # colours of what the footage never showed, beside SKIN
    "teeth_upper": (0.62, 0.56, 0.49), "teeth_lower": (0.50, 0.45, 0.39), "tongue": (0.45, 0.22, 0.21), "eye_left": (0.72, 0.69, 0.67),
    "eye_right": (0.72, 0.69, 0.67), "mouth_inside": (0.25, 0.11, 0.10), "scalp": (0.30, 0.25, 0.22),
}
LIT, CLIPPED = 1500, 0.97  # texels of the skin that tell the light, and the brightest colour that does
DARKEST = 0.35  # of the mean shading: nothing is brightened by more than its inverse
IRIS_DEG = 26.0  # from the axis of an eyeball to the white
SKIN = (0.72, 0.56, 0.48)


@dataclass(frozen=True)
class Texels:
    """Which texel shows what: row, column (P,) of the texels inside patches, face (P,) and barycentric (P,3) of the point there. size: of the square."""

    row: np.ndarray
    column: np.ndarray
    face: np.ndarray
    barycentric: np.ndarray
    size: int

    def of(self, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values of vertices (V,C) at the texels (P,C)."""
        return np.einsum("pkc,pk->pc", values[faces[self.face]], self.barycentric)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """Values of texels (P,C) as a picture (size,size,C), the gutter and everything else filled from the nearest texel."""
        from scipy.ndimage import distance_transform_edt

        out = np.zeros((self.size, self.size, values.shape[1]), values.dtype)
        out[self.row, self.column] = values
        empty = np.ones((self.size, self.size), bool)
        empty[self.row, self.column] = False
        distance, nearest = distance_transform_edt(empty, return_indices=True)
        far = distance > GUTTER
        out = out[tuple(nearest)]
        out[far] = values.mean(0).astype(values.dtype)
        return out


@dataclass(frozen=True)
class Samples:
    """What a frame shows: of which texels (N,), with what weights (N,) in (0,1], their colours (N,3) uint8 and unit normals (N,3) in the camera frame."""

    texel: np.ndarray
    weight: np.ndarray
    colour: np.ndarray
    normal: np.ndarray


def make_texels(model: MorphableModel, size: int = SIZE) -> Texels:
    """The texels of a model. Where patches overlap, the triangle that faces forward wins."""
    uv = texture_coordinates(model)
    normal = np.cross(*(model.mean[model.faces[:, k]] - model.mean[model.faces[:, 0]] for k in (1, 2)))
    depth = np.where(normal[:, 2] >= 0, 2.0, 3.0)
    flat = np.concatenate([uv * [size, -size] + [0, size], np.ones(uv.shape[:2] + (1,))], -1) * depth[:, None, None]
    corners = flat.reshape(-1, 3)
    found = rasterise(corners, np.arange(len(corners)).reshape(-1, 3), Camera(np.eye(3), np.eye(4)[None], size, size))
    row, column = np.nonzero(found.mask)
    return Texels(row, column, found.face[row, column], found.barycentric[row, column].astype(np.float64), size)


def choose_frames(subject: Subject, views: int = VIEWS) -> np.ndarray:
    """Training frames (N,), rising, that show the head from as many sides, and with as much of the mouth, as the footage has."""
    track, train = subject.track, subject.frames("train")
    features = head_angles(track.rotation[train])
    names = [n for n in ("jawOpen", "mouthSmileLeft", "eyeBlinkLeft") if n in track.expression_names]
    features = np.concatenate([features] + [0.15 * track.column(n)[train][:, None] for n in names], 1)
    middle = np.median(features, 0)
    picked = [int(np.abs(features - middle).sum(1).argmin())]
    distance = np.full(len(train), np.inf)
    for _ in range(min(views, len(train)) - 1):
        distance = np.minimum(distance, ((features - features[picked[-1]]) ** 2).sum(1))
        picked.append(int(distance.argmax()))
    return np.unique(train[picked])


def labels(model: MorphableModel) -> np.ndarray:
    """What each triangle (F,) belongs to: 0 skin, then eyeballs, teeth, tongue, the inside of the mouth."""
    out = np.zeros(len(model.faces), np.int16)
    for number, name in enumerate(("mouth_inside", "eye_left", "eye_right", "teeth_upper", "teeth_lower", "tongue"), 1):
        if name in model.regions:
            out[model.regions[name][model.faces].all(1)] = number
    return out


def sample(picture: np.ndarray, matte: np.ndarray, posed: np.ndarray, model: MorphableModel, texels: Texels, camera: Camera) -> Samples:
    """What one frame (H,W,3) uint8 with its matte (H,W) shows of the texels.

    posed (V,3) mm in the world; camera with one frame.
    """
    import cv2
    from scipy.ndimage import maximum_filter, minimum_filter

    rim = 2 * round(RIM * camera.width) + 1
    matte = cv2.erode(matte, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (rim, rim)), borderValue=255)
    faces, label = model.faces, labels(model)
    pose = camera.world_to_camera[0]
    local = posed @ pose[:3, :3].T + pose[:3, 3]
    normals = vertex_normals(local, faces).astype(np.float64)
    towards = -(normals * local).sum(1) / np.linalg.norm(local, axis=1)
    rows = np.flatnonzero((towards[faces].max(1) > GRAZING)[texels.face])
    part = Texels(texels.row[rows], texels.column[rows], texels.face[rows], texels.barycentric[rows], texels.size)
    points, facing = part.of(faces, local), part.of(faces, towards[:, None])[:, 0]
    fine = camera.resized(2 * camera.width, 2 * camera.height)
    found = rasterise(posed, faces, fine)
    kind = np.where(found.mask, label[np.maximum(found.face, 0)], -1)
    nearest, low, high = minimum_filter(found.depth, 3, mode="nearest"), minimum_filter(kind, 3), maximum_filter(kind, 3)
    pixel = points @ camera.K.T
    at = np.clip(pixel[:, :2] / np.maximum(pixel[:, 2:], 1.0), -1e3, 1e5).astype(np.float32)
    column, row = np.floor(2 * at).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < fine.width) & (row < fine.height)
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    own = label[part.face]
    seen = inside & (points[:, 2] < found.depth[row, column] + BEHIND_MM) & (points[:, 2] < nearest[row, column] + EDGE_MM) & (facing > GRAZING)
    # What lies within lids or lips is small: beside their edge it would take their colour.
    seen &= (own == 0) | ((low[row, column] == own) & (high[row, column] == own))
    seen &= _pick(matte, at, smooth=False) > 200
    towards_light = part.of(faces, normals)[seen]
    towards_light /= np.maximum(np.linalg.norm(towards_light, axis=1, keepdims=True), 1e-9)
    return Samples(rows[seen], (facing[seen] - GRAZING).astype(np.float32) ** 2, _pick(picture, at[seen]), towards_light.astype(np.float32))


def _pick(image: np.ndarray, at: np.ndarray, smooth: bool = True) -> np.ndarray:
    """Colours of an image (H,W[,C]) at pixel coordinates (N,2) with centres at +0.5."""
    import cv2

    wide = 4096  # cv2 counts rows in 16 bits
    padded = np.concatenate([at, np.zeros((-len(at) % wide, 2), np.float32)]).reshape(-1, wide, 2) - np.float32(0.5)
    if not len(padded):
        return np.zeros((0,) + image.shape[2:], image.dtype)
    found = cv2.remap(image, padded[..., 0], padded[..., 1], cv2.INTER_CUBIC if smooth else cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape((-1,) + image.shape[2:])[: len(at)]


def blend(samples: list[Samples], count: int, rounds: int = 4, light: Light | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Robust mean (P,3) in [0,1] of what frames saw of P = `count` texels, and the total weight (P,). light: taken out of every sample before.

    Frames that see a point best count most, outliers little.
    """
    texel = np.concatenate([s.texel for s in samples])
    weight = np.concatenate([s.weight for s in samples]).astype(np.float64)
    colour = np.concatenate([s.colour if light is None else unlit(s, light) for s in samples]).astype(np.float32)
    colour = colour / 255 if light is None else colour
    total = np.bincount(texel, weight, count)
    best = np.zeros(count)
    np.maximum.at(best, texel, weight)
    sharp = weight * (weight / best[texel]) ** 2
    current = sharp
    for _ in range(rounds):
        mean = np.stack([np.bincount(texel, current * colour[:, k], count) for k in range(3)], 1)
        mean /= np.maximum(np.bincount(texel, current, count), 1e-12)[:, None]
        current = sharp / (1 + ((colour - mean[texel].astype(np.float32)) ** 2).mean(1) / SPREAD**2)
    return mean, total


def unlit(samples: Samples, light: Light) -> np.ndarray:
    """Colours (N,3) sRGB in [0,1] of samples as they would be under even light."""
    return coded(linear(samples.colour / 255) / np.maximum(light.shading(samples.normal), DARKEST))


def footage_light(samples: list[Samples], model: MorphableModel, texels: Texels) -> Light:
    """The light that falls on the head, from the skin among what frames show. Even light where there is no skin."""
    skin = np.isin(texels.face, np.flatnonzero(model.regions["face"][model.faces].all(1))) if "face" in model.regions else labels(model)[texels.face] == 0
    chosen = np.full(len(skin), -1)
    places = np.flatnonzero(skin)
    places = places[np.linspace(0, len(places) - 1, min(len(places), LIT)).astype(int)] if len(places) else places
    chosen[places] = np.arange(len(places))
    use = [chosen[s.texel] >= 0 for s in samples]
    if not any(u.any() for u in use):
        return Light(np.vstack([np.full(3, 1 / 0.282095), np.zeros((8, 3))]))
    join = lambda name: np.concatenate([getattr(s, name)[u] for s, u in zip(samples, use)])  # noqa: E731
    colour = join("colour").astype(np.float64) / 255
    weight = join("weight") * (colour.max(1) < CLIPPED)
    return separate(chosen[join("texel")], join("normal"), linear(colour), weight + 1e-6, len(places))[0]


def bake(subject: Subject, size: int = SIZE, views: int = VIEWS, albedo: bool = False) -> tuple[np.ndarray, float]:
    """Texture (size,size,3) uint8 sRGB of a fitted subject, and the fraction of it that some frame showed.

    albedo: without the light of the footage (`render.light`), to be lit anew; highlights and cast shadows stay. Row 0 is v = 1. Raises InputError when the subject has no usable frame.
    """
    from render.video import picked_frames

    model, track = subject.model, subject.track
    if not len(subject.frames("train")):
        raise InputError(f"{subject.path} has no frame with a face to take a texture from; fit it again")
    frames, texels = choose_frames(subject, views), make_texels(model, size)
    samples = []
    pictures = zip(picked_frames(subject.video_path, frames.tolist()), picked_frames(subject.matte_path, frames.tolist(), grey=True))
    for (index, picture), (_, matte) in progress(pictures, "texture", total=len(frames)):
        samples.append(sample(picture, matte, posed_vertices(model, track, index), model, texels, track.camera.at(slice(index, index + 1))))
    own, total = blend(samples, len(texels.row), light=footage_light(samples, model, texels) if albedo else None)
    vertices = model.vertices(track.shape, np.zeros(len(model.expression_names), np.float32))
    filled = texels.of(model.faces, fill_vertices(model, vertices, texels, own, total))
    share = np.clip(total / ENOUGH, 0, 1)[:, None]
    share = share * share * (3 - 2 * share)
    mixed = share * own + (1 - share) * filled
    return texels.picture((np.clip(mixed, 0, 1) * 255 + 0.5).astype(np.uint8)), float((total > ENOUGH).mean())


def fill_vertices(model: MorphableModel, vertices: np.ndarray, texels: Texels, colours: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Colours (V,3) for all vertices: the mean of the well-seen texels around each, and where there are none those of the nearest seen vertex of
    the same kind (hair for hair, teeth for teeth), smoothed over the mesh."""
    corner = np.take_along_axis(model.faces[texels.face], texels.barycentric.argmax(1)[:, None], 1)[:, 0]
    good = np.clip(total / ENOUGH, 0, 1) ** 2 * texels.barycentric.max(1)
    V = len(vertices)
    weight = np.bincount(corner, good, V)
    mean = np.stack([np.bincount(corner, good * colours[:, k], V) for k in range(3)], 1) / np.maximum(weight, 1e-9)[:, None]
    known = weight > 1.0
    out, done = mean.copy(), known.copy()
    kinds = {name: model.regions[name] for name in PARTS if name in model.regions}
    kinds["skin"] = ~np.any(list(kinds.values()), 0) if kinds else np.ones(V, bool)
    lit = known & kinds["skin"]
    light = float(np.median(mean[lit].mean(1)) / np.mean(SKIN)) if lit.any() else 1.0
    for name, mask in kinds.items():
        rows = np.flatnonzero(mask & ~known)
        source = _typical(model, name, vertices, np.flatnonzero(mask & known))
        if len(source) < 0.02 * mask.sum():
            out[rows] = np.multiply(PARTS.get(name, SKIN), light)
        else:
            from scipy.spatial import cKDTree

            near = cKDTree(vertices[source]).query(vertices[rows], k=min(12, len(source)))[1].reshape(len(rows), -1)
            out[rows] = mean[source][near].mean(1)
        done[rows] = False
    return _smooth(vertices, model.faces, out, done)


def _typical(model: MorphableModel, kind: str, vertices: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Those of the seen vertices of a kind that may colour the unseen ones: hair far from the hairline, the white of the eye."""
    from scipy.spatial import cKDTree

    if kind == "scalp" and len(source):
        away = cKDTree(vertices[~model.regions["scalp"]]).query(vertices[source])[0]
        return source[away >= np.median(away)]
    if kind.startswith("eye_"):
        ball = vertices[model.regions[kind]]
        direction = vertices[source] - (ball.min(0) + ball.max(0)) / 2
        return source[direction[:, 2] < np.cos(np.deg2rad(IRIS_DEG)) * np.linalg.norm(direction, axis=1)]
    return source


def _smooth(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, known: np.ndarray, rounds: int = 30) -> np.ndarray:
    """Diffuse the colours of vertices that are not known; the known ones stay."""
    out, mean = colours.copy(), neighbours(faces, len(vertices))
    for _ in range(rounds):
        out[~known] = (mean @ out)[~known]
    return out


def subject_texture(subject: Subject, albedo: bool = False) -> Path:
    """texture.png or albedo.png of a subject folder, made when it is missing or belongs to another fit. Raises InputError like `bake`."""
    from PIL import Image, PngImagePlugin

    path, mark = subject.path / ("albedo.png" if albedo else "texture.png"), f"{VERSION} {subject.fingerprint}"
    if path.exists():
        try:
            with Image.open(path) as picture:
                if picture.info.get("thnerf") == mark:
                    return path
        except (OSError, SyntaxError):  # damaged: made again
            path.unlink()
    picture, _ = bake(subject, albedo=albedo)
    info = PngImagePlugin.PngInfo()
    info.add_text("thnerf", mark)
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", pnginfo=info, optimize=True)
    return path


def draw(vertices: np.ndarray, model: MorphableModel, texture: np.ndarray, camera: Camera, background: float = 0.5, samples: int = 2) -> np.ndarray:
    """The textured mesh (H,W,3) in [0,1], vertices (V,3) in the world, without further light; `samples`² points per pixel."""
    import cv2

    fine = camera.resized(samples * camera.width, samples * camera.height)
    found = rasterise(vertices, model.faces, fine)
    uv = texture_coordinates(model)[np.maximum(found.face, 0)]
    at = np.einsum("hwkc,hwk->hwc", uv, found.barycentric) * len(texture)
    colour = cv2.remap(texture, (at[..., 0] - 0.5).astype(np.float32), (len(texture) - at[..., 1] - 0.5).astype(np.float32), cv2.INTER_LINEAR) / 255.0
    colour = np.where(found.mask[..., None], colour, background)
    return colour.reshape(camera.height, samples, camera.width, samples, 3).mean((1, 3))

