"""What every command shares: the flags that all take, and those of the commands that use a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from thnerf.direction import Direction

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Common:
    """Flags that every command takes."""

    json: bool = False
    """Print the result as one JSON object on stdout; progress and notes stay on stderr."""


@dataclass(frozen=True)
class RunChoice(Common):
    """Flags of the commands that use a training run."""

    run: str = "default"
    """Name of the training run inside the subject folder."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA when PyTorch sees it."""


Shared = Annotated[Common, arg(name="")]
SharedRun = Annotated[RunChoice, arg(name="")]
Directed = Annotated[Direction, arg(name=""), UseAppendAction]
