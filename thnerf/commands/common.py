"""What every command shares: the flags that all take, and those of the commands that use a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from tyro.conf import UseAppendAction, arg

from thnerf.direction import Direction, Wishes

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


@dataclass(frozen=True)
class LiveDirection(Wishes):
    """How a performance is to be given that nobody knows yet: what of `Direction` works while the sound comes in."""

    pose: str = "audio"
    """Head pose: audio (predicted), source (the footage's, there and back), still, or a Track .npz."""
    blink: str = "auto"
    """Blinks: auto (the subject's own rate) or a number a minute."""
    gaze: str = "auto"
    """Gaze: auto, camera (eye contact whatever the head does), or YAW,PITCH in degrees against the head (+ to the subject's left, + up; write
    --gaze=-10,0 when it begins with a minus)."""

    def whole(self) -> Direction:
        """The same wishes as every other command has them. Raises InputError as `Direction` does."""
        return Direction(**asdict(self))


Shared = Annotated[Common, arg(name="")]
SharedRun = Annotated[RunChoice, arg(name="")]
Directed = Annotated[Direction, arg(name=""), UseAppendAction]
DirectedLive = Annotated[LiveDirection, arg(name=""), UseAppendAction]
