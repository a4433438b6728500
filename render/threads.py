"""How many threads the linear algebra uses, and one that works ahead."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager
from typing import Any, ContextManager, Iterable, Iterator


def one_blas_thread() -> ContextManager[object]:
    """While this is entered, NumPy's and SciPy's matrix products run in the thread that asks for them.

    Fitting makes thousands of small products; the threads of OpenBLAS spin between them, which costs several times the work itself.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """While this is entered, PyTorch works in the thread that asks it: pictures one at a time take twice as long when cores have to wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prefetched(items: Iterable[Any], depth: int = 8) -> Iterator[Any]:
    """The same items, made up to `depth` ahead by a thread (decoding beside detection). Its errors are raised here."""
    buffer: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                buffer.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed over to the consumer, who raises it
            put("error", error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = buffer.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
