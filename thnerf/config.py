"""Settings of training, as dataclasses that the command line and config.yaml are made of."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from render.files import InputError, atomic_path, check_numbers
from thnerf.device import choose_device


_INF = math.inf
_GRID = {"levels": (1, 24), "log2_entries": (3, 24), "base_resolution": (2, 2048), "finest_resolution": (2, 8192), "width": (4, 1024)}
_LIMITS: dict[str, tuple[float, float]] = {
    "minutes": (0.05, 100000), "steps": (1, _INF), "seed": (0, 2**31 - 1), "frames_per_step": (1, 1000), "samples_per_step": (1000, 1e8), "hard_frames": (0, 1),
    "structure_weight": (0, 1000), "structure_patches": (1, 1000), "lpips_weight": (0, 1000), "rate": (0, 10), "conditional_rate": (0, 10), "warp_rate": (0, 10),
    "network_rate": (0, 10), "torso_rate": (0, 10), "pose_rate": (0, 10), "exposure_rate": (0, 10), "exposure_weight": (0, 1e6), "matte_weight": (0, 1000), "motion_share": (0, 0.999), "align": (0, 1000),
    "align_share": (0.001, 0.999), "save_seconds": (0, _INF), "preview_seconds": (0, _INF), "max_frames": (1, _INF), "frame_memory_mib": (1, _INF),
    **{f"{part}.{name}": limits for part in ("head", "torso") for name, limits in _GRID.items()},
    "head.expression_modes": (0, 1000), "head.condition_scale": (0, 1000), "head.warp_points": (4, 32), "head.occupancy": (8, 256), "head.step_mm": (0.1, 100),
    "head.samples_per_ray": (1, 10000), "motion.members": (1, 100), "motion.steps": (1, _INF), "motion.batch": (1, 10000), "motion.window": (4, 10000),
    "motion.hidden": (1, 4096), "motion.layers": (1, 16), "motion.ahead": (0, 1000), "motion.dropout": (0, 0.99), "motion.noise": (0, 100), "motion.rate": (0, 10),
    "motion.weight_decay": (0, 1000), "motion.modes": (1, 1000), "motion.hold_out": (0.01, 0.9), "motion.seed": (0, 2**31 - 1)}
"""What training takes, by the name of the setting; ends are allowed."""


@dataclass(frozen=True)
class FieldConfig:
    """The head: blended hash grid, small network, occupancy."""

    levels: int = 10
    """Levels of the hash grid."""
    log2_entries: int = 15
    """At most 2^this entries a level."""
    base_resolution: int = 16
    """Grid points of the coarsest level along an axis."""
    finest_resolution: int = 256
    """Grid points of the finest level."""
    width: int = 32
    """Hidden width of the network behind the grid (a multiple of 4)."""
    expression_modes: int = 11
    """Principal modes of expression that blend a table of their own; blinks and gaze have theirs besides."""
    condition_scale: float = 0.5
    """Blend coefficients are the whitened conditions times this."""
    warp_points: int = 32
    """Grid points along an axis (at most 32) of the warp that carries a moving face back to the resting one."""
    occupancy: int = 64
    """Cells of the occupancy grid along an axis."""
    step_mm: float = 4.5
    """Distance between samples on a ray."""
    samples_per_ray: int = 40
    """Samples of a ray at most."""


@dataclass(frozen=True)
class TorsoConfig:
    """The shoulders: a 2D layer moved by the torso coefficients of the track."""

    levels: int = 8
    """Levels of the 2D hash grid."""
    log2_entries: int = 16
    """At most 2^this entries a level; larger pictures get more (see finest_resolution)."""
    base_resolution: int = 8
    """Grid points of the coarsest level along an axis."""
    finest_resolution: int = 320
    """Grid points of the finest level for a picture of 256 px; larger pictures get more in proportion, so that cloth stays as sharp."""
    width: int = 32
    """Hidden width of both networks (a multiple of 4)."""

    def for_picture(self, side: int) -> "TorsoConfig":
        """The settings for pictures whose longer side is `side` px."""
        scale = max(1.0, side / 256)
        return dataclasses.replace(self, finest_resolution=round(self.finest_resolution * scale), log2_entries=min(24, self.log2_entries + math.ceil(2 * math.log2(scale))))


@dataclass(frozen=True)
class MotionConfig:
    """The speech-to-motion network: an ensemble of small temporal convolutional networks."""

    members: int = 2
    """Networks of each kind; all are averaged. Each leaves out another part of the training footage to validate on."""
    steps: int = 400
    """Optimiser steps of each network (fewer when its time runs out)."""
    batch: int = 16
    """Windows in one step."""
    window: int = 48
    """Video frames in a window."""
    encoder: str = "auto"
    """What they hear: logmel, phones, the folder of a wav2vec 2.0 or HuBERT checkpoint, or several joined by +, with networks for each. auto is logmel+phones,
    or logmel where pocketsphinx is not installed. `thnerf stream` speaks by the networks that hear logmel."""
    prior: bool = True
    """Have networks, too, that begin from the shipped one, which has heard many voices (its size replaces the next three), where logmel is heard."""
    bilabials: bool = True
    """Shut the lips for /p b m/ that the shipped network and pocketsphinx' acoustic model hear (the network alone where pocketsphinx is not installed, and in
    `thnerf stream`)."""
    hidden: int = 96
    """Channels of the network."""
    layers: int = 3
    """Dilated layers; 3 see 0.34 s of sound at 25 fps, if as much of the future as of the past."""
    ahead: int = 7
    """Frames of the future that these see; 2 keep a streamed frame's delay under 0.2 s."""
    dropout: float = 0.3
    """Share of activations dropped in training."""
    noise: float = 0.2
    """Noise on the standardised features in training."""
    rate: float = 3e-3
    """Initial learning rate."""
    weight_decay: float = 0.1
    """Weight decay of AdamW."""
    modes: int = 16
    """Principal modes of the mouth's movement that are predicted, at most."""
    hold_out: float = 0.12
    """Share of the training footage each network is validated on."""
    seed: int = 0
    """Seed of initial values and windows."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    minutes: float = 10.0
    """Wall clock of the whole command, compilation and speech-to-motion network included. A run that was stopped may be given more."""
    steps: int | None = None
    """Stop the field after this many steps, whatever the time (the schedule follows the steps then)."""
    run: str = "default"
    """Name of the run, a folder in SUBJECT/runs."""
    device: str = "auto"
    """auto, cpu or cuda."""
    encoding: str = "auto"
    """Hash encoding backend: reference, numba, triton or tinycudann; auto is numba on the CPU and Triton on CUDA."""
    marching: str = "auto"
    """Ray marching backend: numba, triton or nerfacc; auto is numba on the CPU and Triton on CUDA."""
    init: str = ""
    """Begin with the head of another run (its folder or field.safetensors) or with a prior made of several; nothing: begin from the seed."""
    seed: int = 0
    """Seed of initial values and ray sampling."""
    frames_per_step: int = 2
    """Frames whose tables are blended in one step."""
    samples_per_step: int = 48000
    """Field samples in one step; the number of rays follows from it."""
    hard_frames: float = 0.5
    """Share of the frames that are drawn by their present error rather than evenly: blinks and rare mouth shapes come up more often."""
    structure_weight: float = 0.0
    """Weight of the perceptual term, 1 − SSIM of small squares of the face; 0 leaves it out."""
    structure_patches: int = 12
    """Squares of a step for that term."""
    lpips: str = ""
    """Folder or file with weights of LPIPS (docs/field.md says which) for a term on one larger square a step, which the term above then shares; nothing: no LPIPS."""
    lpips_weight: float = 0.05
    """Weight of LPIPS, where there are weights for it."""
    rate: float = 1e-2
    """Initial learning rate of the hash tables."""
    conditional_rate: float = 1e-2
    """Initial learning rate of the tables that expressions blend in."""
    warp_rate: float = 3e-3
    """Initial learning rate of the warp, in hundredths of the box."""
    network_rate: float = 2e-3
    """Initial learning rate of the networks."""
    torso_rate: float = 3e-4
    """Initial learning rate of what moves the torso, in image widths: faster, and it trembles by more than a pixel from step to step."""
    pose_rate: float = 3e-4
    """Initial learning rate of the pose correction."""
    exposure: bool = True
    """Give every training frame an exposure and white balance of its own (`thnerf.exposure`); what is rendered has their mean."""
    exposure_rate: float = 1e-3
    """Initial learning rate of what the background does not say of them; 0: what it says is all."""
    exposure_weight: float = 0.003
    """How much that is held back (weight of its square)."""
    matte_weight: float = 0.1
    """Weight of the agreement of both layers with the person matte."""
    motion_share: float = 0.12
    """Part of the time given to the speech-to-motion network when the footage has sound."""
    align: int = 2
    """How often pose, coefficients and shoulders of all frames are aligned to the field (`thnerf.align`), evenly spread over the training; 0: they stay as the fit left them."""
    align_share: float = 0.1
    """Part of the time that each of these may take; what one leaves the next may use."""
    save_seconds: float = 20.0
    """A stop loses at most about this much work."""
    preview_seconds: float = 60.0
    """Time between preview.png updates."""
    max_frames: int = 10000
    """Training frames used at most; more are thinned evenly."""
    frame_memory_mib: int = 1536
    """Memory for training frames as they are; frames that need more are held compressed (JPEG of high quality) and decoded on demand."""
    head: FieldConfig = field(default_factory=FieldConfig)
    """The head."""
    torso: TorsoConfig = field(default_factory=TorsoConfig)
    """The shoulders."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """The speech-to-motion network."""

    def check(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        check_numbers(self, _LIMITS)
        for name, grid in (("head", self.head), ("torso", self.torso)):
            if grid.finest_resolution < grid.base_resolution:
                raise InputError(f"--{name}.finest-resolution must be at least --{name}.base-resolution, {grid.base_resolution}, not {grid.finest_resolution}")
        if self.init and not Path(self.init).exists():
            raise InputError(f"--init {self.init} does not exist; name a run folder or the field.safetensors in it")
        cuda = choose_device(self.device).type == "cuda"
        for what, name, on_cuda in (("encoding", self.encoding, ("reference", "triton", "tinycudann")), ("marching", self.marching, ("triton", "nerfacc"))):
            allowed = ("auto", *on_cuda) if cuda else ("auto", "reference", "numba") if what == "encoding" else ("auto", "numba")
            if name not in allowed:
                raise InputError(f"--{what} takes {', '.join(allowed)} on this device, not {name!r}")
            if name in ("tinycudann", "nerfacc") and importlib.util.find_spec(name) is None:
                raise InputError(f"--{what} {name} needs the package {name}, which is not installed; use --{what} auto")
        if self.head.width % 4 or self.torso.width % 4:
            raise InputError("the network widths must be multiples of 4")


def save_config(config: Any, path: Path, **notes: str) -> None:
    """Write a config dataclass as YAML, atomically, with notes beside its fields."""
    import yaml

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump({**dataclasses.asdict(config), **notes}, sort_keys=False))


def differences(a: dict[str, Any], b: dict[str, Any], ignore: tuple[str, ...] = (), prefix: str = "") -> list[str]:
    """Dotted names of settings that differ between two configs (as nested dicts)."""
    names = []
    for key in [*a, *(k for k in b if k not in a)]:
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            names += differences(x, y, ignore, f"{prefix}{key}.")
        elif x != y and key not in ignore:
            names.append(f"{prefix}{key}")
    return names
