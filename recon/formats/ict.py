"""ICT-FaceKit (Li et al. 2020): a folder of OBJ files on one topology, expressions with nearly ARKit's names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from recon.formats.common import assemble, landmarks_beside
from recon.model import MorphableModel
from render.files import InputError, read_json

LICENCE = "ICT-FaceKit: MIT (the light version of the USC Institute for Creative Technologies); not shipped with thnerf"
NEUTRAL, INDEX = "generic_neutral_mesh.obj", "vertex_indices.json"
FULL = 26719  # vertices of the published mesh; its parts, from its README:
SKIN, EYES, KEPT = 11248, {"left": (21451, 23021), "right": (23021, 24591)}, 24591  # what follows lies over the eyes: tears, lashes
BOTH = ("browInnerUp", "cheekPuff")  # one expression for ARKit, two sides here


def load_ict(source: Path, landmarks: Path | None = None) -> MorphableModel:
    """ICT-FaceKit from its FaceXModel folder (or the neutral mesh in it); its expressions get ARKit's names.

    Needs vertex_indices.json (68 landmarks, expression names) and one OBJ a mode. The gaze turns the eyeballs here, so the eyeLook
    expressions move only the lids. Raises InputError when files are missing, damaged or of another topology.
    """
    folder = source.parent
    mean, faces = _obj(folder / NEUTRAL)
    config = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    listed = config.get("expressions") if isinstance(config, dict) else None
    files = listed if isinstance(listed, list) and all(isinstance(n, str) and re.fullmatch(r"\w+", n) for n in listed) else \
        sorted(p.stem for p in folder.glob("*.obj") if not p.stem.startswith(("identity", "generic")))
    identities = sorted(folder.glob("identity[0-9]*.obj"), key=lambda p: int(re.sub(r"\D", "", p.stem) or 0))
    if not files or not identities:
        raise InputError(f"{folder} is no ICT-FaceKit model: it needs {NEUTRAL}, identity000.obj … and one .obj for each expression")
    kept = KEPT if len(mean) == FULL else len(mean)
    part = lambda path: (_positions(path, len(mean)) - mean)[:kept].astype(np.float32)  # noqa: E731
    motions: dict[str, np.ndarray] = {}
    for name in files:
        moved = part(folder / f"{name}.obj")
        known = arkit_name(name)
        motions[known] = motions[known] + moved if known in motions else moved
    shapes, expressions = np.stack([part(p) for p in identities]), np.stack(list(motions.values()))
    eyes = {}
    if len(mean) == FULL:
        eyes = {side: (np.arange(kept) >= low) & (np.arange(kept) < high) for side, (low, high) in EYES.items()}
        if mean[:kept][eyes["left"], 0].mean() < 0:
            eyes = {"left": eyes["right"], "right": eyes["left"]}
        expressions[:, eyes["left"] | eyes["right"]] = 0
    skin = np.arange(kept) < SKIN if len(mean) == FULL else None
    points = landmarks_beside(source, landmarks, mean)
    if points is None and isinstance(config, dict) and isinstance(config.get("idx_to_landmark_verts"), list):
        indices = np.asarray(config["idx_to_landmark_verts"])
        if indices.shape != (68,) or indices.min() < 0 or indices.max() >= len(mean):
            raise InputError(f"{folder / INDEX}: idx_to_landmark_verts are not 68 vertices of {NEUTRAL}; get it again")
        points = dict(enumerate(mean[indices]))
    return assemble("ict", source, LICENCE, mean[:kept], shapes, expressions, faces[(faces < kept).all(1)], tuple(motions), points, skin=skin, eyes=eyes)


def arkit_name(name: str) -> str:
    """'mouthSmile_L' → 'mouthSmileLeft', 'browInnerUp_R' → 'browInnerUp'; others stay."""
    stem, _, side = name.partition("_")
    return stem if stem in BOTH else stem + {"L": "Left", "R": "Right"}.get(side, side)


def _positions(path: Path, count: int) -> np.ndarray:
    """Vertices of an OBJ (V,3) float64. Raises InputError unless there are `count` finite ones (0: any number)."""
    try:
        words = b" ".join(line[2:] for line in path.read_bytes().splitlines() if line.startswith(b"v "))
        out = np.array(words.split(), dtype=np.float64).reshape(-1, 3)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the folder lacks a part of ICT-FaceKit, get it again") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable OBJ file ({error}); get it again") from None
    if not len(out) or not np.isfinite(out).all() or count and len(out) != count:
        raise InputError(f"{path} has {len(out):,} vertices where {count:,} belong; get it again" if count else f"{path} has no vertices; get it again")
    return out


def _obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V,3) and triangles (F,3) of an OBJ; polygons become fans."""
    mean = _positions(path, 0)
    faces = []
    for line in path.read_bytes().splitlines():
        if line.startswith(b"f "):
            ring = [int(word.split(b"/")[0]) - 1 for word in line[2:].split()]
            faces += [(ring[0], ring[i], ring[i + 1]) for i in range(1, len(ring) - 1)]
    out = np.array(faces, np.int64).reshape(-1, 3)
    if not len(out) or out.min() < 0 or out.max() >= len(mean):
        raise InputError(f"{path} has faces outside its vertices; get it again")
    return mean, out
