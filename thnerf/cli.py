"""The command line: every stage behind one name, one result and one exit code.

Exit codes: 0 done, 1 the work failed, 2 the input is at fault. Errors are one sentence on stderr;
with THNERF_DEBUG=1 the traceback follows. Stages are imported when their command runs.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import Any, Callable, Iterator

import tyro
from tyro.conf import FlagCreatePairsOff

from render.files import InputError, StageError, finite
from thnerf.commands.footage import doctor, fit, model, phantom, track
from thnerf.commands.speech import animate, demo, evaluate, render, stream, train, view
from thnerf.commands.tracks import export, import_motion, mesh, retarget

COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {f.__name__: f for f in (demo, doctor, fit, track, train, animate, render, stream, evaluate, view, export, mesh, phantom, model, retarget)}
COMMANDS["import"] = import_motion  # a word that no function can have for a name


def run_command(argv: list[str]) -> int:
    """Parse and run one command; print its result. Returns 0, or 2 when doctor finds that a clip cannot work."""
    as_json = "--json" in argv
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        result = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="thnerf", args=argv, config=(FlagCreatePairsOff,),
            description="A talking head from one clip: track, train, speak, measure, export.")
    if as_json:
        print(json_module.dumps(finite(result), allow_nan=False))
    elif argv[0] not in ("doctor", "evaluate", "stream", "track"):
        for key, value in result.items():
            if not isinstance(value, (dict, list)):
                print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    return 2 if result.get("verdict") == "fail" else 0


def _one_line(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Our own warnings as a sentence on stderr; those of libraries about their internals stay unseen."""
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


def _silence_stdout() -> None:
    """Let nothing be written to a closed pipe when the interpreter flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While this is entered, SIGTERM ends the work as Ctrl-C does, which removes what is unfinished, and not the process at once."""
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``thnerf``. Returns the exit code; errors become one sentence on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        argv = ["--help"]
    try:
        with _terminable():
            return run_command(argv)
    except InputError as error:
        code, message = 2, str(error)
    except StageError as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command resumes what can be resumed"
    except BrokenPipeError:  # whoever read has seen enough
        _silence_stdout()
        return 0
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error} (THNERF_DEBUG=1 shows where)"
    print("thnerf: " + " ".join(message.split()), file=sys.stderr)
    if os.environ.get("THNERF_DEBUG") == "1":
        traceback.print_exc()
    return code


if __name__ == "__main__":
    sys.exit(main())
