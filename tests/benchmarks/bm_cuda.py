"""Everything that needs a GPU, in one command and without network: equality, then speed of encoding, training and rendering.

python tests/benchmarks/bm_cuda.py [--json FILE] [--subject SUBJECT --minutes 5]      on a machine with an NVIDIA GPU
python tests/benchmarks/bm_cuda.py --dry-run                                          tiny, in Triton's interpreter

Without --subject the toy subject of the tests is trained, in memory, so neither videos nor a face model are needed. With it, the
subject is trained for --minutes on the GPU and its held-out face PSNR measured (macron at 512x512 is the asked figure).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
DRY = "--dry-run" in sys.argv
if DRY:
    os.environ["TRITON_INTERPRET"] = "1"

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait
import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench import milliseconds, write  # noqa: E402
from synthetic import toy_background, toy_frame, toy_model, toy_track  # noqa: E402

from thnerf.avatar import Avatar  # noqa: E402
from thnerf.config import FieldConfig, TorsoConfig, TrainConfig  # noqa: E402
from thnerf.dataset import Condition, TrainingSet, head_rays, landmark_boxes  # noqa: E402
from thnerf.encodings import BlendedTables, HashGridLayout, available, encode  # noqa: E402
from thnerf.trainer import Trainer, new_trainer  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"
TESTS = ("tests/test_encodings_triton.py", "tests/test_march_cuda.py", "tests/test_cuda.py")


def wait() -> None:
    """Until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def equality() -> dict[str, Any]:
    """The tests of the CUDA backends, on this GPU."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", *TESTS], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-3000:])
    return {"tests": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:], "tests passed": done.returncode == 0}


def encoding(samples: int) -> dict[str, float]:
    """Milliseconds of the head's encoding (10 levels, 2^15 entries, 2 frames), by backend and type of the tables."""
    layout, figures = HashGridLayout(3, 10, 2, 8 if DRY else 15), {}
    x, which = torch.rand(samples, 3, device=DEVICE), torch.arange(samples, device=DEVICE) % 2
    seed, psi = torch.randn(samples, layout.channels, device=DEVICE), torch.randn(2, 15, device=DEVICE)
    for name in [n for n in ("reference", "triton", "tinycudann") if available(n)]:
        tables = BlendedTables(layout, 15, backend=name, device=DEVICE)
        for dtype in (torch.float32, torch.float16) if name == "tinycudann" else (torch.float32, torch.float16, torch.bfloat16):
            table, moving = tables.blend(psi).detach().to(dtype).requires_grad_(), x.clone().requires_grad_()
            frozen, kind, repeat = table.detach(), f"{name} {str(dtype).removeprefix('torch.')}", 1 if DRY else 30
            figures[f"{kind} forward"] = milliseconds(lambda: encode(x, frozen, layout, which, name), repeat, wait)
            figures[f"{kind} forward + backward"] = milliseconds(lambda: encode(x, table, layout, which, name).backward(seed), repeat, wait)
            figures[f"{kind} forward + backward + positions"] = milliseconds(lambda: encode(moving, table, layout, which, name).backward(seed), repeat, wait)
        gradient = torch.randn(2, layout.size, device=DEVICE)
        figures[f"{name} Adam"] = milliseconds(lambda: tables.step(gradient, psi, 1e-2, 3e-3), 1 if DRY else 30, wait)
    for name, value in figures.items():
        print(f"{name:50s} {value:9.3f} ms for {samples} samples")
    return figures


def toy_set(frames: int, size: int) -> TrainingSet:
    """The toy subject as a training set, drawn into memory."""
    track, model, index = toy_track(frames, size), toy_model(), np.arange(frames)
    drawn = [toy_frame(track, i) for i in range(frames)]
    images, mattes = np.stack([(image * 255 + 0.5).astype(np.uint8) for image, _ in drawn]), np.stack([matte.astype(np.uint8) * 255 for _, matte in drawn])
    condition = Condition.fit(track, index, model, 11)
    return TrainingSet(track, index, images, mattes, toy_background(size).astype(np.float32), *landmark_boxes(track, model, index), condition,
                       condition.expression(track), condition.pose(track), condition.torso(track), *head_rays(track, index), np.linalg.inv(track.camera.K), np.zeros((len(index), 2, 3), np.float32))


