"""Where to compute: the one place that decides between CPU and CUDA."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from render.files import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


def choose_device(name: str = "auto") -> "torch.device":
    """'cpu', 'cuda', or 'auto': CUDA when PyTorch sees a GPU and Triton is installed, else the CPU.

    Raises InputError, saying what is missing, when CUDA is asked for and cannot be had.
    """
    import torch

    if name not in DEVICES:
        raise InputError(f"--device takes auto, cpu or cuda, not {name!r}")
    seen, triton = torch.cuda.is_available(), importlib.util.find_spec("triton") is not None
    if name == "cuda" and not seen:
        raise InputError("--device cuda needs an NVIDIA GPU and a CUDA build of PyTorch, and PyTorch sees no GPU here; use --device cpu")
    if name == "cuda" and not triton:
        raise InputError("--device cuda needs Triton, which comes with PyTorch's CUDA builds and is missing here; pip install triton, or use --device cpu")
    return torch.device("cuda" if name != "cpu" and seen and triton else "cpu")
