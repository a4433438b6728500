"""Training on the toy subject: it learns, generalises, can be stopped, killed and resumed, and renders fast as it renders slowly."""

import dataclasses
import math
import os
import signal

import numpy as np
import pytest
import torch

from recon.subject import Subject
from render.files import InputError, StageError
from render.video import load_video
from synthetic import make_subject, toy_model
from thnerf.avatar import Avatar
from thnerf.config import FieldConfig, MotionConfig, TorsoConfig, TrainConfig
from thnerf.dataset import load_background, load_training_set
from thnerf.trainer import Trainer, load_renderer, new_trainer, train, write_tensors

SMALL = TrainConfig(
    steps=150, samples_per_step=12000, preview_seconds=1e9, save_seconds=1e9,
    head=FieldConfig(levels=6, log2_entries=12, finest_resolution=96, width=16, expression_modes=2, occupancy=48, step_mm=6),
    torso=TorsoConfig(levels=4, log2_entries=10, finest_resolution=64, width=16))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=66, size=64)


@pytest.fixture(scope="module")
def trained(subject: Subject):
    return train(subject, dataclasses.replace(SMALL, steps=500), toy_model())


def held_out_psnr(subject: Subject, images) -> float:
    truth = load_video(subject.video_path)
    return float(np.mean([-10 * np.log10(((image - truth[i] / 255.0) ** 2).mean()) for i, image in images]))


def test_learns_frames_it_never_saw(subject: Subject, trained) -> None:
    renderer, background = load_renderer(trained, subject), load_background(subject, 64, 64)
    test = subject.frames("test")
    learned = held_out_psnr(subject, [(i, renderer.frame(subject.track, int(i))) for i in test])
    truth = load_video(subject.video_path)
    frozen = held_out_psnr(subject, [(i, truth[30] / 255.0) for i in test])
    empty = held_out_psnr(subject, [(i, background) for i in test])
    assert learned > 24 and learned > frozen + 4 and learned > empty + 8


def test_run_folder_is_complete(trained) -> None:
    assert sorted(p.name for p in trained.iterdir() if p.is_file()) == ["config.yaml", "field.safetensors", "preview.png", "track.npz"]


def test_fast_renderer_equals_the_readable_one(subject: Subject, trained) -> None:
    renderer, background = load_renderer(trained, subject), load_background(subject, 64, 64)
    avatar = Avatar.load(trained / "field.safetensors", backend="reference")
    for index in (0, 31, 62):
        fast, slow = renderer.frame(subject.track, index), avatar.render(subject.track, index, background)
        assert -10 * np.log10(((fast - slow) ** 2).mean()) > 45


def test_frames_at_another_size_show_the_same(subject: Subject, trained) -> None:
    renderer = load_renderer(trained, subject)
    small = renderer.frame(subject.track, 10)
    large = renderer.frame(subject.track.replace(camera=subject.track.camera.resized(120, 128)), 10)
    assert large.shape == (128, 120, 3)
    shrunk = torch.nn.functional.interpolate(torch.from_numpy(large).permute(2, 0, 1)[None], (64, 64), mode="area")[0].permute(1, 2, 0).numpy()
    assert -10 * np.log10(((small - shrunk) ** 2).mean()) > 24


def test_outline_of_a_larger_picture_is_sampled_more_finely_and_nothing_else(subject: Subject, trained) -> None:
    """Rays that keep between 5 and 95 % of their light are those of a renderer with a third of the step, the others those of one that refines nothing."""
    part = subject.track.replace(camera=subject.track.camera.resized(130, 128))[10:11]
    whole, coarse, fine = (load_renderer(trained, subject) for _ in range(3))
    coarse.camera = fine.camera = None  # every picture counts as the one that was learned
    fine.use_volume(dataclasses.replace(fine.avatar.volume, step=fine.avatar.volume.step / 3))
    condition = whole.avatar.condition
    found, plain, exact = (r._render_head(part, condition.expression(part), condition.pose(part)) for r in (whole, coarse, fine))
    outline = (plain[1] > 0.05) & (plain[1] < 0.95)
    assert 0.002 < outline.mean() < 0.7 and np.abs(plain[1] - exact[1])[outline].max() > 0.01
    for a, b, c in zip(found, plain, exact):
        assert np.abs(a - c)[outline].max() < 1e-3 and np.abs(a - b)[~outline].max() < 1e-3


