"""Aligning a Track to a field: what was moved goes back, whatever it was; frames without a face, and tracks that fit, are left alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from recon.subject import Subject, aligned_path
from recon.track import Track
from render.files import InputError
from render.rotations import angle_between
from synthetic import make_subject, toy_model
from test_trainer import SMALL, interrupted_training
from thnerf.align import Aligner, align
from thnerf.avatar import Avatar
from thnerf.dataset import landmark_boxes, load_background
from thnerf.renderer import HeadRenderer
from thnerf.trainer import Trainer, train

FRAMES = np.arange(0, 60, 7)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=66, size=64)


@pytest.fixture(scope="module")
def avatar(subject: Subject) -> Avatar:
    return Avatar.load(train(subject, dataclasses.replace(SMALL, steps=500, align=0), toy_model()) / "field.safetensors")


@pytest.fixture(scope="module")
def pictures(subject: Subject, avatar: Avatar) -> dict[int, np.ndarray]:
    """Frames as the field itself draws them, so that the exact track is the right answer."""
    renderer = HeadRenderer(avatar, load_background(subject, 64, 64))
    return {int(i): np.round(renderer.frame(subject.track, int(i)) * 255).astype(np.uint8) for i in range(len(subject.track))}


def aligner(subject: Subject, avatar: Avatar, track: Track) -> Aligner:
    return Aligner(avatar, track, subject.frames("train"), load_background(subject, 64, 64))


def moved(track: Track) -> Track:
    rng = np.random.default_rng(3)
    shift = lambda scale, array: array + scale * rng.standard_normal(array.shape)  # noqa: E731
    return track.replace(rotation=shift(0.01, track.rotation), translation=shift(0.7, track.translation), torso=shift(np.array([0.004, 0.004, 0, 0])[: track.torso.shape[1]], track.torso),
                         expression=np.clip(shift(0.07, track.expression), 0, 1))


def test_what_was_moved_goes_back(subject, avatar, pictures):
    off = moved(subject.track)
    found = align(avatar, off, toy_model(), subject.frames("train"), load_background(subject, 64, 64), lambda index: (pictures[int(i)] for i in index), seconds=1e6)
    error = lambda track, name: np.sqrt(np.mean((getattr(track, name) - getattr(subject.track, name))[subject.track.valid] ** 2))  # noqa: E731
    assert angle_between(found.rotation, subject.track.rotation).mean() < 0.6 * angle_between(off.rotation, subject.track.rotation).mean()
    assert error(found, "expression") < 0.8 * error(off, "expression") and error(found, "torso") < 0.85 * error(off, "torso")
    renderer = HeadRenderer(avatar, load_background(subject, 64, 64))
    apart = lambda track: np.mean([np.square(renderer.frame(track, i) - pictures[i] / 255).mean() for i in range(0, 60, 6)])  # noqa: E731
    assert apart(found) < 0.4 * apart(off)


def test_a_track_that_fits_stays(subject, avatar, pictures):
    still = aligner(subject, avatar, subject.track)
    boxes = landmark_boxes(subject.track, toy_model(), FRAMES)[0]
    deltas = np.array([still.solve(int(i), pictures[int(i)], box) for i, box in zip(FRAMES, boxes)])
    head = len(still.deviation)
    assert np.abs(deltas[:, :head] / still.deviation).max() < 0.3 and np.abs(deltas[:, head:] * avatar.condition.torso_scale).max() < 0.0015  # a tenth of a px
    assert still.corrected(np.zeros((len(subject.track), deltas.shape[1]))).expression == pytest.approx(subject.track.expression)


def test_another_picture_moves_a_frame_only_so_far(subject, avatar):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    lost = aligner(subject, avatar, subject.track)
    delta = lost.solve(5, noise, landmark_boxes(subject.track, toy_model(), np.array([5]))[0][0])
    assert np.isfinite(delta).all() and np.abs(delta[:3]).max() < 0.05


def test_frames_between_are_interpolated_within_their_clip(subject, avatar, pictures, monkeypatch):
    monkeypatch.setattr(Aligner, "solve", lambda self, index, picture, box: np.full(len(self.deviation) + len(self.torso_deviation), 1e-3 * index))
    two = subject.track.replace(clip_starts=(0, 33), valid=np.arange(66) != 40)
    asked: list[int] = []
    found = align(avatar, two, toy_model(), subject.frames("train"), load_background(subject, 64, 64), lambda index: (asked.append(int(i)) or pictures[int(i)] for i in index))
    assert {0, 32, 33, 65} <= set(asked) and 40 not in asked and len(asked) < 40
    moved = (found.translation - two.translation)[:, 0]
    np.testing.assert_allclose(moved, 1e-3 * (np.arange(66) - subject.frames("train").mean()), atol=2e-4)  # what is common to all frames is no correction


def test_too_little_time_leaves_the_track_alone(subject, avatar, pictures):
    read = lambda index: (pictures[int(i)] for i in index)  # noqa: E731
    arguments = avatar, subject.track, toy_model(), subject.frames("train"), load_background(subject, 64, 64), read
    assert align(*arguments, seconds=1e-3) is None and align(*arguments, stop=lambda: True) is None


def test_training_keeps_its_track_for_as_long_as_the_fit_is_the_same(tmp_path: Path):
    own = make_subject(tmp_path / "subject", frames=44, size=48)
    config = dataclasses.replace(SMALL, steps=620, samples_per_step=6000, align=1)
    run = train(own, config, toy_model())
    found = Track.load(aligned_path(run))
    assert len(found) == 44 and found.meta["aligned"] and 0 < np.abs(found.translation - own.track.translation).max() < 20
    assert own.aligned(run).meta == found.meta and own.aligned(tmp_path) is own.track
    found.replace(meta={**found.meta, "fit": "another"}).save(aligned_path(run))
    assert own.aligned(run) is own.track
    aligned_path(run).write_bytes(b"PK not a track")
    with pytest.raises(InputError, match="train again"):
        own.aligned(run)


def test_a_training_stopped_after_its_alignment_goes_on_with_the_aligned_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = make_subject(tmp_path / "subject", frames=44, size=48)
    config, advance = dataclasses.replace(SMALL, steps=620, samples_per_step=6000, align=1), Trainer.advance
    interrupted_training(own, config, 320, monkeypatch)
    run, seen = own.run(config.run), []
    stored = aligned_path(run).read_bytes()
    aligned_path(run).rename(tmp_path / "away.npz")
    with pytest.raises(InputError, match="train again"):
        train(own, config, toy_model())
    (tmp_path / "away.npz").rename(aligned_path(run))

    def watched(trainer: Trainer, done: float) -> dict[str, float]:
        seen.append((trainer.steps, trainer.data.track.translation))
        return advance(trainer, done)

    monkeypatch.setattr(Trainer, "advance", watched)
    train(own, config, toy_model())
    assert seen[0][0] > 320 and aligned_path(run).read_bytes() == stored, "it is aligned once"
    np.testing.assert_array_equal(seen[0][1], Track.load(aligned_path(run)).translation)
