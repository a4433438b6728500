"""``thnerf model``: what a face model holds, and its conversion to thnerf's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recon.formats import load_foreign
from recon.model import DEFAULT_MODEL, MorphableModel, load_model, save_model
from render.files import InputError

DEFAULT_LICENCE = "CC0 (built from MakeHuman's data, see assets/README.md)"


def open_model(path: str, landmarks: Path | None = None) -> MorphableModel:
    """'default' or a model file; landmarks: a landmark file for a model of another project. Raises InputError as `load_model` does."""
    if landmarks is None:
        return load_model(path)
    if path == DEFAULT_MODEL or path.endswith(".npz") and "template_vertex_positions" not in _members(Path(path)):
        raise InputError("--landmarks is for models of other projects; this one brings its own")
    return load_foreign(path, landmarks)


def _members(path: Path) -> str:
    try:
        with np.load(path, allow_pickle=False) as data:
            return " ".join(data.files)
    except (OSError, ValueError):
        return "template_vertex_positions"  # let the loader say what is wrong with it


def describe(model: MorphableModel) -> dict[str, Any]:
    """Sizes, names, landmark schemes, joints, regions and licence, for people and for JSON."""
    size = np.ptp(model.mean, axis=0)
    return {
        "model_id": model.model_id, "vertices": len(model.mean), "faces": len(model.faces), "shapes": len(model.shape_basis),
        "expressions": len(model.expression_names), "expression_names": list(model.expression_names),
        "landmarks": {scheme: len(e.faces) for scheme, e in sorted(model.landmarks.items())},
        "joints": list(model.joints.names) if model.joints else [], "eyeballs": model.eye_centres is not None,
        "regions": {name: int(mask.sum()) for name, mask in sorted(model.regions.items())}, "size_mm": [round(float(x), 1) for x in size],
        "arkit": "jawOpen" in model.expression_names, "licence": model.licence or DEFAULT_LICENCE}


def text(info: dict[str, Any]) -> str:
    """`describe`'s result as a few lines."""
    names = info["expression_names"]
    shown = ", ".join(names[:6]) + (f" … {names[-1]}" if len(names) > 7 else "")
    lines = [f"{info['model_id']}: {info['vertices']:,} vertices, {info['faces']:,} triangles, {' × '.join(f'{x:.0f}' for x in info['size_mm'])} mm",
             f"shapes       {info['shapes']}", f"expressions  {info['expressions']}: {shown}",
             f"landmarks    {', '.join(f'{k} ({n})' for k, n in info['landmarks'].items())}",
             f"joints       {', '.join(info['joints']) or 'none'}", f"eyeballs     {'yes, turned by the gaze' if info['eyeballs'] else 'none'}",
             f"licence      {info['licence']}"]
    return "\n".join(lines)


def convert(path: str, out: Path, landmarks: Path | None = None) -> dict[str, Any]:
    """Write a model as thnerf's own .npz, which loads faster and needs no companions; returns `describe`'s result and the file's name."""
    if out.suffix.lower() != ".npz":
        raise InputError(f"{out} must end in .npz; a face model is written as one")
    model = open_model(path, landmarks)
    save_model(out, model)
    return {**describe(model), "file": str(out)}
