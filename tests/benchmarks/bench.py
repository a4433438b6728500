"""What the benchmarks share: timing, figures against what is asked, the machine in words, JSON beside the table, and running without AVX-512."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One line of the table: what, what was asked in words, the value, whether it meets the ask (None: nothing was asked)."""

    what: str
    asked: str
    value: float
    met: bool | None
    note: str = ""

    def __post_init__(self) -> None:
        self.value = float(self.value)


def most(what: str, limit: float, value: float, note: str = "") -> Row:
    """A figure that must not exceed `limit`."""
    return Row(what, f"<= {limit:g}", value, bool(value <= limit), note)


def least(what: str, limit: float, value: float, note: str = "") -> Row:
    """A figure that must reach `limit`."""
    return Row(what, f">= {limit:g}", value, bool(value >= limit), note)


def table(rows: Sequence[Row]) -> None:
    """Print figures beside what is asked of them."""
    print("| figure | asked | measured | |\n|---|---|---|---|")
    for row in rows:
        mark = "" if row.met is None else "met" if row.met else "**missed**"
        print(f"| {row.what} | {row.asked} | {row.value:.3g} {mark} | {row.note} |", flush=True)


def footage() -> Path | None:
    """The folder of the development footage, where there is one."""
    root = Path(__file__).resolve().parents[2]
    return next((Path(p) for p in (os.environ.get("THNERF_FOOTAGE"), root.parent / "shared" / "data") if p and Path(p).is_dir()), None)


def milliseconds(work: Callable[[], Any], repeat: int = 20, wait: Callable[[], Any] = lambda: None) -> float:
    """Median time of a call, after two that compile and warm up. wait: called before the clock is read (CUDA's synchronise)."""
    work(), work(), wait()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def without_avx512() -> None:
    """Run this script again as on a CPU that has AVX2 but not AVX-512 (numba, torch and oneDNN), with a compilation cache of its own."""
    if os.environ.get("NUMBA_CPU_NAME") != "haswell":
        cache = Path(tempfile.gettempdir()) / "thnerf-numba-haswell"
        limits = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(cache), "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **limits})


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with --no-avx512 and --json added and the first obeyed; denormal numbers count as zero from here on, as in training."""
    import torch

    parser.add_argument("--no-avx512", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.no_avx512:
        without_avx512()
    torch.set_flush_denormal(True)
    return options


def machine() -> dict[str, Any]:
    """CPU, cores, GPU if any, versions and date."""
    import numba
    import torch

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()) \
        if Path("/proc/cpuinfo").exists() else platform.processor()
    about = {"date": datetime.date.today().isoformat(), "cpu": cpu, "cores": os.cpu_count(), "instructions": os.environ.get("NUMBA_CPU_NAME", "native"),
             "python": platform.python_version(), "torch": torch.__version__, "numba": numba.__version__}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def write(name: str, figures: dict[str, Any], out: str | None) -> None:
    """Print one line of JSON, and write it to `out` (a file, or a folder in which it becomes NAME.json)."""
    result = {"benchmark": name, "machine": machine(), **figures}
    print(json.dumps(result))
    if out is not None:
        path = Path(out) / f"{name}.json" if Path(out).is_dir() else Path(out)
        path.write_text(json.dumps(result, indent=1) + "\n")
