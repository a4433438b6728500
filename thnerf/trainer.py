"""Training a subject: one loop, driven by the clock, that can be stopped and resumed at any moment.

A run folder holds config.yaml, field.safetensors (the weights, renewed while training), track.npz (the Track, aligned to the field: `thnerf.align`), state.safetensors
(weights, optimisers and random state, until the run is finished), preview.png (truth | render | error) and a tensorboard log.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np
import torch

from recon.model import MorphableModel
from recon.subject import Subject, aligned_path
from render.files import InputError, StageError, atomic_path
from render.march import dilate
from render.marching import load_marching
from render.progress import progress
from thnerf import losses
from thnerf.align import align
from thnerf.avatar import Avatar, read_tensors, write_tensors
from thnerf.config import TrainConfig, differences, save_config
from thnerf.dataset import LARGE_PATCH, PATCH, TrainingSet, load_training_set, person_share, pixel_directions, typical_meshes
from thnerf.device import choose_device
from thnerf.encoders import load_encoder
from thnerf.exposure import Exposure, exposed
from thnerf.field import mesh_warp
from thnerf.lpips import load_lpips
from thnerf.prior import start_from
from thnerf.shell import head_volume

__all__ = ["Trainer", "load_renderer", "train"]

_POSE_FROM = 300  # steps before pose correction, warp and Track may move: the field must have a shape first
_POSE_NOISE = 0.3  # deviations: shoulders follow the head only as far as that survives it
_PRUNE_EVERY, _PRUNE_BELOW, _PRUNE_DECAY = 250, 0.01, 0.6
_UNSAVED = ("save_seconds", "preview_seconds", "device", "encoding", "marching", "frame_memory_mib")  # settings that may change between stop and resume


class Trainer:
    """The state of one training: avatar, optimisers, step count, random generator. `advance` makes one step."""

    def __init__(self, data: TrainingSet, avatar: Avatar, config: TrainConfig) -> None:
        self.data, self.avatar, self.config = data, avatar, config
        if config.marching != "auto":
            avatar.marching = load_marching(config.marching, avatar.device)
        self.lpips = load_lpips(config.lpips, avatar.device) if config.lpips and config.lpips_weight else None
        if self.lpips is not None and min(data.images.shape[1:3]) < LARGE_PATCH:
            raise InputError(f"--lpips needs a subject of at least {LARGE_PATCH} px, not {data.images.shape[2]}x{data.images.shape[1]}; fit it larger (--size)")
        self.rng = np.random.default_rng(config.seed)
        self.steps, self.elapsed, self.bad_steps = 0, 0.0, 0
        self.aligned, self.align_seconds, self.moved = 0, 0.0, False
        self.samples_per_ray = 15.0
        self.samples_seen = 0
        self.frame_error = np.full(len(data.index), 1e-3)
        self.exposure = None
        if config.exposure:
            self.exposure = Exposure(data.exposure, data.index, data.track.clip_starts, data.track.fps).to(avatar.device)
            self.data = dataclasses.replace(data, background=exposed(data.background, self.exposure.mean))
        self.cell_weight = torch.zeros(avatar.volume.occupancy.size, device=avatar.device)
        place = avatar.torso.placement()
        networks = [p for m in (avatar.head, avatar.torso) for p in m.parameters() if not any(p is q for q in place)]
        rates = ((networks, config.network_rate, 0.1), (place, config.torso_rate, 0.03), (list(avatar.correction.parameters()), config.pose_rate, 0.03))
        if self.exposure is not None and config.exposure_rate:
            rates = (*rates, (list(self.exposure.parameters()), config.exposure_rate, 0.1))
        self.optimizer = torch.optim.Adam([{"params": p, "rate": rate, "decay": decay} for p, rate, decay in rates], lr=config.network_rate, betas=(0.9, 0.99))

    def advance(self, done: float) -> dict[str, float]:
        """One step at `done` in [0,1] of the schedule. Returns scalars to report; raises StageError when training diverged."""
        config, avatar, data = self.config, self.avatar, self.data
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * group["decay"] ** done
        patches, side = (1, LARGE_PATCH) if self.lpips is not None else (config.structure_patches if config.structure_weight else 0, PATCH)
        rays = int(np.clip(config.samples_per_step / self.samples_per_ray, 1024 + patches * side**2, 16384))
        batch = data.sample(self.rng, config.frames_per_step, rays, patches, self._frame_weight(), side)
        psi, constant = avatar.put(data.psi[batch.frames]), torch.zeros(1, 0, device=avatar.device)
        table, torso_table = avatar.blend(psi), avatar.torso_tables.blend(constant)
        warp_table = avatar.blend_warp(psi)
        colour, transmittance, weights, samples = self._head(batch, table, warp_table)
        behind, cover, low = self._behind(batch, torso_table)
        rendered, truth = colour + transmittance[:, None] * behind, avatar.put(batch.colour)
        if self.exposure is not None:
            rendered = self.exposure.expose(rendered, avatar.put(batch.frames), avatar.put(batch.slot))
        matte = avatar.put(batch.matte)
        seen = 1 - transmittance * (1 - cover)
        image_loss = losses.photometric(rendered, truth)
        loss = 5 * image_loss + config.matte_weight * (losses.matte(seen, matte) + (cover * (matte < 0.05)).mean())
        if self.exposure is not None and config.exposure_rate:
            loss = loss + config.exposure_weight * self.exposure.penalty(avatar.put(batch.frames))
        squares, more = avatar.put(batch.patches), {}
        if config.structure_weight:
            loss = loss + config.structure_weight * losses.structure(rendered[squares], truth[squares])
        if self.lpips is not None:
            distance = self.lpips(rendered[squares], truth[squares]).mean()
            loss, more = loss + config.lpips_weight * distance, {"lpips": float(distance.detach())}
        self.steps += 1
        if not torch.isfinite(loss):
            self._bad_step()
            return {}
        self.bad_steps = 0
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        decay = 0.03**done
        avatar.tables.step(table.grad, psi * avatar.config.condition_scale, config.rate * decay, config.conditional_rate * decay)
        if warp_table.grad is not None:
            avatar.warp_tables.step(warp_table.grad, psi * avatar.config.condition_scale, 0.0, config.warp_rate * decay)
        if torso_table.grad is not None:
            avatar.torso_tables.step(torso_table.grad, constant, config.rate * decay, 0.0)
        self._watch_frames(batch, rendered.detach() - truth)
        self._watch_occupancy(samples.positions, weights)
        self.samples_per_ray = 0.9 * self.samples_per_ray + 0.1 * max(1.0, len(samples.positions) / len(batch.u))
        self.samples_seen += len(samples.positions)
        return {"loss": float(loss.detach()), "psnr": losses.psnr(float((rendered.detach() - truth).square().mean())), **more}

    def _head(self, batch: Any, table: torch.Tensor, warp_table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """Colour, transmittance and weights of the head layer, and its samples."""
        avatar, data = self.avatar, self.data
        features = avatar.pose_features(data.pose[batch.frames], data.psi[batch.frames])
        origins, matrices = avatar.correction.apply_to_rays(features, data.origins[batch.frames], data.matrices[batch.frames])
        pixels = pixel_directions(data.pixel_to_camera, batch.u, batch.v)
        directions = np.einsum("rij,rj->ri", matrices[batch.slot], pixels)
        samples = avatar.marching.march(origins[batch.slot], directions, avatar.volume, self.rng.random(len(batch.u), dtype=np.float32), avatar.config.samples_per_ray)
        which = avatar.put(batch.slot)[samples.ray]
        x = samples.positions
        if self.steps >= _POSE_FROM:
            box = avatar.put(avatar.volume.lower), avatar.put(avatar.volume.upper)
            x = avatar.correction.attach(avatar.put(features), x, which, *box)
        else:
            warp_table = warp_table.detach()
        encoded = avatar.encode(avatar.warp(x, warp_table, which), table, avatar.turn(data.pose[batch.frames]), which)
        density, rgb = avatar.network(encoded, x)
        return *avatar.marching.composite(density, rgb, avatar.volume.optical_step, samples.offsets), samples

    def _behind(self, batch: Any, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is behind the head: torso over background (R,3), the torso's opacity (R,), and which rays may show it."""
        data, avatar = self.data, self.avatar
        height, width = data.images.shape[1:3]
        plate = avatar.put(data.background[batch.v, batch.u])
        rows = np.flatnonzero(batch.v >= avatar.row * height)
        low = avatar.put(rows)
        cover = torch.zeros(len(plate), device=avatar.device)
        if len(rows):
            frame = batch.frames[batch.slot[rows]]
            shaken = data.pose[batch.frames] + _POSE_NOISE * self.rng.standard_normal((len(batch.frames), data.pose.shape[1]), dtype=np.float32)
            features = avatar.put(data.torso[frame]), avatar.put(shaken[batch.slot[rows]])
            rgb, alpha = avatar.torso_at(batch.u[rows] + 0.5, batch.v[rows] + 0.5, width, height, *features, table)
            cover = cover.index_copy(0, low, alpha)
            plate = plate.index_copy(0, low, plate[low] * (1 - alpha[:, None]) + rgb * alpha[:, None])
        return plate, cover, low

    def _frame_weight(self) -> np.ndarray | None:
        """How likely each frame is (N,); None: all alike."""
        hard = self.config.hard_frames
        return (1 - hard) + hard * self.frame_error / self.frame_error.mean() if hard else None

    def _watch_frames(self, batch: Any, error: torch.Tensor) -> None:
        """Remember how large the squared error of each frame of the batch is; a frame not seen for long keeps its last one."""
        square, count = np.zeros(len(batch.frames)), np.bincount(batch.slot, minlength=len(batch.frames))
        np.add.at(square, batch.slot, error.square().mean(1).cpu().numpy())
        self.frame_error[batch.frames] = np.where(count > 0, square / np.maximum(count, 1), self.frame_error[batch.frames])

    def _watch_occupancy(self, positions: torch.Tensor, weights: torch.Tensor) -> None:
        """Remember how much each cell contributes, and from time to time drop the cells that never do."""
        volume = self.avatar.volume
        G = len(volume.occupancy)
        if self.steps % 2 == 0:
            cell = (positions * G).long().clamp_max(G - 1)
            self.cell_weight.scatter_reduce_(0, (cell[:, 0] * G + cell[:, 1]) * G + cell[:, 2], weights, "amax")
        if self.steps % _PRUNE_EVERY == 0:
            volume.occupancy[...] &= dilate((self.cell_weight > _PRUNE_BELOW).cpu().numpy().reshape(volume.occupancy.shape), 1)
            self.cell_weight *= _PRUNE_DECAY

    def align(self, subject: Subject, model: MorphableModel, budget: float | None, stop: Callable[[], bool]) -> bool:
        """Align the track to the field and go on with it; False when time is too short for that, the field has no shape yet, or `stop` asked to. budget: seconds of the whole training, None: unlimited."""
        from thnerf.evaluate import frames_at

        begun, data = time.monotonic(), self.data
        avatar = self.avatar if self.avatar.device.type == "cpu" else Avatar.restore(self.avatar.state(), self.avatar.header())
        seconds = None if budget is None else self.config.align_share * budget * (self.aligned + 1) - self.align_seconds
        split, found = subject.info["split"], None

        def pictures(index: np.ndarray) -> Iterable[np.ndarray]:
            frames = frames_at(subject.video_path, index)
            return frames if self.exposure is None else self.exposure.neutral(index, frames, frames_at(subject.matte_path, index, grey=True), data.background)

        try:
            if self.steps >= _POSE_FROM:
                found = align(avatar, data.track, model, data.index, data.background, pictures, [*split["train"], *split.get("test", [])], seconds, stop)
        except InputError as error:
            print(f"the track is not aligned to the field: {error}", file=sys.stderr)
        if stop():
            return False
        self.aligned += 1
        self.align_seconds += time.monotonic() - begun
        if found is not None:
            self.data, self.moved = data.follow(found.replace(meta={**found.meta, "fit": subject.fingerprint})), True
        return found is not None

    @property
    def align_due(self) -> float:
        """The share of the training at which the next alignment is due."""
        return (self.aligned + 1) / (self.config.align + 1)

    def _bad_step(self) -> None:
        self.bad_steps += 1
        if self.bad_steps > 20:
            raise StageError("training diverged (the loss is not finite); run it again with a lower --rate, the last saved state is kept")

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Everything needed to go on, as tensors and a header."""
        tensors = self.avatar.state(training=True)
        tensors["trainer.cell_weight"], tensors["trainer.frame_error"] = self.cell_weight.cpu(), torch.from_numpy(self.frame_error)
        if self.exposure is not None:
            tensors["trainer.exposure"] = self.exposure.knots.detach().cpu()
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v.cpu() if torch.is_tensor(v) else torch.tensor(v) for k, v in values.items()}
        progress_made = {name: getattr(self, name) for name in ("steps", "elapsed", "samples_per_ray", "samples_seen", "aligned", "align_seconds", "moved")}
        progress_made["rng"] = self.rng.bit_generator.state
        return tensors, {**self.avatar.header(), "trainer": json.dumps(progress_made)}

    @classmethod
    def resume(cls, data: TrainingSet, config: TrainConfig, path: Path) -> "Trainer":
        """Inverse of `state`, from a file. Raises InputError when it is damaged."""
        tensors, header = read_tensors(path)
        trainer = cls(data, Avatar.restore(tensors, header, config.encoding, choose_device(config.device)), config)
        made = json.loads(header["trainer"])
        trainer.steps, trainer.elapsed = made["steps"], made["elapsed"]
        trainer.samples_per_ray, trainer.samples_seen = made["samples_per_ray"], made["samples_seen"]
        trainer.aligned, trainer.align_seconds, trainer.moved = made["aligned"], made["align_seconds"], made["moved"]
        trainer.rng.bit_generator.state = made["rng"]
        trainer.cell_weight = tensors["trainer.cell_weight"].to(trainer.avatar.device, copy=True)
        trainer.frame_error = tensors["trainer.frame_error"].numpy().copy()
        if trainer.exposure is not None:
            with torch.no_grad():
                trainer.exposure.knots.copy_(tensors["trainer.exposure"])
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, name = key.split(".")
                adam.setdefault(int(i), {})[name] = value
        full = trainer.optimizer.state_dict()
        trainer.optimizer.load_state_dict({"state": adam, "param_groups": full["param_groups"]})
        return trainer


def new_trainer(data: TrainingSet, model: MorphableModel, config: TrainConfig) -> Trainer:
    """A trainer at its beginning: shell and prior from the tracked mesh, everything else from the seed."""
    meshes = typical_meshes(data.track, data.index, model)
    points = model.points(meshes, "ibug68")
    volume, prior = head_volume(meshes, model.faces, points[:, :17], float(points[0, 36:48, 1].mean()), config.head.occupancy, config.head.step_mm,
                                lambda x: person_share(data, x))
    torso = config.torso.for_picture(max(data.track.camera.width, data.track.camera.height))
    avatar = Avatar(config.head, torso, data.condition, volume, prior, data.upper_neck_row, config.seed, config.encoding, choose_device(config.device))
    frames = data.index[np.round(np.linspace(0, len(data.index) - 1, min(len(data.index), 400))).astype(int)]
    moved = model.vertices(data.track.shape, data.track.expression[frames])
    avatar.set_warp(mesh_warp(moved, data.condition.expression(data.track)[frames], data.condition.modes, volume, config.head.warp_points))
    return Trainer(data, avatar, config)


def train(subject: Subject, config: TrainConfig, model: MorphableModel | None = None) -> Path:
    """Train a subject, or go on where a stopped run left off; returns the run folder.

    Raises InputError for unusable input, a damaged checkpoint or settings that differ from the run's; StageError when
    interrupted (the state is saved) or diverged.
    """
    started = time.monotonic()
    config.check()
    torch.set_flush_denormal(True)
    folder = subject.run(config.run)
    if _already_finished(folder, config, subject.fingerprint):
        return folder
    if subject.has_audio and config.motion.encoder != "auto":
        load_encoder(config.motion.encoder)  # one that is misspelt or not installed is told before any work, not skipped after it
    model = model or subject.model
    data = load_training_set(subject, model, config.head.expression_modes, config.max_frames, config.frame_memory_mib)
    state = folder / "state.safetensors"
    trainer = Trainer.resume(data, config, state) if state.exists() else new_trainer(data, model, config)
    if config.init and not state.exists():
        start_from(trainer.avatar, Path(config.init), data.track, data.index)
    if state.exists():
        print(f"resuming {config.run!r} at step {trainer.steps} ({trainer.elapsed:.0f} s)", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    if not trainer.moved:
        aligned_path(folder).unlink(missing_ok=True)
    elif (aligned := subject.aligned(folder)) is subject.track:
        raise InputError(f"{aligned_path(folder)} has gone or belongs to another fit; delete {folder} and train again")
    else:
        trainer.data = trainer.data.follow(aligned)
    save_config(config, folder / "config.yaml", fit=subject.fingerprint)
    _train_motion(subject, folder, config)
    _run(trainer, subject, model, folder, started - trainer.elapsed)
    trainer.avatar.save(folder / "field.safetensors", finished="1", steps=trainer.steps, seconds=f"{trainer.elapsed:.1f}")
    write_preview(trainer, folder / "preview.png")
    state.unlink(missing_ok=True)
    return folder


def _train_motion(subject: Subject, folder: Path, config: TrainConfig) -> None:
    """Train the speech-to-motion network within its share of the time, or say why not."""
    if not subject.has_audio:
        print("no sound in this footage: the speech-to-motion network is skipped, the run renders from tracks only", file=sys.stderr)
        return
    from thnerf.motion_training import train_motion

    try:
        train_motion(subject, folder, config.motion, seconds=config.motion_share * config.minutes * 60)
    except InputError as error:
        print(f"the speech-to-motion network is skipped: {error}", file=sys.stderr)


def _already_finished(folder: Path, config: TrainConfig, fit: str) -> bool:
    """Compare with an earlier run of that name. Raises InputError when its settings, or the fit of the subject, were others."""
    import yaml

    if not (folder / "config.yaml").exists():
        return False
    try:
        old = yaml.safe_load((folder / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{folder / 'config.yaml'} is damaged ({error}); delete {folder} or choose another --run") from None
    old = old if isinstance(old, dict) else {}
    if old.pop("fit", fit) != fit:
        raise InputError(f"run {config.run!r} was trained before this subject was fitted again; delete {folder} or choose another --run")
    changed = differences(old, dataclasses.asdict(config), (*_UNSAVED, "minutes"))
    if changed:
        raise InputError(f"run {config.run!r} was begun with other settings ({', '.join(changed)}); choose another --run, or delete {folder}")
    going = (folder / "state.safetensors").exists() or not (folder / "field.safetensors").exists() or read_tensors(folder / "field.safetensors")[1].get("finished") != "1"
    begun = float(old.get("minutes", config.minutes))
    if not going and config.minutes > begun:  # its learning rates have run down, and what the optimisers knew is gone
        raise InputError(f"run {config.run!r} finished its {begun:g} minutes; train a new one from its head with --run NAME --init {folder} --minutes {config.minutes:g}")
    if going and config.minutes < begun:  # the rates would not have come down at the end
        raise InputError(f"run {config.run!r} was begun for {begun:g} minutes; go on with --minutes {begun:g} or more, or choose another --run")
    if going:
        return False
    print(f"run {config.run!r} is finished; choose another --run, or delete {folder} to train it again", file=sys.stderr)
    return True


class _Interrupt:
    """Turns SIGINT and SIGTERM into a flag while the block runs (in the main thread)."""

    def __enter__(self) -> "_Interrupt":
        self.asked, self._old = False, {}
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._old[name] = signal.signal(name, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for name, handler in self._old.items():
            signal.signal(name, handler)


def _run(trainer: Trainer, subject: Subject, model: MorphableModel, folder: Path, zero: float) -> None:
    """The loop, until the time or the steps are used up. zero: the monotonic time at which elapsed was 0."""
    from torch.utils.tensorboard import SummaryWriter

    config, budget = trainer.config, trainer.config.minutes * 60
    reserve = min(8.0, 0.05 * budget)  # for the last save and preview
    saved = shown = time.monotonic()
    total = config.steps if config.steps is not None else budget - reserve
    bar = progress(None, "train", total=round(total), unit="step" if config.steps is not None else "s")
    log = SummaryWriter(str(folder / "log"))
    smooth = 0.0
    with bar, log, _Interrupt() as interrupt:
        while True:
            trainer.elapsed = time.monotonic() - zero
            position = trainer.steps if config.steps is not None else trainer.elapsed
            if position >= total or interrupt.asked:
                break
            if trainer.aligned < config.align and position >= trainer.align_due * total:
                if trainer.align(subject, model, budget if config.steps is None else None, lambda: interrupt.asked):
                    trainer.data.track.save(aligned_path(folder))
                    write_tensors(folder / "state.safetensors", *trainer.state())
                continue
            report = trainer.advance(min(position / total, 1.0))
            if report:
                smooth = report["psnr"] if not smooth else 0.98 * smooth + 0.02 * report["psnr"]
            if trainer.steps % 20 == 0:
                bar.update(int(min(position, total)) - bar.n)
                bar.set_postfix_str(f"step {trainer.steps}, batch PSNR {smooth:.1f} dB", refresh=False)
            if report and trainer.steps % 100 == 0:
                _log(log, trainer, {**report, "psnr_smooth": smooth})
            now = time.monotonic()
            if now - saved > config.save_seconds:
                write_tensors(folder / "state.safetensors", *trainer.state())
                saved = time.monotonic()
            if now - shown > config.preview_seconds:
                write_preview(trainer, folder / "preview.png")
                trainer.avatar.save(folder / "field.safetensors", finished="0", steps=trainer.steps)
                shown = time.monotonic()
    if interrupt.asked:
        write_tensors(folder / "state.safetensors", *trainer.state())
        raise StageError(f"stopped at step {trainer.steps}, everything is saved; run the same command again to go on")


def _log(log: Any, trainer: Trainer, report: dict[str, float]) -> None:
    for name, value in {**report, "samples_per_second": trainer.samples_seen / max(trainer.elapsed, 1e-9)}.items():
        log.add_scalar(name, value, trainer.steps)


def write_preview(trainer: Trainer, path: Path, count: int = 3) -> None:
    """Write a PNG with rows of truth | render | error × 4 of a few training frames, atomically."""
    from PIL import Image

    data = trainer.data
    rows = []
    for i in np.round(np.linspace(0.1, 0.9, count) * (len(data.index) - 1)).astype(int):
        truth = data.images[int(i)].astype(np.float32) / 255
        image = trainer.avatar.render(data.track, int(data.index[i]), data.background)
        image = image if trainer.exposure is None else exposed(image, trainer.exposure.code(int(i)))
        rows.append(np.concatenate([truth, image, np.clip(4 * np.abs(image - truth), 0, 1)], 1))
    with atomic_path(path) as temporary:
        Image.fromarray((np.concatenate(rows) * 255 + 0.5).astype(np.uint8)).save(temporary)


def load_renderer(run_dir: Path, subject: Subject, device: str = "auto") -> Any:
    """The renderer of a trained run: `thnerf.renderer.HeadRenderer` on the CPU, `thnerf.renderer_cuda.CudaRenderer` on CUDA."""
    if choose_device(device).type == "cuda":
        from thnerf.renderer_cuda import CudaRenderer

        return CudaRenderer.load(Path(run_dir), subject)
    from thnerf.renderer import HeadRenderer

    return HeadRenderer.load(Path(run_dir), subject)
