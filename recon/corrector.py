"""Where landmarks really are: a network that looks at the face unrolled on a first fit and says how far each one is off.

A detector regresses towards an average face; by how much depends on the face, and no linear response (`recon.response`) tells. Here a small network sees
what the picture shows of the fitted mesh (`recon.atlas`) and gives every landmark a displacement in the head frame and a deviation (dense landmarks with
uncertainty, trained on renders alone: Wood et al. 2022). It is trained by `assets/train_corrector.py` on phantoms, whose landmarks are known exactly.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from recon.assets import asset
from recon.atlas import CHANNELS, SIDE, STEPS, Atlas, make_atlas, unroll
from recon.landmarks import INNER_LIP, OUTER_LIP
from recon.model import MorphableModel, load_model
from recon.photometric import Poses
from recon.quadratic import picture_gradient, project
from recon.smooth import fill_gaps
from render.files import InputError
from render.threads import one_torch_thread

FILE = "landmark_corrector.safetensors"
LANDMARKS = 468  # of MediaPipe's; the irises are the gaze's
BATCH = 32
LONG = 90  # frames: footage of more of them need not be looked at frame by frame
GAP = 0.4  # mm by which people differ from renders, beside the deviation that the network states
DETECTOR = 2.0  # mm: the detector's deviation from frame to frame; what it misses all the time is not counted (`recon.solve.as_detected`)
LIPS = (*OUTER_LIP, *INNER_LIP)
EDGE, HIDDEN = (0.1, 0.4), 4.0  # cosine to the viewer from which a lip is seen, and from which it is seen well; mm by which one that is not may be further off
SURE = (-2.5, 2.5)  # bounds of the log of a deviation, mm
REMEMBERED = 250  # frames of a live picture
LOOKS = 4  # first channels of an unrolled face: those that the picture gives
MOUTH = (58, 98), (32, 80)  # rows and columns of the layout that are looked at more closely


class Corrector(nn.Module):
    """Unrolled faces (B,CHANNELS,SIDE,SIDE) and what their person looks like (B,LOOKS,SIDE,SIDE), see `typical` → displacements (B,LANDMARKS,3) mm in the head frame
    and log deviations (B,LANDMARKS) of either picture axis, mm."""

    def __init__(self, landmarks: torch.Tensor) -> None:
        """landmarks (LANDMARKS,2): where they are in the layout, cells."""
        super().__init__()
        (top, bottom), (left, right) = MOUTH
        self.register_buffer("at", (landmarks / SIDE * 2 - 1)[None, :, None])
        self.register_buffer("mouth_at", ((landmarks - torch.tensor([left, top])) / torch.tensor([right - left, bottom - top]) * 2 - 1)[None, :, None])
        self.stem = _layer(CHANNELS + LOOKS, 24, 2, nn.InstanceNorm2d(24, affine=True))  # whatever the light and the camera (Pan et al. 2018)
        self.fine = _layer(24, 24, 1, nn.InstanceNorm2d(24, affine=True))
        self.down = nn.ModuleList([nn.Sequential(_layer(a, b, 2), _layer(b, b)) for a, b in ((24, 48), (48, 64), (64, 96))])
        self.place = nn.Parameter(torch.zeros(48, SIDE // 4, SIDE // 4))  # what is where: the layout is the same for everybody
        self.up = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in ((96, 64), (64, 48), (48, 24))])
        self.mix = nn.ModuleList([_layer(64, 64), _layer(48, 48), _layer(24, 32)])
        self.lips = nn.Sequential(_layer(CHANNELS + LOOKS, 32, 1, nn.InstanceNorm2d(32, affine=True)), _layer(32, 48, 2), _layer(48, 48))
        self.mouth = nn.Sequential(_layer(48, 64, 2), _layer(64, 64), nn.Conv2d(64, 24, 1), nn.Flatten(), nn.Linear(24 * (bottom - top) * (right - left) // 16, 96), nn.ReLU())
        self.hidden = nn.Linear(32 + 64 + 96, 96)
        self.near = nn.Conv2d(48, 96, 1, bias=False)
        self.beside = nn.Linear(96, 96, bias=False)
        self.heads = nn.Parameter(torch.zeros(LANDMARKS, 96, 4))
        self.bias = nn.Parameter(torch.zeros(LANDMARKS, 4))

    def forward(self, faces: torch.Tensor, average: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat([faces, average], 1).contiguous(memory_format=torch.channels_last)
        (top, bottom), (left, right) = MOUTH
        lips = self.lips(both[:, :, top:bottom, left:right])
        x = self.fine(self.stem(both))
        skips = []
        for index, down in enumerate(self.down):
            skips.append(x)
            x = down(x)
            if index == 0:
                x = x + self.place.to(x.dtype)
        whole, coarse = x.float().mean((2, 3)), None
        for up, mix, skip in zip(self.up, self.mix, reversed(skips)):
            x = mix(nn.functional.interpolate(up(x), scale_factor=2.0, mode="nearest") + skip)
            coarse = x if coarse is None else coarse
        read = lambda maps, at: nn.functional.grid_sample(maps.float(), at.expand(len(faces), -1, -1, -1), align_corners=False)[..., 0].transpose(1, 2)  # noqa: E731
        features = torch.cat([read(x, self.at), read(coarse, self.at), whole[:, None].expand(-1, LANDMARKS, -1)], -1)
        features = self.hidden(features) + read(self.near(lips), self.mouth_at) + self.beside(self.mouth(lips))[:, None]
        found = torch.einsum("bnc,nco->bno", torch.relu(features), self.heads) + self.bias
        return found[..., :3], found[..., 3].clamp(*SURE)


def _layer(inputs: int, outputs: int, stride: int = 1, norm: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm or nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def as_input(faces: np.ndarray) -> torch.Tensor:
    """int8 (B,CHANNELS,SIDE,SIDE) of `unroll` → float32."""
    return torch.from_numpy(faces).float() / torch.from_numpy(STEPS[: faces.shape[1]])[:, None, None]


class Likeness:
    """What a person looks like: the mean of unrolled faces, cells that face the camera with more weight."""

    def __init__(self, memory: float = np.inf) -> None:
        """memory: how many faces it takes until one is half forgotten, about."""
        self.kept = 1 - 0.7 / memory
        self.total, self.weight = np.zeros((LOOKS, SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)

    def add(self, face: np.ndarray) -> None:
        """One more, int8 (CHANNELS,SIDE,SIDE) of `unroll`."""
        w = np.where(face[0] != 0, np.maximum(face[4], 0).astype(np.float32) ** 2, 0)
        self.total, self.weight = self.kept * self.total + w * face[:LOOKS], self.kept * self.weight + w

    def average(self) -> np.ndarray:
        """(LOOKS,SIDE,SIDE) int8."""
        return np.round(self.total / np.maximum(self.weight, 1e-6)).astype(np.int8)


def typical(faces: Iterable[np.ndarray]) -> np.ndarray:
    """What a person looks like, (LOOKS,SIDE,SIDE) int8, from all of their faces (T,CHANNELS,SIDE,SIDE)."""
    likeness = Likeness()
    for face in faces:
        likeness.add(face)
    return likeness.average()


@lru_cache(maxsize=2)
def load_corrector(path: Path | None = None, fold: bool = True) -> tuple[Corrector, Atlas]:
    """The shipped network, or that of a file, and the layout that it looks at. fold: as `folded`. Raises InputError for a file that holds no such network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, atlas = path or asset(FILE), make_atlas(load_model())
    network = Corrector(torch.from_numpy(atlas.landmarks[:LANDMARKS]))
    try:
        counters = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
        network.load_state_dict({**counters, **{name: value.float() for name, value in load_file(str(path)).items()}})
    except (SafetensorError, OSError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} holds no landmark corrector ({str(error).splitlines()[0]}); install thnerf again") from None
    network = folded(network.eval()) if fold else network.eval()
    return network.to(memory_format=torch.channels_last), atlas


