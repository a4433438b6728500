"""Beginning a training with what other heads have taught: the field of another run, or a prior made of several.

Heads share a space, the box around the fitted face, and their expressions share names. What is learned of one head in terms of
its own principal expressions is re-expressed in those of the other: H'₀ + Σ ψ'_k H'_k shows, for every frame of the new subject, what
H₀ + Σ ψ_k H_k shows, as far as the new subject's own modes can say it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from recon.track import Track
from render.files import InputError
from thnerf.avatar import Avatar, read_tensors
from thnerf.dataset import Condition

_SHAPE = ("levels", "log2_entries", "base_resolution", "finest_resolution", "width")


def start_from(avatar: Avatar, path: Path, track: Track, frames: np.ndarray) -> None:
    """Give a new avatar the head of another: encoding and networks, not its shell, pose correction or torso.

    path: a `.safetensors` that training wrote, or the run folder with one. track, frames (n,): the new subject's motion in training, by which the two
    sets of conditions are compared. Raises InputError when it is no such file, of another layout, or of another face model.
    """
    path = Path(path)
    tensors, header = read_tensors(path / "field.safetensors" if path.is_dir() else path)
    try:
        about = json.loads(header["avatar"])
        table, names = tensors["tables.tables"].float(), tuple(about["expression_names"])
        other = {key: about["head"][key] for key in _SHAPE}
        condition = Condition(**{k.removeprefix("condition."): v.numpy() for k, v in tensors.items() if k.startswith("condition.")}, expression_names=names)
        scale = float(about["head"]["condition_scale"])
        weights = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.") and k != "head.prior"}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no trained field ({error}); --init takes a run folder or the field.safetensors in it") from None
    own = {key: getattr(avatar.config, key) for key in _SHAPE}
    if own != other or set(weights) != {k for k in avatar.head.state_dict() if k != "prior"}:
        wrong = ", ".join(f"{k} {other[k]} instead of {own[k]}" for k in _SHAPE if own[k] != other[k]) or "other networks"
        raise InputError(f"{path} was trained with another layout ({wrong}); train with its settings, or make the prior again with these")
    if names != track.expression_names:
        raise InputError(f"{path} belongs to another face model, whose expressions have other names; use a prior of this subject's model")
    mixing, rest = _translation(condition.expression(track)[frames] * scale, avatar.condition.expression(track)[frames] * avatar.config.condition_scale)
    start = torch.cat([table[:1] + torch.from_numpy(rest) @ table[1:], torch.from_numpy(mixing) @ table[1:]])
    avatar.tables.load({"tables": start})
    avatar.head.load_state_dict({**weights, "prior": avatar.head.prior.cpu()})


def _translation(old: np.ndarray, new: np.ndarray, ridge: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
    """A (K',K) and b (1,K), float32, with which conditions new (n,K') say best what conditions old (n,K) say: old ≈ new A + b."""
    centre = new - new.mean(0)
    square = centre.T @ centre / len(new)
    mixing = np.linalg.solve(square + ridge * np.trace(square) / len(square) * np.eye(len(square)), centre.T @ (old - old.mean(0)) / len(new))
    return mixing.astype(np.float32), (old.mean(0) - new.mean(0) @ mixing).astype(np.float32)[None]
