"""Finds where MediaPipe's 478 landmarks lie on the default face model, and stores the embeddings in assets/face_model.npz.

    python assets/calibrate_landmarks.py [--renders 320]     # about three minutes; after build_face_model.py

Random identities with plausible colours, hair line, light, pose, expression and gaze are rendered and detected. Each landmark
becomes the surface point whose projections are nearest to its detections over all renders (robust least squares over
a dense sampling of the surface), so that no systematic offset is left on average. Open mouths and blinks among the renders
tell upper from lower lip and lid; one bald, neutral identity would not. 'ibug68' selects from the same points.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # runs from a checkout that is not installed

from recon.landmarks import FACE_OVAL, INNER_LIP, IRIS, LIDS, OUTER_LIP, ibug68, load_detector  # noqa: E402
from recon.model import Embedding, MorphableModel, apply_gaze, load_model, save_model  # noqa: E402
from render.camera import Camera  # noqa: E402
from render.progress import progress  # noqa: E402
from render.raster import interpolate, rasterise, vertex_normals  # noqa: E402
from render.rotations import axis_angle_to_matrix, from_head_angles  # noqa: E402

SIZE, FINE = 320, 2  # px of a picture, samples a pixel and axis
SEGMENTS, IRIS_RING, PUPIL_RING = 24, 5, 2  # eyeballs of build_face_model.py: the pole, then rings of SEGMENTS vertices, counted from 1
BROWS = (70, 63, 105, 66, 107, 46, 53, 52, 65, 55, 300, 293, 334, 296, 336, 276, 283, 282, 295, 285)
PAIRED = {"mouthSmile": 0.7, "mouthFrown": 0.5, "mouthLowerDown": 0.6, "mouthUpperUp": 0.5, "mouthStretch": 0.4,
          "browDown": 0.6, "browOuterUp": 0.6, "eyeSquint": 0.5, "eyeWide": 0.5}  # strongest values drawn
SINGLE = {"mouthPucker": 0.7, "mouthFunnel": 0.6, "browInnerUp": 0.7, "jawLeft": 0.4, "jawRight": 0.4, "mouthShrugUpper": 0.4}


class Appearance:
    """Colours of a random person at canonical positions (those of the mean head), so that they do not depend on the mesh's resolution."""

    def __init__(self, model: MorphableModel, random: np.random.Generator) -> None:
        self.random, self.model = random, model
        tone = random.uniform(0, 1)
        self.skin = (1 - tone) * np.array([0.86, 0.66, 0.55]) + tone * np.array([0.40, 0.25, 0.18])
        self.hair = random.choice([[0.10, 0.07, 0.05], [0.25, 0.16, 0.09], [0.45, 0.32, 0.18], [0.05, 0.05, 0.05], [0.5, 0.48, 0.46]])
        self.brow = np.clip(self.hair * random.uniform(0.6, 1.0), 0, 0.35)
        self.brow_height, self.brow_width, self.brow_arch = random.normal(17.5, 1.2), random.uniform(2.2, 3.6), random.uniform(1.0, 4.0)
        self.background = random.uniform(0.1, 0.8, 3)
        iris = random.choice([[0.20, 0.12, 0.06], [0.30, 0.22, 0.10], [0.25, 0.35, 0.40], [0.28, 0.36, 0.24]])
        lips = self.skin * random.uniform([0.78, 0.5, 0.5], [0.95, 0.68, 0.7])
        colour = np.tile(self.skin, (len(model.mean), 1))
        r = model.regions
        for name, value in {"scalp": self.hair, "lips": lips, "eyelids": self.skin * [0.82, 0.74, 0.72], "mouth_inside": (0.25, 0.06, 0.06),
                            "teeth_upper": (0.72, 0.69, 0.62), "teeth_lower": (0.62, 0.59, 0.53), "tongue": (0.5, 0.2, 0.2)}.items():
            colour[r[name]] = value
        for name in ("eye_left", "eye_right"):
            rows = np.flatnonzero(r[name])
            colour[rows] = (0.80, 0.78, 0.76)
            colour[rows[: 1 + IRIS_RING * SEGMENTS]] = iris
            colour[rows[: 1 + PUPIL_RING * SEGMENTS]] = (0.03, 0.03, 0.03)
        self.colour = colour
        flat = np.zeros(len(model.mean), bool)
        for name in ("face", "scalp"):
            flat |= r[name]
        self.attributes = np.concatenate([colour, model.mean, flat[:, None]], 1)

    def albedo(self, values: np.ndarray) -> np.ndarray:
        """Interpolated attributes (H,W,7) → colour (H,W,3), with brows painted in."""
        colour, position, skin = values[..., :3], values[..., 3:6], values[..., 6:]
        eye = self.model.eye_centres[0]
        x, height = np.abs(position[..., 0]), position[..., 1] - eye[1]
        along = np.clip((x - (eye[0] - 18)) / 40, 0, 1)  # 0 at the inner end, 1 at the outer
        line = self.brow_height - 1.5 + self.brow_arch * np.sin(np.pi * np.clip(along, 0, 1) ** 0.8) - 4.0 * np.maximum(along - 0.65, 0)
        thickness = self.brow_width * (1.1 - 0.6 * along)
        inside = (x > eye[0] - 18) & (x < eye[0] + 22) & (position[..., 2] > 20) & (skin[..., 0] > 0.5)
        amount = 0.85 * (np.clip((thickness - np.abs(height - line)) / 1.2 + 0.5, 0, 1) * inside)[..., None]
        return colour * (1 - amount) + self.brow * amount


