"""Time and memory of `thnerf export` and `import` on a 10-minute Track: python tests/benchmarks/bm_export.py [--minutes 10] [--json FILE] [format …]

Each format is exported, and read back where it can be, by the command line in a process of its own, start included: wall clock, peak resident memory,
size. The Track has 52 weights that all move in every frame. Formats whose package is not installed, and FBX (which needs Blender), are left out.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1]), str(Path(__file__).parent)]

from bench import parse, write  # noqa: E402
from exporting import moving_track, small_subject  # noqa: E402

from thnerf.export import FORMATS  # noqa: E402

ASKED = {"seconds": 20, "GiB": 1}


def command(*arguments: str) -> tuple[float, float, str]:
    """Seconds, peak GiB and the last line of stderr (empty where it went well) of one thnerf command."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([sys.executable, "-m", "thnerf.cli", *arguments], stdout=subprocess.DEVNULL, stderr=errors, cwd=Path(__file__).resolve().parents[2])
        while child.poll() is None:  # what the kernel says after the end counts this process, too
            with suppress(OSError, StopIteration):
                peak = max(peak, int(next(x for x in Path(f"/proc/{child.pid}/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1]))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        errors.seek(0)
        return seconds, peak / 2**20, "" if child.returncode == 0 else errors.read().strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=[name for name in FORMATS if name != "fbx"])
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parse(parser)
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        track = moving_track(int(options.minutes * 60 * 25))
        small_subject(folder / "subject", track)
        print(f"{len(track)} frames, asked of an export: {ASKED['seconds']} s, {ASKED['GiB']} GiB")
        for kind in options.formats:
            file = folder / f"track_{kind}{FORMATS[kind].suffixes[0]}"
            seconds, memory, error = command("export", str(folder / "subject/track.npz"), "--to", kind, "-o", str(file))
            if error:
                print(f"{kind:10s} left out: {error}")
                continue
            results[kind] = {"seconds": seconds, "GiB": memory, "MB": file.stat().st_size / 1e6}
            line = f"{kind:10s} export {seconds:6.1f} s {memory:5.2f} GiB {file.stat().st_size / 1e6:7.1f} MB"
            if FORMATS[kind].two_way:
                seconds, memory, error = command("import", str(file), "--subject", str(folder / "subject"), "--fps", "25", "-o", str(folder / "back.npz"))
                results[kind] |= {"import_seconds": seconds, "import_GiB": memory}
                line += f"   import {seconds:6.1f} s {memory:5.2f} GiB {error}"
            print(line, flush=True)
            file.unlink()
    write("export", {"frames": len(track), "asked": ASKED, "formats": results}, options.json)


if __name__ == "__main__":
    main()
