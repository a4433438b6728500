"""Speed of the speech features, the lip network and the head-motion sampler, in times faster than real time.

Run: python tests/benchmarks/bm_motion.py
"""

from __future__ import annotations

import time

import numpy as np

from thnerf import audio
from thnerf.lipnet import LipNet
from thnerf.pose import Layout, PoseModel

SECONDS, FPS = 120, 25


def clock(work) -> float:
    """Seconds of the second of two calls."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print one line a stage."""
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=SECONDS * audio.RATE)).astype(np.float32)
    frames = SECONDS * FPS
    features = audio.hear(samples, FPS, frames).features
    net = LipNet(audio.BANDS, 10)
    states = np.cumsum(rng.normal(size=(1200, 30)), 0) / 30
    model = PoseModel(FPS, Layout(6, tuple(f"eye{i}" for i in range(14))), states.astype(np.float32), np.array([[0, 1200]]), np.ones(1200, np.float32),
                      np.zeros((14, 0)), np.array([4.0, 2.0]), states.min(0), states.max(0))
    work = {"features": lambda: audio.hear(samples, FPS, frames), "one lip network": lambda: net.predict(features, frames),
            "head motion": lambda: model.sample(np.ones(frames), 0)}
    for name, call in work.items():
        seconds = clock(call)
        print(f"{name:16s} {seconds * 1000:8.1f} ms for {SECONDS} s of speech: {SECONDS / seconds:8.0f} times real time")


if __name__ == "__main__":
    main()