def draw_expression(model: MorphableModel, random: np.random.Generator) -> np.ndarray:
    """Neutral, open mouths, blinks and random mixtures: (E,) in [0,1]."""
    e = np.zeros(len(model.expression_names), np.float32)
    kind = random.choice(["neutral", "open", "blink", "mixed", "talk"], p=[0.2, 0.25, 0.15, 0.2, 0.2])
    if kind in ("open", "mixed", "talk"):
        e[model.index("jawOpen")] = random.uniform(0.1, 0.8) if kind == "open" else random.uniform(0, 0.35)
    if kind == "blink":
        e[[model.index("eyeBlinkLeft"), model.index("eyeBlinkRight")]] = random.uniform(0.4, 1)
    if kind in ("mixed", "talk"):
        for stem, top in PAIRED.items():
            if random.random() < 0.3:
                e[[model.index(stem + "Left"), model.index(stem + "Right")]] = random.uniform(0, top)
        for name, top in SINGLE.items():
            if random.random() < 0.2:
                e[model.index(name)] = random.uniform(0, top)
    return e


@dataclasses.dataclass
class View:
    """One picture and what it was made of: vertices in the camera (V,3) mm, the camera, coefficients, and the pose of the head (3,3), (3,) mm."""

    picture: np.ndarray
    vertices: np.ndarray
    camera: Camera
    shape: np.ndarray
    expression: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray


def render_view(model: MorphableModel, random: np.random.Generator, expression: np.ndarray | None = None) -> View:
    """A random person, pose, expression (unless given, (E,)), gaze, light and focal length, drawn with hair as a thickened scalp."""
    look = Appearance(model, random)
    shape = random.normal(0, 0.75, len(model.shape_basis)).astype(np.float32)
    expression = draw_expression(model, random) if expression is None else expression
    vertices = model.vertices(shape, expression)
    gaze = np.tile(random.normal(0, [0.2, 0.1]), (2, 1))
    vertices = apply_gaze(model, vertices, shape, gaze)
    scalp = model.regions["scalp"]
    drawn = vertices.copy()
    drawn[scalp] += vertex_normals(vertices, model.faces)[scalp] * random.uniform(2, 9)
    pose = axis_angle_to_matrix(from_head_angles(random.normal(0, [0.28, 0.13, 0.08])))
    span = random.uniform(270, 420)  # mm across the picture
    distance = random.uniform(1.6, 4.5) * span
    shift = np.array([random.normal(0, 10), random.normal(0, 10), distance])
    camera = Camera.simple(SIZE * distance / span, SIZE, SIZE)
    world, drawn = vertices @ pose.T + shift, drawn @ pose.T + shift
    fragments = rasterise(drawn, model.faces, camera.resized(SIZE * FINE, SIZE * FINE))
    normals = interpolate(fragments, model.faces, vertex_normals(drawn, model.faces))
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
    light = random.normal(0, [0.5, 0.35, 0.1]) + [0, -0.5, -1]
    bright = normals @ (light / np.linalg.norm(light))
    shade = 0.42 + 0.2 * normals[..., 1] * -1 + 0.62 * np.clip(bright, 0, 1)
    image = look.albedo(interpolate(fragments, model.faces, look.attributes)) * shade[..., None]
    image = np.where(fragments.mask[..., None], image, look.background)
    image = image.reshape(SIZE, FINE, SIZE, FINE, 3).mean((1, 3)) + random.normal(0, 0.01, (SIZE, SIZE, 3))
    return View((np.clip(image, 0, 1) ** (1 / 1.3) * 255).astype(np.uint8), world, camera, shape, expression, pose, shift)


