"""Speed of the hash encoding against plain torch: python tests/benchmarks/bm_encoding.py [--no-avx512] [--json FILE] [backend …]

The layout is the head's (10 levels, 2 features, 2^15 entries, two blended frames). Positions are random in the middle of the box,
which is harder on caches than the samples of rays are.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait
import torch  # noqa: E402
from bench import milliseconds, parse, write  # noqa: E402

from thnerf.encodings import BlendedTables, HashGridLayout, encode  # noqa: E402

ASKED = {"forward": 60, "forward + backward": 40}  # times plain torch


def measure(name: str, samples: int) -> dict[str, float]:
    """Milliseconds of each operation of one backend."""
    layout, psi = HashGridLayout(3, 10), torch.randn(2, 15)
    x, which = torch.rand(samples, 3) * 0.5 + 0.25, torch.arange(samples) % 2
    seed = torch.randn(samples, layout.channels)
    tables = BlendedTables(layout, 15, backend=name)
    table, moving, repeat = tables.blend(psi), x.clone().requires_grad_(), 5 if name == "reference" else 30
    frozen = table.detach()

    def both(positions: torch.Tensor) -> None:
        table.grad = None
        encode(positions, table, layout, which, name).backward(seed)

    return {"blend 2 frames": milliseconds(lambda: tables.blend(psi), repeat), "forward": milliseconds(lambda: encode(x, frozen, layout, which, name), repeat),
            "forward + backward": milliseconds(lambda: both(x), repeat), "forward + backward + positions": milliseconds(lambda: both(moving), repeat),
            "Adam": milliseconds(lambda: tables.step(table.grad, psi, 1e-2, 3e-3), repeat)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backends", nargs="*", default=["reference", "numba"])
    parser.add_argument("--samples", type=int, default=50000)
    options = parse(parser)
    times = {name: measure(name, options.samples) for name in options.backends}
    print(f"{options.samples} samples, {torch.get_num_threads()} torch threads, ms a call")
    for what in next(iter(times.values())):
        row = "   ".join(f"{name} {t[what]:8.2f}" for name, t in times.items())
        faster = ""
        if "reference" in times:
            faster = "   " + "   ".join(f"{name} {times['reference'][what] / t[what]:.0f}x" for name, t in times.items() if name != "reference")
        print(f"{what:32s} {row}{faster}" + (f" (asked {ASKED[what]}x)" if what in ASKED else ""))
    write("encoding", {"samples": options.samples, "threads": torch.get_num_threads(), "milliseconds": times}, options.json)


if __name__ == "__main__":
    main()
