"""Feeds damaged files of one format to `import_track`: python tests/fuzz_import.py FORMAT FILE SUBJECT FOLDER [FIRST LAST]

Runs the mutations FIRST to LAST of FILE (their numbers are seeds) in this process, which may take 1 GiB, each within 10 s. Prints one JSON object
with how many became a Track, how many an InputError, and `failures`: [number, what happened] of all others. The number of the mutation in
progress stands in FOLDER/at, so that a crash of the process can be blamed on it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

SECONDS, BYTES = 10, 1 << 30
SPECIAL = (b"nan", b"inf", b"-inf", b"1e308", b"-1e400", b"-1", b"0", b"99999999999999999999", b"2147483648", b"", b"1e-320", b"x", b"{", b"}", b"\"", b"\x00", b"[", b";", b",",
           b"\xff\xfe", b"@999999999 1")


def mutate(data: bytes, number: int) -> bytes:
    """A damaged copy: bytes changed, cut, moved, doubled, or numbers replaced by odd ones."""
    rng = np.random.default_rng([7, number])
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            break
        kind, a = int(rng.integers(9)), int(rng.integers(len(out)))
        early = int(rng.integers(min(len(out), 2000)))  # headers matter more than samples
        a = early if rng.random() < 0.5 else a
        b = min(len(out), a + int(rng.integers(1, 200)))
        if kind == 0:
            out[a] = int(rng.integers(256))
        elif kind == 1:
            out[a] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del out[a:]
        elif kind == 3:
            del out[a:b]
        elif kind == 4:
            out[a:a] = out[a:b] * int(rng.integers(1, 5))
        elif kind == 5:
            out[a:b] = rng.integers(0, 256, b - a, dtype=np.uint8).tobytes()
        elif kind == 6:  # the next number or word
            start = a
            while start < len(out) and out[start] in b" ,\n\t=:[{\"":
                start += 1
            end = start
            while end < len(out) and out[end] not in b" ,\n\t;]}\"":
                end += 1
            out[start:end] = SPECIAL[int(rng.integers(len(SPECIAL)))]
        elif kind == 7:
            out[a : a + 4] = (int(rng.integers(0, 1 << 32))).to_bytes(4, "little")
        else:
            c = int(rng.integers(len(out)))
            out[c:c] = out[a:b]
    return bytes(out)


def main() -> None:
    """See the module text."""
    name, source, subject_path, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    first, last = (int(sys.argv[5]), int(sys.argv[6])) if len(sys.argv) > 6 else (0, 500)
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
    from recon.subject import Subject
    from render.files import InputError
    from thnerf.export import ExportOptions
    from thnerf.export.importer import import_track

    subject, data, options = Subject(subject_path), source.read_bytes(), ExportOptions(fps=25.0)
    import_track(source, subject, options, format=name)  # the whole file can be read, and everything is imported before the limit holds
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    result: dict[str, object] = {"tracks": 0, "refused": 0, "failures": []}
    path = folder / f"mutated{source.suffix}"
    for number in range(first, last):
        (folder / "at").write_text(str(number))
        path.write_bytes(mutate(data, number))
        signal.alarm(SECONDS)
        try:
            track, _ = import_track(path, subject, options, format=name)
            assert len(track) and np.isfinite(track.expression).all()
            result["tracks"] += 1
        except InputError as error:
            result["refused"] += 1
            if not str(error) or len(str(error)) > 2000:
                result["failures"].append([number, f"a message of {len(str(error))} characters"])
        except BaseException as error:  # a traceback is what must not happen
            result["failures"].append([number, "".join(traceback.format_exception(error))[-1500:]])
        finally:
            signal.alarm(0)
    sys.stdout.flush()
    os.write(1, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