def training(data: TrainingSet, samples: int, steps: int) -> tuple[Trainer, dict[str, float]]:
    """Field samples a second with gradient and optimisers, once the pose correction learns too."""
    small = {"head": FieldConfig(levels=4, log2_entries=9, finest_resolution=32, width=16, occupancy=32, step_mm=9), "torso": TorsoConfig(levels=3, log2_entries=8, finest_resolution=32, width=16)}
    config = TrainConfig(samples_per_step=samples, device="auto", encoding="triton", **(small if DRY else {}))
    trainer = new_trainer(data, toy_model(), config)
    for _ in range(1 if DRY else 20):
        trainer.advance(0.0)
    trainer.steps = 300
    wait()
    start, seen = time.perf_counter(), trainer.samples_seen
    for _ in range(steps):
        report = trainer.advance(0.2)
    wait()
    seconds = time.perf_counter() - start
    figures = {f"training samples/s, {samples} a step": (trainer.samples_seen - seen) / seconds, f"ms a step, {samples} a step": seconds / steps * 1e3,
               f"batch PSNR after {trainer.steps} counted steps, {samples} a step": report["psnr"]}
    print("\n".join(f"{k}: {v:.1f}" for k, v in figures.items()))
    return trainer, figures


def rendering(trainer: Trainer, sizes: list[int]) -> dict[str, float]:
    """Frames a second without encoding, and the difference to the readable renderer on the CPU (dB)."""
    from thnerf.renderer_cuda import CudaRenderer

    figures, data = {}, trainer.data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.safetensors"
        trainer.avatar.save(path)
        on_cpu = Avatar.load(path)
        renderer = CudaRenderer(on_cpu, data.background, data.track.camera.at(slice(0, 1)))
        renderer.attach(Avatar.load(path, "triton", DEVICE))
    exact = on_cpu.render(data.track, 3, data.background)
    figures["fused against readable, dB"] = float(-10 * np.log10(np.mean((renderer.frame(data.track, 3) - exact) ** 2)))
    for size in sizes:
        track = data.track.replace(camera=data.track.camera.resized(size, size))
        state = {"frame": 0}

        def one() -> None:
            renderer.frame(track, state["frame"] % len(track))
            state["frame"] += 1

        figures[f"frames/s at {size}"] = 1e3 / milliseconds(one, 1 if DRY else 60, wait)
    print("\n".join(f"{k}: {v:.1f}" for k, v in figures.items()))
    return figures


def real(path: str, minutes: float) -> dict[str, Any]:
    """Train a fitted subject on the GPU and measure held-out frames."""
    from recon.subject import Subject
    from thnerf.evaluate import evaluate
    from thnerf.trainer import train

    subject = Subject.open(path)
    train(subject, TrainConfig(minutes=minutes, run="cuda", device="cuda", samples_per_step=1 << 18, motion_share=0.0))
    result = evaluate(subject, run="cuda", device="cuda")["reconstruct"]
    return {f"{Path(path).name}, {minutes:g} min, {name}": value for name, value in result.items() if isinstance(value, float)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--subject")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if not DRY and not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU that PyTorch can see; --dry-run shows what would be measured")
    if DRY:  # an interpreted program costs its time whatever its size
        import render.march_triton
        import thnerf.encodings.triton_backend
        import thnerf.fused_triton

        thnerf.encodings.triton_backend._BLOCK, render.march_triton._BLOCK, thnerf.fused_triton.TILE = 8192, 1024, 32
    figures: dict[str, Any] = {} if DRY else equality()
    figures["encoding, ms"] = encoding(64 if DRY else 1 << 20)
    data = toy_set(8, 32) if DRY else toy_set(60, 512)
    for samples in (1000,) if DRY else (48000, 1 << 18, 1 << 20):
        trainer, made = training(data, samples, 1 if DRY else 100)
        figures |= made
    figures |= rendering(trainer, [32] if DRY else [256, 512, 1024])
    if options.subject:
        figures |= real(options.subject, options.minutes)
    write("cuda", figures, options.json)


if __name__ == "__main__":
    main()
