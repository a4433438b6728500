"""Training samples a second and rendered frames a second of a subject: python tests/benchmarks/bm_train.py SUBJECT [RUN]"""

import sys
import time

import thnerf  # noqa: F401 - before torch: it sets how idle OpenMP threads wait
import torch

from recon.subject import Subject
from thnerf.config import TrainConfig
from thnerf.dataset import load_training_set
from thnerf.trainer import load_renderer, new_trainer


def main(path: str, run: str | None = None) -> None:
    torch.set_flush_denormal(True)
    subject, config = Subject.open(path), TrainConfig()
    start = time.perf_counter()
    trainer = new_trainer(load_training_set(subject, subject.model, config.head.expression_modes, config.max_frames), subject.model, config)
    print(f"loading {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    for _ in range(10):
        trainer.advance(0.0)
    print(f"first 10 steps, compilation included, {time.perf_counter() - start:.1f} s")
    start, seen, steps = time.perf_counter(), trainer.samples_seen, 40
    for _ in range(steps):
        trainer.advance(0.0)
    seconds = time.perf_counter() - start
    print(f"{(trainer.samples_seen - seen) / seconds / 1e3:.0f} k samples/s, {seconds / steps * 1e3:.0f} ms a step, {trainer.samples_per_ray:.1f} samples a ray")
    if run is not None:
        renderer = load_renderer(subject.run(run), subject)
        renderer.frame(subject.track, 0)
        start, count = time.perf_counter(), min(100, len(subject.track))
        for i in range(count):
            renderer.frame(subject.track, i)
        print(f"rendering {count / (time.perf_counter() - start):.1f} frames/s at {subject.track.camera.width}x{subject.track.camera.height}")


if __name__ == "__main__":
    main(*sys.argv[1:])
