"""A training that begins with another head shows that head, in the terms of its own expressions."""

import dataclasses

import numpy as np
import pytest
import torch

from recon.subject import Subject
from render.files import InputError
from synthetic import make_subject, toy_model
from test_trainer import SMALL
from thnerf.avatar import Avatar
from thnerf.config import TrainConfig
from thnerf.dataset import load_training_set
from thnerf.prior import start_from, train_prior
from thnerf.trainer import new_trainer, train


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=66, size=64)


@pytest.fixture(scope="module")
def trained(subject: Subject):
    return train(subject, dataclasses.replace(SMALL, run="other", steps=200), toy_model())


def test_the_same_subject_begins_where_the_other_run_ended(subject: Subject, trained) -> None:
    data = load_training_set(subject, toy_model(), SMALL.head.expression_modes, 100)
    avatar = new_trainer(data, toy_model(), SMALL).avatar
    start_from(avatar, trained, data.track, data.index)
    other = Avatar.load(trained / "field.safetensors")
    psi = torch.from_numpy(data.psi[::7])
    mine, theirs = avatar.blend(psi).detach(), other.blend(psi).detach()
    assert (mine - theirs).abs().mean() < 0.02 * theirs.abs().mean()
    first, channels = avatar.head.first.weight, avatar.layout.channels
    assert not first[:, channels:].any() and other.head.first.weight[:, channels:].any()  # how light falls is another room's
    with torch.no_grad():
        first[:, channels:] = other.head.first.weight[:, channels:]
    assert all(torch.equal(a, b) for a, b in zip(avatar.head.parameters(), other.head.parameters()))
    assert not avatar.correction.weight.any()


def test_other_modes_of_expression_say_the_same(subject: Subject, trained) -> None:
    data = load_training_set(subject, toy_model(), SMALL.head.expression_modes, 100)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(data.psi.shape[1],) * 2))
    odd = dataclasses.replace(data.condition, matrix=data.condition.matrix @ turn * 0.6, offset=data.condition.offset)
    odd_data = dataclasses.replace(data, condition=odd, psi=odd.expression(data.track)[data.index])
    avatar = new_trainer(odd_data, toy_model(), SMALL).avatar
    start_from(avatar, trained / "field.safetensors", data.track, data.index)
    other = Avatar.load(trained / "field.safetensors")
    mine, theirs = avatar.blend(torch.from_numpy(odd_data.psi)).detach(), other.blend(torch.from_numpy(data.psi)).detach()
    spread = (theirs - theirs.mean(0)).abs().mean()
    assert (mine - theirs).abs().mean() < 0.25 * spread  # conditions are clipped, each set at its own places


def test_training_from_a_run_is_ahead_of_training_from_the_seed(subject: Subject, trained) -> None:
    head = slice(14, 40), slice(20, 44)
    reference = Avatar.load(trained / "field.safetensors").render(subject.track, 10, np.zeros((64, 64, 3), np.float32))[head]

    def loss(**more) -> float:
        folder = train(subject, dataclasses.replace(SMALL, steps=5, run="x" + "".join(more), **more), toy_model())
        image = Avatar.load(folder / "field.safetensors").render(subject.track, 10, np.zeros((64, 64, 3), np.float32))[head]
        return float(np.square(image - reference).mean())

    assert loss(init=str(trained)) < 0.5 * loss()


def test_what_does_not_fit_is_said(subject: Subject, trained, tmp_path) -> None:
    data = load_training_set(subject, toy_model(), SMALL.head.expression_modes, 100)
    wide = dataclasses.replace(SMALL, head=dataclasses.replace(SMALL.head, width=32))
    with pytest.raises(InputError, match="another layout .*width 16 instead of 32"):
        start_from(new_trainer(data, toy_model(), wide).avatar, trained, data.track, data.index)
    renamed = data.track.replace(expression_names=tuple(f"x{n}" for n in data.track.expression_names))
    with pytest.raises(InputError, match="another face model"):
        start_from(new_trainer(data, toy_model(), SMALL).avatar, trained, renamed, data.index)
    (tmp_path / "field.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="damaged"):
        start_from(new_trainer(data, toy_model(), SMALL).avatar, tmp_path, data.track, data.index)
    with pytest.raises(InputError, match="--init"):
        TrainConfig(init=str(tmp_path / "nothing")).check()


def test_a_prior_of_two_heads_is_a_start_for_either(subject: Subject, tmp_path) -> None:
    other = make_subject(tmp_path / "second", frames=44, size=64)
    train_prior([subject, other], SMALL, rounds=4, steps=40, out=tmp_path / "prior.safetensors", model=toy_model())
    for part in (subject, other):
        data = load_training_set(part, toy_model(), SMALL.head.expression_modes, 100)
        errors = []
        for begin in (False, True):
            trainer = new_trainer(data, toy_model(), SMALL)
            if begin:
                start_from(trainer.avatar, tmp_path / "prior.safetensors", data.track, data.index)
            image = trainer.avatar.render(data.track, 10, data.background)[14:40, 20:44]
            errors.append(float(np.square(image - data.images[10][14:40, 20:44] / 255).mean()))
        assert errors[1] < 0.6 * errors[0]
    with pytest.raises(InputError, match="at least one subject"):
        train_prior([], SMALL, 1, 1, tmp_path / "none.safetensors")
