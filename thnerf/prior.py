"""Beginning a training with what other heads have taught: the field of another run, or a prior made of several.

Heads share a space, the box around the fitted face, and their expressions share names. What is learned of one head in terms of
its own principal expressions is re-expressed in those of the other: H'₀ + Σ ψ'_k H'_k shows, for every frame of the new subject, what
H₀ + Σ ψ_k H_k shows, as far as the new subject's own modes can say it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch

from recon.model import MorphableModel
from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from render.progress import progress
from thnerf.avatar import FORMAT, Avatar, read_tensors
from thnerf.config import TrainConfig
from thnerf.dataset import Condition, load_training_set

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
        made, other = about["format"], {key: about["head"][key] for key in _SHAPE}
        condition = Condition(**{k.removeprefix("condition."): v.numpy() for k, v in tensors.items() if k.startswith("condition.")}, expression_names=names)
        scale = float(about["head"]["condition_scale"])
        weights = {k.removeprefix("head."): v.clone() for k, v in tensors.items() if k.startswith("head.") and k != "head.prior"}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} holds no trained field ({error}); --init takes a run folder or the field.safetensors in it") from None
    own = {key: getattr(avatar.config, key) for key in _SHAPE}
    if made != FORMAT:
        raise InputError(f"{path} has format {made}, this version reads {FORMAT}; train it again")
    if own != other or set(weights) != {k for k in avatar.head.state_dict() if k != "prior"}:
        wrong = ", ".join(f"{k} {other[k]} instead of {own[k]}" for k in _SHAPE if own[k] != other[k]) or "other networks"
        raise InputError(f"{path} was trained with another layout ({wrong}); train with its settings, or make the prior again with these")
    if names != track.expression_names:
        raise InputError(f"{path} belongs to another face model, whose expressions have other names; use a prior of this subject's model")
    mixing, rest = _translation(condition.expression(track)[frames] * scale, avatar.condition.expression(track)[frames] * avatar.config.condition_scale)
    start = torch.cat([table[:1] + torch.from_numpy(rest) @ table[1:], torch.from_numpy(mixing) @ table[1:]])
    avatar.tables.load({"tables": start})
    weights["first.weight"][:, avatar.layout.channels :] = 0  # the light of another room
    avatar.head.load_state_dict({**weights, "prior": avatar.head.prior.cpu()})


def _translation(old: np.ndarray, new: np.ndarray, ridge: float = 1e-2) -> tuple[np.ndarray, np.ndarray]:
    """A (K',K) and b (1,K), float32, with which conditions new (n,K') say best what conditions old (n,K) say: old ≈ new A + b."""
    centre = new - new.mean(0)
    square = centre.T @ centre / len(new)
    mixing = np.linalg.solve(square + ridge * np.trace(square) / len(square) * np.eye(len(square)), centre.T @ (old - old.mean(0)) / len(new))
    return mixing.astype(np.float32), (old.mean(0) - new.mean(0) @ mixing).astype(np.float32)[None]


def train_prior(subjects: Sequence[Subject], config: TrainConfig, rounds: int, steps: int, out: Path, model: MorphableModel | None = None) -> None:
    """Learn a field from which other heads are learned faster, and write it as one safetensors file.

    Reptile (Nichol, Achiam & Schulman 2018): every subject in turn trains `steps` steps from the common encoding and networks, which then
    move a part of the way to where it got; the part falls from 1 to a fifth over the rounds, so that the last word is an average. Shell, pose
    correction and torso stay each subject's own. Expressions are the principal ones of all subjects together. Raises InputError without
    subjects, or when they belong to different face models.
    """
    from thnerf.trainer import new_trainer  # which itself begins from priors

    if not subjects:
        raise InputError("a prior needs at least one subject; name the folders that thnerf fit made")
    sets = [load_training_set(s, model or s.model, config.head.expression_modes, config.max_frames, config.frame_memory_mib) for s in subjects]
    if len({s.track.expression_names for s in sets}) > 1:
        raise InputError("the subjects of a prior must share one face model; fit them all with the same --model")
    common = _common_condition(sets)
    sets = [_with_condition(s, common) for s in sets]
    trainers = [new_trainer(data, model or subject.model, config) for data, subject in zip(sets, subjects)]
    shared = _head(trainers[0].avatar)
    for turn in progress(range(rounds), "prior"):
        part = 1 - 0.8 * turn / max(1, rounds - 1)
        for trainer in trainers:
            _put_head(trainer.avatar, shared)
            for step in range(steps):
                trainer.advance((turn + step / steps) / rounds)
            shared = {k: shared[k] + part * (v - shared[k]) for k, v in _head(trainer.avatar).items()}
    _put_head(trainers[0].avatar, shared)
    trainers[0].avatar.save(out, prior=json.dumps([s.path.name for s in subjects]))


def _head(avatar: Avatar) -> dict[str, torch.Tensor]:
    """Encoding and networks of the head, as copies."""
    networks = {k: v.detach().clone() for k, v in avatar.head.state_dict().items() if k != "prior"}
    return {**networks, "tables": avatar.tables.tables.T.contiguous().clone()}


def _put_head(avatar: Avatar, values: dict[str, torch.Tensor]) -> None:
    """Inverse of `_head`; optimisers and the subject's shell stay as they are. The networks' own memory is kept, which optimisers refer to."""
    avatar.tables.load({"tables": values["tables"].clone()})
    avatar.head.load_state_dict({**{k: v for k, v in values.items() if k != "tables"}, "prior": avatar.head.prior})


def _common_condition(sets: Sequence[Any]) -> Condition:
    """The map of expression of all training sets: modes of the one with most frames span it, offset and scale are those of all."""
    largest = max(sets, key=lambda s: len(s.index)).condition
    x = np.concatenate([np.concatenate([s.track.expression, s.track.gaze.reshape(len(s.track), 4)], 1)[s.index] for s in sets])
    raw = (x - x.mean(0)) @ largest.matrix
    return dataclasses.replace(largest, matrix=largest.matrix / np.maximum(raw.std(0), 1e-3), offset=x.mean(0))


def _with_condition(data: Any, common: Condition) -> Any:
    """A training set that sees expressions through the common map; pose and torso through its own."""
    condition = dataclasses.replace(data.condition, matrix=common.matrix, offset=common.offset)
    return dataclasses.replace(data, condition=condition, psi=condition.expression(data.track)[data.index])
