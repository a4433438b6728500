"""How many threads the linear algebra uses."""

from __future__ import annotations

from contextlib import contextmanager
from typing import ContextManager, Iterator


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
