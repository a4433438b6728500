"""LPIPS: how different two pictures look, by features of a network for image classification (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep
Features as a Perceptual Metric", version 0.1), in plain torch.

The weights are the user's own files: the convolutions as torchvision's AlexNet or VGG16 names them (`features.0.weight` …) and the linear heads as the lpips
package does (`lin0.model.1.weight` …). They are told by the names and shapes of their tensors, not by those of the files. Nothing is downloaded.
"""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from render.files import InputError

__all__ = ["Lpips", "load_lpips"]


@dataclass(frozen=True)
class _Backbone:
    """Convolutions as {index in torchvision's `features`: shape}, those whose ReLU is compared, those whose ReLU is pooled, and by what window (stride 2).

    smallest: side of the smallest picture that leaves a feature in every layer, px.
    """

    name: str
    shapes: dict[int, tuple[int, int, int, int]]
    compared: tuple[int, ...]
    pooled: tuple[int, ...]
    window: int
    smallest: int

    def convolutions(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of their tensors in `Lpips`."""
        return {f"weight{i}": shape for i, shape in self.shapes.items()} | {f"bias{i}": shape[:1] for i, shape in self.shapes.items()}

    def heads(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the linear heads, one for every layer that is compared."""
        return {f"head{k}": (1, self.shapes[i][0], 1, 1) for k, i in enumerate(self.compared)}


def _vgg16() -> dict[int, tuple[int, int, int, int]]:
    indices, outputs = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, 256, 256, 256, *[512] * 6)
    return {i: (o, n, 3, 3) for i, o, n in zip(indices, outputs, (3, *outputs))}


_BACKBONES = (
    _Backbone("AlexNet", {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}, (0, 3, 6, 8, 10), (0, 3), 3, 31),
    _Backbone("VGG16", _vgg16(), (2, 7, 14, 21, 28), (2, 7, 14, 21), 2, 16))
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, of colours in [−1,1]
_EPSILON = 1e-10
_FILES = ("put alexnet-owt-7be5be79.pth (torchvision) and alex.pth (lpips package, weights/v0.1), or vgg16-397923af.pth and vgg.pth, "
          "into a folder and name that, or one file with both")


