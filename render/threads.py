"""How many threads the linear algebra uses."""

from __future__ import annotations

from typing import ContextManager


def one_blas_thread() -> ContextManager[object]:
    """While this is entered, NumPy's and SciPy's matrix products run in the thread that asks for them.

    Fitting makes thousands of small products; the threads of OpenBLAS spin between them, which costs several times the work itself.
    """
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")