def surface_samples(model: MorphableModel, allowed: np.ndarray, steps: int = 4) -> Embedding:
    """A regular barycentric grid in every triangle whose vertices are all allowed (V,)."""
    faces = np.flatnonzero(allowed[model.faces].all(1))
    grid = np.array([(i, j, steps - i - j) for i in range(steps + 1) for j in range(steps + 1 - i)]) / steps
    grid = grid * (1 - 1e-3) + 1e-3 / 3  # strictly inside
    return Embedding(np.repeat(faces, len(grid)), np.tile(grid, (len(faces), 1)).astype(np.float32))


def projections(model: MorphableModel, points: Embedding, views: list[View]) -> np.ndarray:
    """(views,N,2) px."""
    scheme = dataclasses.replace(model, landmarks={"": points})
    return np.stack([v.camera.project(scheme.points(v.vertices, "")[None])[0] for v in views]).astype(np.float32)


def robust_cost(projected: np.ndarray, detected: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Mean over views of Geman-McClure of the distance in `scale` (views,) px: (views,N,2), (views,2) → (N,)."""
    squared = ((projected - detected[:, None]) ** 2).sum(-1) / scale[:, None] ** 2
    return (squared / (1 + squared)).mean(0)


def embed(model: MorphableModel, views: list[View], detected: np.ndarray) -> Embedding:
    """Best surface point of each of the 478 landmarks; detected (views,478,2) px.

    The irises lie on the eyeballs, a little below where they are drawn: the detector puts them nearer to the middle of the lids.
    """
    r = model.regions
    front = r["skin"] & ~r["ears"] & ~r["mouth_inside"] & (model.mean[:, 2] > -12)
    front |= r["lips"] | r["eyelids"]
    iod = np.array([np.linalg.norm(np.diff(d[[33, 263]], axis=0)) for d in detected])
    faces, weights = np.zeros(478, np.int64), np.zeros((478, 3), np.float32)
    for rows, allowed in ((np.arange(468), front), (np.arange(468, 478), r["eye_left"] | r["eye_right"])):
        coarse, fine = surface_samples(model, allowed, 1), surface_samples(model, allowed, 6)
        found = mirror_average(model, _search(model, views, detected[:, rows], 0.05 * iod, coarse, fine), fine)
        faces[rows], weights[rows] = found.faces, found.barycentric
    return Embedding(faces, weights)


def _search(
    model: MorphableModel, views: list[View], detected: np.ndarray, scale: np.ndarray, coarse: Embedding, fine: Embedding,
) -> Embedding:
    """Best of the coarse samples, then the best fine sample within 9 mm of it, for each landmark; detected (views,N,2), scale (views,) px."""
    middle = model.mean[model.faces].mean(1)
    sparse, dense = projections(model, coarse, views), projections(model, fine, views)
    chosen = np.zeros(detected.shape[1], np.int64)
    for j in progress(range(len(chosen)), "matching", unit="point"):
        best = coarse.faces[robust_cost(sparse, detected[:, j], scale).argmin()]
        near = np.flatnonzero(np.linalg.norm(middle[fine.faces] - middle[best], axis=1) < 9)
        chosen[j] = near[robust_cost(dense[:, near], detected[:, j], scale * 0.6).argmin()]
    return Embedding(fine.faces[chosen], fine.barycentric[chosen])


def _signature(model: MorphableModel, points: Embedding) -> np.ndarray:
    """(N,9) positions on the mean head, with open jaw and with closed lids: tells lips and lids apart where they touch."""
    zero = np.zeros(len(model.expression_names), np.float32)
    jaw, lids = zero.copy(), zero.copy()
    jaw[model.index("jawOpen")] = 1
    lids[[model.index("eyeBlinkLeft"), model.index("eyeBlinkRight")]] = 1
    scheme = dataclasses.replace(model, landmarks={"": points})
    return np.concatenate([scheme.points(model.vertices(np.zeros(0), e), "") for e in (zero, jaw, lids)], 1)


def mirror_average(model: MorphableModel, points: Embedding, fine: Embedding) -> Embedding:
    """Make the embedding mirror-symmetric: the mean of each point and its partner's mirror image, back on the surface."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist

    here = _signature(model, points)
    flipped = here * np.tile([-1, 1, 1], 3)
    partner = linear_sum_assignment(cdist(here, flipped) ** 2)[1]
    print(f"asymmetry before averaging: median {np.median(np.linalg.norm((here - flipped[partner])[:, :3], axis=1)) / 2:.2f} mm")
    nearest = cKDTree(_signature(model, fine)).query((here + flipped[partner]) / 2)[1]
    return Embedding(fine.faces[nearest], fine.barycentric[nearest])


def report(model: MorphableModel, views: list[View], detected: np.ndarray) -> dict[str, tuple[float, float]]:
    """Per group: mean distance, and length of the mean offset (systematic bias), as fractions of the interocular distance."""
    projected = projections(model, model.landmarks["mediapipe478"], views)
    iod = np.linalg.norm(detected[:, 263] - detected[:, 33], axis=-1)
    error = (projected - detected) / iod[:, None, None]
    groups = {"inner lips": INNER_LIP, "outer lips": OUTER_LIP, "lids": LIDS["left"] + LIDS["right"], "brows": BROWS,
              "irises": IRIS["left"] + IRIS["right"], "contour": FACE_OVAL, "all": tuple(range(478))}
    length = lambda offset: np.linalg.norm(offset, axis=-1)  # noqa: E731
    return {name: (float(np.median(length(error[:, list(rows)]))), float(length(error[:, list(rows)].mean(0)).mean()))
            for name, rows in groups.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=int, default=320)
    parser.add_argument("--model", type=Path, default=HERE / "face_model.npz")
    parser.add_argument("--look", type=Path, help="write a contact sheet of the first renders here")
    args = parser.parse_args()
    model, random, detector = load_model(args.model), np.random.default_rng(0), load_detector("mediapipe")
    views = [render_view(model, random) for _ in progress(range(args.renders), "rendering", unit="render")]
    landmarks = detector.detect([v.picture for v in views])
    used = np.flatnonzero(landmarks.valid)
    print(f"a face was found in {len(used)} of {len(views)} renders")
    split = len(used) * 4 // 5  # the rest measures
    fit, held = [views[i] for i in used[:split]], [views[i] for i in used[split:]]
    detected = landmarks.points[used].astype(np.float32)
    points = embed(model, fit, detected[:split])
    rows = np.rint(ibug68(np.repeat(np.arange(478.0)[:, None], 2, 1))[:, 0]).astype(int)
    embeddings = {"mediapipe478": points, "ibug68": Embedding(points.faces[rows], points.barycentric[rows])}
    model = dataclasses.replace(model, landmarks=embeddings)
    for group, (distance, bias) in report(model, held, detected[split:]).items():
        print(f"{group:12} distance {distance:.3f} iod, systematic {bias:.3f} iod")
    save_model(args.model, model, step=0.004)
    if args.look:
        _contact_sheet(args.look, model, [views[i] for i in used[:24]], detected[:24])


def _contact_sheet(path: Path, model: MorphableModel, views: list[View], detected: np.ndarray) -> None:
    """Renders with detections (green) and the embedding's projections (red)."""
    import imageio.v3 as imageio

    projected = projections(model, model.landmarks["mediapipe478"], views)
    tiles = []
    for view, one, two in zip(views, detected, projected):
        tile = view.picture.repeat(2, 0).repeat(2, 1)
        for points, colour in ((one, (0, 255, 0)), (two, (255, 0, 0))):
            at = np.clip(np.rint(points * 2 - 0.5).astype(int), 0, 2 * SIZE - 1)
            tile[at[:, 1], at[:, 0]] = colour
        tiles.append(tile)
    imageio.imwrite(path, np.concatenate([np.concatenate(tiles[i : i + 6], 1) for i in range(0, len(tiles) - 5, 6)], 0))


if __name__ == "__main__":
    main()