class Lpips(torch.nn.Module):
    """LPIPS with frozen weights; `name` says of which network. Pictures are (N,H,W,3) RGB in [0,1]; gradients flow to them alone."""

    def __init__(self, backbone: _Backbone, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.backbone, self.name = backbone, backbone.name
        for name, tensor in {"shift": torch.tensor(_SHIFT), "scale": torch.tensor(_SCALE), **tensors}.items():
            self.register_buffer(name, tensor)

    def forward(self, rendered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """(N,): 0 for equal pictures, more the less alike they look. Raises InputError for pictures smaller than the network can take."""
        return self.between(self.features(rendered), self.features(truth))

    def between(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        """The same of `features`."""
        return torch.stack([(getattr(self, f"head{k}") * (x - y).square()).sum(1).mean((1, 2)) for k, (x, y) in enumerate(zip(a, b))]).sum(0)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """What is compared: after five of the ReLUs (N,C,h,w), of unit length over the channels."""
        net, found = self.backbone, []
        if min(pictures.shape[1:3]) < net.smallest:
            raise InputError(f"LPIPS with {net.name} needs pictures of at least {net.smallest} px, not {pictures.shape[2]}x{pictures.shape[1]}")
        x = ((2 * pictures - 1 - self.shift) / self.scale).permute(0, 3, 1, 2)
        for i, (_, _, size, _) in net.shapes.items():
            stride, padding = (4, 2) if size == 11 else (1, size // 2)
            x = torch.nn.functional.conv2d(x, getattr(self, f"weight{i}"), getattr(self, f"bias{i}"), stride, padding).relu()
            if i in net.compared:
                # Where all channels are 0, the root has no gradient; it begins just above.
                found.append(x / (x.square().sum(1, keepdim=True).clamp_min(_EPSILON**2).sqrt() + _EPSILON))
            if i in net.pooled:
                x = torch.nn.functional.max_pool2d(x, net.window, 2)
        return found

    @torch.no_grad()
    def measure(self, truth: np.ndarray, images: list[np.ndarray], box: tuple[int, int, int, int] | None) -> list[float]:
        """LPIPS of each of `images` against `truth`, (H,W,3) uint8, inside `box` (left, top, right, bottom) px; NaN without one or where it is too small."""
        if box is None or min(box[2] - box[0], box[3] - box[1]) < self.backbone.smallest:
            return [math.nan] * len(images)

        def look(image: np.ndarray) -> list[torch.Tensor]:
            piece = np.ascontiguousarray(image[box[1] : box[3], box[0] : box[2]])
            return self.features(torch.from_numpy(piece).to(self.shift)[None] / 255)

        real = look(truth)
        return [float(self.between(real if image is truth else look(image), real)[0]) for image in images]


def load_lpips(path: str | Path, device: str | torch.device = "cpu") -> Lpips:
    """LPIPS from a folder with two files, convolutions and heads, or from one file with both (.safetensors, or what torch.save wrote).

    Files are read without executing anything in them. Raises InputError, saying which files belong there, when one is missing, damaged or another network's,
    or when a folder holds both networks.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist, and LPIPS needs its weights: {_FILES}")
    files = sorted(p for p in path.iterdir() if p.suffix in (".pth", ".pt", ".safetensors")) if path.is_dir() else [path]
    sets = [_named(_read(file)) for file in files]
    found, near = [], []
    for net in _BACKBONES:
        parts = [next(([s[k] for k in shapes] for s in sets if _fits(s, shapes)), None) for shapes in (net.convolutions(), net.heads())]
        if None not in parts:
            found.append((net, dict(zip({**net.convolutions(), **net.heads()}, sum(parts, [])))))
        elif parts != [None, None]:
            near.append(f"the {'heads' if parts[1] else 'convolutions'} of {net.name} without its {'convolutions' if parts[1] else 'heads'}")
    if len(found) > 1:
        raise InputError(f"{path} has the weights of both AlexNet and VGG16; name a folder with those that LPIPS should use")
    if not found:
        raise InputError(f"{path} has {' and '.join(near) or 'no weights of AlexNet or VGG16 as LPIPS needs them'}; {_FILES}")
    net, tensors = found[0]
    heads = net.heads()
    if not all(bool((t.isfinite() & ((t >= 0) | (k not in heads))).all()) for k, t in tensors.items()):
        raise InputError(f"{path} has weights that are not finite or heads below 0, which are not those of LPIPS; {_FILES}")
    return Lpips(net, {k: t.detach().to(torch.float32, copy=True) for k, t in tensors.items()}).to(device)  # copied, since files may be mapped


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a file. Raises InputError when it is damaged or holds anything else that would have to be executed."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickles, before they are refused
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # a hostile or damaged pickle makes the reader raise nearly anything
        raise InputError(f"{path} is damaged, cut short or holds more than weights; {_FILES}") from None
    return {k: v for k, v in held.items() if isinstance(k, str) and torch.is_tensor(v)} if isinstance(held, dict) else {}


def _named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors that LPIPS has, by its names; what the lpips package saves as a whole has the convolutions under `net.slice1.` and so on."""
    matches = ((re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)|lin(\d)\.model\.1\.weight", k), v) for k, v in tensors.items())
    return {f"{m[2]}{m[1]}" if m[1] else f"head{m[3]}": v for m, v in matches if m}


def _fits(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether all are there, as plain floating-point numbers."""
    plain = {k: t.shape for k, t in tensors.items() if t.is_floating_point() and t.layout == torch.strided and t.device.type == "cpu"}
    return all(plain.get(k) == shape for k, shape in shapes.items())
