"""Speed of the hash encoding: python tests/benchmarks/bm_encoding.py [backend …]"""

import sys
import time

import thnerf  # noqa: F401 - before torch: it sets how idle OpenMP threads wait
import torch

from thnerf.encodings import BACKENDS, BlendedTables, HashGridLayout, encode

SAMPLES = 50000


def milliseconds(work, repeat: int = 10) -> float:
    """Mean time of a call after a first one that compiles."""
    work()
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat * 1e3


def main(backends: list[str]) -> None:
    layout, psi = HashGridLayout(3, 10), torch.randn(2, 15)
    x, which = torch.rand(SAMPLES, 3) * 0.5 + 0.25, torch.arange(SAMPLES) % 2
    seed = torch.randn(SAMPLES, layout.channels)
    for name in backends:
        tables = BlendedTables(layout, 15, backend=name)
        table, moving = tables.blend(psi), x.clone().requires_grad_()
        repeat = 1 if name == "reference" else 10

        def both(positions: torch.Tensor) -> None:
            table.grad = None
            encode(positions, table, layout, which, name).backward(seed)

        forward = milliseconds(lambda: encode(x, table.detach(), layout, which, name), repeat)
        print(f"{name}: blend 2 frames {milliseconds(lambda: tables.blend(psi), repeat):.1f} ms, forward {forward:.1f} ms ({SAMPLES / forward / 1e3:.1f} M samples/s), "
              f"with table gradient {milliseconds(lambda: both(x), repeat):.1f} ms, with position gradient {milliseconds(lambda: both(moving), repeat):.1f} ms, "
              f"Adam {milliseconds(lambda: tables.step(table.grad, psi, 1e-2, 3e-3), repeat):.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1:] or list(BACKENDS))