def folded(network: nn.Module) -> nn.Module:
    """The same network with normalisation inside the convolutions before it, which takes a fifth less time; good for inference only."""
    for layer in network.modules():
        if isinstance(layer, nn.Sequential) and len(layer) > 1 and isinstance(layer[0], nn.Conv2d) and isinstance(layer[1], nn.BatchNorm2d):
            layer[0], layer[1] = fuse_conv_bn_eval(layer[0], layer[1]), nn.Identity()
    return network


def seen(heads: np.ndarray, R: np.ndarray, t: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (T,N,3) mm in the head frame under poses R (T,3,3), t (T,3): px (T,N,2) about the principal point, and px per mm that they move (T,N,2,3)."""
    camera, px = project(heads, R, t, focal)
    return px, picture_gradient(camera, R, focal)


def correct(model: MorphableModel, shape: np.ndarray, focal: float, poses: Poses, points: np.ndarray, expected: np.ndarray, pictures: Iterable[np.ndarray],
            clip_starts: Sequence[int] = (0,), every: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (T,478,2) px where the network and the detector together put them, and the deviation (T,478) mm of either coordinate.

    model, shape (S,), focal px and poses (those of all T frames; `frames` says which count): a first fit, on the default mesh. points, expected (T,478,2) px: what the
    detector saw, and what it should have seen were the fit right. pictures: all frames (H,W,3) uint8 in order. Irises, and frames that do not count, stay as
    they are, with a deviation of 0.

    In long footage the network sees one of `every` frames, and by how much it differs from the detector is interpolated: that changes slowly.
    """
    network, atlas = load_corrector()
    found, deviation, frames = np.array(points, np.float64), np.zeros(points.shape[:2]), poses.frames
    looked = np.zeros(len(points), bool)
    looked[frames[:: every if len(frames) > LONG else 1]] = True
    size, unrolled = np.zeros(2), []

    def one(job: tuple[int, np.ndarray]) -> np.ndarray:
        index, picture = job
        return unroll(atlas, picture, model.vertices(shape, poses.e[index]), poses.R[index], poses.t[index], focal)

    jobs = (job for job in enumerate(pictures) if job[0] < len(looked) and looked[job[0]])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while batch := list(islice(jobs, BATCH)):
            unrolled.append(np.stack(list(pool.map(one, batch))))
            size = np.array(batch[0][1].shape[1::-1])
    sight, displacement, spread = np.zeros((len(points), LANDMARKS)), np.zeros((len(points), LANDMARKS, 3)), np.zeros((len(points), LANDMARKS))
    sight[looked] = np.concatenate([lips_in_sight(part, atlas) for part in unrolled])
    average = typical(itertools.chain.from_iterable(unrolled))
    with one_torch_thread(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # which takes less time than all cores at one batch
        displacement[looked], spread[looked] = map(np.concatenate, zip(*pool.map(lambda part: says(network, part, average), unrolled)))
    px, slopes = Marks.of(model, atlas.scheme).fitted(shape, focal, Poses(frames, poses.R[frames], poses.t[frames], poses.e[frames]))
    missed = (points - expected)[frames, :LANDMARKS]
    beyond = np.zeros((*spread.shape, 2))
    beyond[frames] = np.einsum("tnij,tnj->tni", slopes, displacement[frames]) - missed
    beyond, spread, sight = (fill_gaps(values, looked, clip_starts)[frames] for values in (beyond, spread, sight))
    shift, deviation[frames, :LANDMARKS] = combined(missed, beyond, spread, sight)
    found[frames, :LANDMARKS] = px + size / 2 + shift
    return found, deviation


def lips_in_sight(faces: np.ndarray, atlas: Atlas) -> np.ndarray:
    """How well unrolled faces (B,CHANNELS,SIDE,SIDE) show each landmark, (B,LANDMARKS) from 0 to 1. Only lips are asked: what turns away elsewhere hardly moves, and still tells the pose."""
    column, row = np.floor(atlas.landmarks[:LANDMARKS]).astype(int).T
    facing = faces[:, :LOOKS, row, column].any(1) * (faces[:, LOOKS, row, column] / STEPS[LOOKS])
    return np.where(np.isin(np.arange(LANDMARKS), LIPS), np.clip((facing - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1), 1)


def says(network: Corrector, faces: np.ndarray, average: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's displacements (B,LANDMARKS,3) mm and log deviations (B,LANDMARKS) of unrolled faces, whose person looks like average (LOOKS,SIDE,SIDE) int8."""
    with torch.inference_mode():
        moved, spread = network(as_input(faces), as_input(average[None]).expand(len(faces), -1, -1, -1))
    return moved.numpy(), spread.numpy()


@dataclass(frozen=True)
class Marks:
    """Landmarks of a model that is linear: their mean (N,3), and how they move by shape (S,N,3) and expression (E,N,3), mm."""

    mean: np.ndarray
    shape: np.ndarray
    expression: np.ndarray

    @classmethod
    def of(cls, model: MorphableModel, scheme: str) -> Marks:
        """Those that are corrected."""
        return cls(*(np.asarray(model.points(part, scheme), np.float64)[..., :LANDMARKS, :] for part in (model.mean, model.shape_basis, model.expression_basis)))

    def fitted(self, shape: np.ndarray, focal: float, poses: Poses) -> tuple[np.ndarray, np.ndarray]:
        """Where poses of K frames put them, px (K,N,2) about the principal point, and their slopes (K,N,2,3), see `seen`."""
        rest = self.mean + np.tensordot(shape, self.shape[: len(shape)], 1)
        return seen(rest + np.tensordot(poses.e, self.expression, 1), poses.R, poses.t, focal)


def combined(missed: np.ndarray, beyond: np.ndarray, spread: np.ndarray, sight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Network and detector weighed by what each may be off: px (T,N,2) from the fitted landmarks, and the deviation (T,N) mm.

    missed (T,N,2): px by which the detector saw what the fit does not explain; beyond (T,N,2): by how much more the network moves; spread (T,N): its log deviations; sight (T,N)."""
    a, b = 1 / (np.exp(2 * spread) + GAP**2), 1 / DETECTOR**2
    return missed + (a / (a + b))[..., None] * beyond, (a + b) ** -0.5 + HIDDEN * (1 - sight)


class LiveCorrector:
    """`correct`, one frame at a time and in one pass: what the person looks like is the mean of the frames so far."""

    def __init__(self, model: MorphableModel) -> None:
        """model: the default one, or the part of it that is fitted."""
        self.model, self.likeness = model, Likeness(REMEMBERED)
        self.network, self.atlas = load_corrector()
        self.marks = Marks.of(model, self.atlas.scheme)

    def __call__(self, picture: np.ndarray, shape: np.ndarray, focal: float, poses: Poses, points: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Landmarks (478,2) px and their deviation (478,) mm of a picture (H,W,3) uint8, from the fit of that frame (shape (S,), focal px, poses of one frame), what the detector
        saw and what it should have seen, both (478,2) px."""
        face = unroll(self.atlas, picture, self.model.vertices(shape, poses.e[0]), poses.R[0], poses.t[0], focal)[None]
        self.likeness.add(face[0])
        with one_torch_thread():
            moved, spread = says(self.network, face, self.likeness.average())
        px, slopes = self.marks.fitted(shape, focal, poses)
        missed = (points - expected)[None, :LANDMARKS]
        shift, certain = combined(missed, np.einsum("tnij,tnj->tni", slopes, moved) - missed, spread, lips_in_sight(face, self.atlas))
        found, deviation = np.array(points, np.float64), np.zeros(len(points))
        found[:LANDMARKS] = px[0] + np.array(picture.shape[1::-1]) / 2 + shift[0]
        deviation[:LANDMARKS] = certain[0]
        return found, deviation
