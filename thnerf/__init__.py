"""The talking head: hash-encoded field, torso, speech to motion, training, synthesis, metrics, export.

Submodules are imported by name so that ``import thnerf`` stays cheap; ``thnerf.cli`` is the command line.
"""

import os

# torch and numba each keep OpenMP threads. If idle ones spin, they starve each other (ten times slower on two busy cores).
# This is read when the OpenMP runtime loads, so it must be set before the first import of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the same of numpy's

__version__ = "0.1.0"
