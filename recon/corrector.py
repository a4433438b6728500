"""Where landmarks really are: a network that looks at the face unrolled on a first fit and says how far each one is off.

A detector regresses towards an average face; by how much depends on the face, and no linear response (`recon.response`) tells. Here a small network sees
what the picture shows of the fitted mesh (`recon.atlas`) and gives every landmark a displacement in the head frame and a deviation (dense landmarks with
uncertainty, trained on renders alone: Wood et al. 2022). It is trained by `assets/train_corrector.py` on phantoms, whose landmarks are known exactly.
"""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from recon.assets import asset
from recon.atlas import CHANNELS, SIDE, STEPS, Atlas, make_atlas, unroll
from recon.landmarks import INNER_LIP, OUTER_LIP
from recon.model import MorphableModel, load_model
from recon.photometric import Poses
from recon.quadratic import picture_gradient, project
from recon.smooth import fill_gaps
from render.files import InputError

FILE = "landmark_corrector.safetensors"
LANDMARKS = 468  # of MediaPipe's; the irises are the gaze's
BATCH = 32
LONG = 90  # frames: footage of more of them need not be looked at frame by frame
GAP = 0.4  # mm by which people differ from renders, beside the deviation that the network states
DETECTOR = 2.0  # mm: the detector's deviation from frame to frame; what it misses all the time is not counted (`recon.solve.as_detected`)
LIPS = (*OUTER_LIP, *INNER_LIP)
EDGE, HIDDEN = (0.1, 0.4), 4.0  # cosine to the viewer from which a lip is seen, and from which it is seen well; mm by which one that is not may be further off
SURE = (-2.5, 2.5)  # bounds of the log of a deviation, mm
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


def typical(faces: Iterable[np.ndarray]) -> np.ndarray:
    """What a person looks like: int8 (T,CHANNELS,SIDE,SIDE) of `unroll` → their mean (LOOKS,SIDE,SIDE) int8, cells that face the camera with more weight."""
    total, weight = np.zeros((LOOKS, SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    for face in faces:
        w = np.where(face[0] != 0, np.maximum(face[4], 0).astype(np.float32) ** 2, 0)
        total += w * face[:LOOKS]
        weight += w
    return np.round(total / np.maximum(weight, 1e-6)).astype(np.int8)


@lru_cache(maxsize=2)
def load_corrector(path: Path | None = None) -> tuple[Corrector, Atlas]:
    """The shipped network, or that of a file, and the layout that it looks at. Raises InputError for a file that holds no such network."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, atlas = path or asset(FILE), make_atlas(load_model())
    network = Corrector(torch.from_numpy(atlas.landmarks[:LANDMARKS]))
    try:
        counters = {name: value for name, value in network.state_dict().items() if not value.is_floating_point()}
        network.load_state_dict({**counters, **{name: value.float() for name, value in load_file(str(path)).items()}})
    except (SafetensorError, OSError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path} holds no landmark corrector ({str(error).splitlines()[0]}); install thnerf again") from None
    return network.eval().to(memory_format=torch.channels_last), atlas


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
    lips = np.isin(np.arange(LANDMARKS), LIPS)  # what turns away elsewhere hardly moves, and still tells the pose
    column, row = np.floor(atlas.landmarks[:LANDMARKS]).astype(int).T
    sight = np.zeros((len(points), LANDMARKS))
    facing = np.concatenate([part[:, :LOOKS, row, column].any(1) * (part[:, LOOKS, row, column] / STEPS[LOOKS]) for part in unrolled])
    sight[looked] = np.where(lips, np.clip((facing - EDGE[0]) / (EDGE[1] - EDGE[0]), 0, 1), 1)
    average, parts = as_input(typical(itertools.chain.from_iterable(unrolled))[None]), []
    with torch.inference_mode():
        for part in unrolled:
            parts.append([x.numpy() for x in network(as_input(part), average.expand(len(part), -1, -1, -1))])
    displacement, spread = np.zeros((len(points), LANDMARKS, 3)), np.zeros((len(points), LANDMARKS))
    displacement[looked], spread[looked] = map(np.concatenate, zip(*parts))
    pick = lambda arrays: np.asarray(model.points(arrays, atlas.scheme), np.float64)[..., :LANDMARKS, :]  # noqa: E731 - linear
    rest = pick(model.mean) + np.tensordot(shape, pick(model.shape_basis[: len(shape)]), 1)
    px, slopes = seen(rest + np.tensordot(poses.e[frames], pick(model.expression_basis), 1), poses.R[frames], poses.t[frames], focal)
    missed = (points - expected)[frames, :LANDMARKS]
    beyond = np.zeros((*spread.shape, 2))
    beyond[frames] = np.einsum("tnij,tnj->tni", slopes, displacement[frames]) - missed
    beyond, spread, sight = (fill_gaps(values, looked, clip_starts)[frames] for values in (beyond, spread, sight))
    a, b = 1 / (np.exp(2 * spread) + GAP**2), 1 / DETECTOR**2
    found[frames, :LANDMARKS] = px + size / 2 + missed + (a / (a + b))[..., None] * beyond
    deviation[frames, :LANDMARKS] = (a + b) ** -0.5 + HIDDEN * (1 - sight)
    return found, deviation