def test_rgba_over_a_background_is_the_frame(subject: Subject, trained) -> None:
    renderer = load_renderer(trained, subject)
    plate = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    rgba = renderer.frame_rgba(subject.track, 5)
    over = rgba[..., :3] * rgba[..., 3:] + plate * (1 - rgba[..., 3:])
    assert np.abs(over - renderer.frame(subject.track, 5, plate)).max() < 0.02
    assert rgba[0, 0, 3] < 0.2 and rgba[28, 32, 3] > 0.9


def test_wrong_tracks_are_refused(subject: Subject, trained) -> None:
    renderer, track = load_renderer(trained, subject), subject.track
    with pytest.raises(InputError, match="torso"):
        renderer.frame(track.replace(torso=np.zeros((len(track), 7))), 0)
    with pytest.raises(InputError, match="expression"):
        renderer.frame(track.replace(expression_names=("a", "b", "c", "d")), 0)
    with pytest.raises(IndexError):
        renderer.frame(track, len(track))


def test_resumed_training_takes_the_same_steps(subject: Subject, tmp_path) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    straight = new_trainer(data, toy_model(), SMALL)
    for i in range(8):
        straight.advance(i / 100)
        if i == 3:
            write_tensors(tmp_path / "state.safetensors", *straight.state())
    resumed = Trainer.resume(data, SMALL, tmp_path / "state.safetensors")
    assert resumed.steps == 4
    for i in range(4, 8):
        resumed.advance(i / 100)
    assert torch.allclose(straight.avatar.tables.tables, resumed.avatar.tables.tables, atol=1e-6)
    for a, b in zip(straight.avatar.head.parameters(), resumed.avatar.head.parameters()):
        assert torch.allclose(a, b, atol=1e-5)
    assert straight.rng.integers(1 << 30) == resumed.rng.integers(1 << 30)


def test_the_optimiser_has_every_parameter_once_and_moves_the_torso_slowly(subject: Subject) -> None:
    trainer = new_trainer(load_training_set(subject, toy_model(), 2, 1000), toy_model(), SMALL)
    held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    wanted = [p for module in (*trainer.avatar.modules.values(), trainer.exposure) for p in module.parameters()]
    assert len(held) == len(wanted) and {id(p) for p in held} == {id(p) for p in wanted}
    before = trainer.avatar.torso.affine.detach().clone()
    trainer.advance(0.0)
    assert 0 < float((trainer.avatar.torso.affine.detach() - before).abs().max()) < 1.01 * SMALL.torso_rate  # Adam's first step is one rate long


def test_hard_frames_are_drawn_more_often(subject: Subject) -> None:
    trainer = new_trainer(load_training_set(subject, toy_model(), 2, 1000), toy_model(), SMALL)
    assert np.ptp(trainer._frame_weight()) == 0
    for _ in range(12):
        trainer.advance(0.0)
    worst, weight = trainer.frame_error.argmax(), trainer._frame_weight()
    assert weight.argmax() == worst and weight.mean() == pytest.approx(1) and weight.min() >= 1 - SMALL.hard_frames
    everyone = Trainer(trainer.data, trainer.avatar, dataclasses.replace(SMALL, hard_frames=0.0))
    assert everyone._frame_weight() is None


