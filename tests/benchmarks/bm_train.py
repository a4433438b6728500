"""Training samples a second and rendered frames a second of a subject.

python tests/benchmarks/bm_train.py SUBJECT [RUN] [--no-avx512] [--size 512] [--json FILE]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait
from bench import milliseconds, parse, write  # noqa: E402

from recon.subject import Subject  # noqa: E402
from thnerf.config import TrainConfig  # noqa: E402
from thnerf.dataset import load_training_set  # noqa: E402
from thnerf.trainer import load_renderer, new_trainer  # noqa: E402


def training(subject: Subject) -> dict[str, float]:
    """Field samples a second, gradient and optimisers included: at the start, and once the pose correction learns too."""
    config = TrainConfig(device="cpu")
    trainer = new_trainer(load_training_set(subject, subject.model, config.head.expression_modes, 400), subject.model, config)
    figures = {}
    for name, begin in (("samples/s, first steps", 0), ("samples/s, with pose gradients", 300)):
        trainer.steps = max(begin, trainer.steps)
        for _ in range(10):
            trainer.advance(0.0)
        start, seen, steps = time.perf_counter(), trainer.samples_seen, 40
        for _ in range(steps):
            trainer.advance(0.0)
        seconds = time.perf_counter() - start
        figures[name] = (trainer.samples_seen - seen) / seconds
        print(f"{name}: {figures[name] / 1e3:.0f} k, {seconds / steps * 1e3:.0f} ms a step, {trainer.samples_per_ray:.1f} samples a ray (asked 1200 k)")
    return figures


def rendering(subject: Subject, run: str, size: int) -> dict[str, float]:
    """Frames a second of the field alone, without video encoding."""
    renderer, track = load_renderer(subject.run(run), subject, "cpu"), subject.track
    track = track if track.camera.width == size else track.replace(camera=track.camera.resized(size, size))
    state = {"frame": 0}

    def one() -> None:
        renderer.frame(track, state["frame"] % len(track))
        state["frame"] += 7

    figures = {f"frames/s at {size}": 1e3 / milliseconds(one, 60)}
    print(", ".join(f"{k}: {v:.1f}" for k, v in figures.items()))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--size", type=int, default=256)
    options = parse(parser)
    subject = Subject.open(options.subject)
    figures = training(subject)
    if options.run is not None:
        figures |= rendering(subject, options.run, options.size)
    write("train", figures, options.json)


if __name__ == "__main__":
    main()
