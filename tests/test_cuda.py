"""The whole avatar on the CUDA path: trained, saved, restored and rendered by Triton (in its interpreter where there is no GPU)."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="the toy subject is a video")

import thnerf.device
from recon.subject import Subject
from render.files import InputError
from synthetic import make_subject, toy_model
from thnerf.avatar import Avatar
from thnerf.config import FieldConfig, TorsoConfig, TrainConfig
from thnerf.dataset import load_background, load_training_set
from thnerf.device import choose_device
from thnerf.encodings import available
from thnerf.renderer import HeadRenderer
from thnerf.trainer import Trainer, load_renderer, new_trainer, train, write_tensors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are decorated
needs_triton = pytest.mark.skipif(not available("triton"), reason="Triton is not installed (it comes with PyTorch for CUDA; pip install triton)")
SMALL = TrainConfig(
    steps=120, samples_per_step=6000, preview_seconds=1e9, save_seconds=1e9, device="cpu",
    head=FieldConfig(levels=5, log2_entries=11, finest_resolution=48, width=16, expression_modes=2, occupancy=32, step_mm=9),
    torso=TorsoConfig(levels=3, log2_entries=9, finest_resolution=48, width=16))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=33, size=32)


@pytest.fixture(scope="module")
def trained(subject: Subject):
    return train(subject, SMALL, toy_model())


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreted program costs its time whatever its size, so there are few of them."""
    if DEVICE == "cpu":
        monkeypatch.setattr("thnerf.encodings.triton_backend._BLOCK", 8192)
        monkeypatch.setattr("render.march_triton._BLOCK", 1024)
        monkeypatch.setattr("thnerf.fused_triton.TILE", 32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


@needs_triton
def test_fused_renderer_equals_the_readable_one(subject: Subject, trained, large_blocks) -> None:
    from thnerf.renderer_cuda import CudaRenderer

    renderer, background = CudaRenderer.load(trained, subject, DEVICE), load_background(subject, 32, 32)
    avatar = Avatar.load(trained / "field.safetensors", backend="reference")
    readable, fast = avatar.render(subject.track, 9, background), renderer.frame(subject.track, 9)
    assert psnr(readable, background) < 30 and psnr(fast, readable) > 45
    part = subject.track.replace(camera=subject.track.camera.resized(20, 18))
    assert psnr(renderer.frame(part, 3), HeadRenderer.load(trained, subject).frame(part, 3)) > 45
    rgba = renderer.frame_rgba(subject.track, 9)
    over = rgba[..., :3] * rgba[..., 3:] + background * (1 - rgba[..., 3:])
    assert psnr(over, fast) > 40
    plate = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    assert psnr(renderer.frame(subject.track, 9, plate), HeadRenderer.load(trained, subject).frame(subject.track, 9, plate)) > 45
    renderer.use_volume(dataclasses.replace(avatar.volume, occupancy=np.zeros_like(avatar.volume.occupancy)))
    assert np.abs(renderer.frame(subject.track, 9, plate)[0] - plate[0]).max() < 1e-6  # the head is gone


@needs_triton
def test_training_on_triton_takes_the_steps_of_the_cpu(subject: Subject, tmp_path, large_blocks) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    config = dataclasses.replace(SMALL, samples_per_step=1500)
    cpu, gpu = new_trainer(data, toy_model(), config), new_trainer(data, toy_model(), dataclasses.replace(config, device=DEVICE, encoding="triton"))
    for trainer in (cpu, gpu):
        trainer.steps = 300  # from here on the pose correction learns too
        for i in range(2):
            trainer.advance(i / 100)
    assert gpu.avatar.marching.name == "triton"
    moved = (cpu.avatar.tables.tables - new_trainer(data, toy_model(), config).avatar.tables.tables).abs() > 1e-3
    a, b = cpu.avatar.tables.tables[moved], gpu.avatar.tables.tables.cpu()[moved]
    assert moved.sum() > 500 and np.corrcoef(a, b)[0, 1] > 0.98
    assert torch.allclose(cpu.avatar.correction.weight, gpu.avatar.correction.weight.cpu(), atol=1e-4)
    write_tensors(tmp_path / "state.safetensors", *gpu.state())
    resumed = Trainer.resume(data, config, tmp_path / "state.safetensors")  # begun on CUDA, continued on the CPU
    assert resumed.steps == 302 and torch.equal(resumed.avatar.tables.tables, gpu.avatar.tables.tables.cpu())
    resumed.advance(0.1)


def test_cuda_is_refused_with_what_is_missing(subject: Subject, trained, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        choose_device("tpu")
    for wrong in ({"encoding": "triton"}, {"marching": "nerfacc"}):
        with pytest.raises(InputError, match="on this device"):
            dataclasses.replace(SMALL, **wrong).check()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    for use in (lambda: choose_device("cuda"), lambda: load_renderer(trained, subject, "cuda"), lambda: train(subject, dataclasses.replace(SMALL, run="gpu", device="cuda"), toy_model())):
        with pytest.raises(InputError, match="sees no GPU"):
            use()
    assert not subject.run("gpu").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(thnerf.device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install triton"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import render.march_triton as m, thnerf.fused_triton as f
INTS = {"n", "limit", "cells", "width", "height", "across", "warp_points", "warp_entries"}
POINTERS = {"levels": "*i32", "occupancy": "*u8", "offsets": "*i32", "counts": "*i32", "ray": "*i32"}
def compile(kernel, constants, scalars=()):
    names = kernel.arg_names
    kind = lambda n: "constexpr" if n in constants else "i32" if n in INTS else "fp32" if n in scalars else POINTERS.get(n, "*fp32")
    made = triton.compile(ASTSource(kernel, {n: kind(n) for n in names}, {(names.index(n),): v for n, v in constants.items()}), target=GPUTarget("cuda", 90, 32))
    assert "sm_90" in made.asm["ptx"] and len(made.asm["cubin"]) > 1000
compile(f._render, {"LEVELS": 10, "PADDED": 16, "HIDDEN": 32, "TILE": 8}, ("warp_unit", "warp_scale", "step_length", "optical_step", "stop"))
for fill in (False, True):
    compile(m._march, {"FILL": fill, "BLOCK": 128})
compile(m._composite, {"BLOCK": 128}, ("step",))
compile(m._composite_backward, {"BLOCK": 128}, ("step",))
"""


@needs_triton
def test_triton_kernels_compile_for_a_gpu_without_one(tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