def interrupted_training(subject: Subject, config: TrainConfig, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that SIGINT stops at a step."""
    advance = Trainer.advance

    def interrupted(trainer: Trainer, done: float) -> dict[str, float]:
        if trainer.steps == step:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(trainer, done)

    with monkeypatch.context() as patched, pytest.raises(StageError, match="run the same command again"):
        patched.setattr(Trainer, "advance", interrupted)
        train(subject, config, toy_model())


def test_interrupt_saves_and_the_same_command_goes_on(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, run="stopped", steps=100000)
    interrupted_training(subject, config, 5, monkeypatch)
    folder = subject.run("stopped")
    data = load_training_set(subject, toy_model(), 2, 1000)
    made = Trainer.resume(data, config, folder / "state.safetensors").steps
    assert made > 0
    with pytest.raises(InputError, match="steps"):
        train(subject, dataclasses.replace(config, steps=made + 5), toy_model())
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("steps: 100000", f"steps: {made + 5}"))
    assert train(subject, dataclasses.replace(config, steps=made + 5), toy_model()) == folder
    assert (folder / "field.safetensors").exists() and not (folder / "state.safetensors").exists()


def test_a_stopped_run_may_be_given_more_minutes_and_a_finished_one_says_what_to_do(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, run="longer", steps=None, minutes=1.0)
    interrupted_training(subject, config, 5, monkeypatch)
    folder = subject.run("longer")
    with pytest.raises(InputError, match="go on with --minutes 1 or more"):
        train(subject, dataclasses.replace(config, minutes=0.5), toy_model())
    positions = []

    def advance(trainer: Trainer, done: float) -> dict[str, float]:
        positions.append(done)
        trainer.steps += 1
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    with monkeypatch.context() as patched, pytest.raises(StageError, match="run the same command again"):
        patched.setattr(Trainer, "advance", advance)
        train(subject, dataclasses.replace(config, minutes=100.0), toy_model())
    assert 0 < positions[0] < 0.02, "the schedule goes on over the new length"
    assert "minutes: 100.0" in (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("minutes: 100.0", "minutes: 0.05"))
    train(subject, dataclasses.replace(config, minutes=0.05), toy_model())  # its time is up already
    with pytest.raises(InputError, match="--run NAME --init .*longer --minutes 2"):
        train(subject, dataclasses.replace(config, minutes=2.0), toy_model())
    assert train(subject, dataclasses.replace(config, minutes=0.05), toy_model()) == folder


def test_damaged_checkpoints_say_what_to_do(subject: Subject, trained) -> None:
    config = dataclasses.replace(SMALL, run="damaged", steps=3)
    folder = train(subject, config, toy_model())
    weights = folder / "field.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match="delete it and run thnerf train again"):
        load_renderer(folder, subject)
    (folder / "state.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="state.safetensors"):
        train(subject, config, toy_model())
    with pytest.raises(InputError, match="run thnerf train first"):
        load_renderer(subject.run("nothing"), subject)


def test_a_finished_run_is_left_alone(subject: Subject, trained) -> None:
    before = (trained / "field.safetensors").stat().st_mtime_ns
    assert train(subject, dataclasses.replace(SMALL, steps=500), toy_model()) == trained
    assert (trained / "field.safetensors").stat().st_mtime_ns == before


def test_divergence_is_reported_and_does_not_spoil_the_weights(subject: Subject) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    trainer = new_trainer(data, toy_model(), SMALL)
    trainer.advance(0.0)
    before = trainer.avatar.tables.tables.clone()
    trainer.data.background[...] = np.nan
    with pytest.raises(StageError, match="diverged"):
        for _ in range(30):
            trainer.advance(0.0)
    assert torch.equal(before, trainer.avatar.tables.tables)


@pytest.mark.parametrize("bad", [{"minutes": 0.0}, {"steps": 0}, {"device": "tpu"}, {"head": FieldConfig(width=30)}, {"minutes": math.nan}, {"seed": -1}, {"rate": math.inf},
                                 {"head": FieldConfig(levels=0)}, {"head": FieldConfig(levels=99)}, {"head": FieldConfig(log2_entries=40)}, {"head": FieldConfig(base_resolution=0)},
                                 {"head": FieldConfig(finest_resolution=1)}, {"head": FieldConfig(finest_resolution=8)}, {"head": FieldConfig(step_mm=math.nan)}, {"motion": MotionConfig(dropout=1.5)}])
def test_impossible_settings_are_refused(subject: Subject, bad: dict) -> None:
    with pytest.raises(InputError):
        train(subject, dataclasses.replace(SMALL, run="bad", **bad), toy_model())
    assert not subject.run("bad").exists()


def test_a_misspelt_encoder_is_refused_before_any_work(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subject, "has_audio", True)
    with pytest.raises(InputError, match="the speech encoder is .* not 'whisper'"):
        train(subject, dataclasses.replace(SMALL, run="misheard", motion=MotionConfig(encoder="whisper")), toy_model())
    assert not subject.run("misheard").exists()


def test_a_run_is_not_continued_on_another_fit(trained, subject: Subject, tmp_path) -> None:
    import json
    import shutil

    copy = tmp_path / "again"
    shutil.copytree(subject.path, copy)
    info = json.loads((copy / "subject.json").read_text())
    (copy / "subject.json").write_text(json.dumps({**info, "fingerprint": "another"}))
    with pytest.raises(InputError, match="fitted again"):
        train(Subject.open(copy), dataclasses.replace(SMALL, steps=500), toy_model())
