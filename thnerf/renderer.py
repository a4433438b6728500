"""Frames of a trained subject: `HeadRenderer.frame(track, index)`, on the fused CPU kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.march import Volume
from render.plane import hang, place, plane_homography
from thnerf import fused
from thnerf.avatar import Avatar
from thnerf.dataset import head_rays, load_background
from thnerf.encodings import HashGridLayout
from thnerf.encodings.half import HalfTables
from thnerf.torso import FREQUENCIES, MARGIN, REACH

NECK_MM = 60.0  # the torso hangs this far behind the origin of the head, where neck and collar are
SHOULDER_FALL = 0.45  # slope at which shoulders go on outside the fitted crop, where nothing is known of them
_OUTLINE_PARTS = 3  # see HeadRenderer._parts; on CUDA not yet
STOP = 0.02  # light left behind which a ray is not followed


class HeadRenderer:
    """Renders a subject from any Track of the same face model and torso size. Frames do not depend on each other.

    background: default plate (H,W,3) float32 in [0,1], at any size. camera: the fitted one, whose picture background and torso are;
    the head is a volume and is seen from any camera, the torso layer hangs as a plane at the depth of the neck, the background stays where it is.
    Without `camera` every track's own camera counts as the fitted one.
    """

    def __init__(self, avatar: Avatar, background: np.ndarray, camera: Camera | None = None) -> None:
        self.avatar, self.background, self.camera = avatar, np.asarray(background, np.float32), camera
        array = lambda t: np.ascontiguousarray(t.detach().numpy(), np.float32)  # noqa: E731
        head, torso = avatar.head, avatar.torso
        self._head_first, self._head_turn = array(head.first.weight[:, : avatar.layout.channels]), array(head.first.weight[:, avatar.layout.channels :])
        self._head_rest = tuple(array(p) for layer in (head.second, head.last) for p in (layer.weight, layer.bias))
        self._prior = array(head.prior)
        self._torso_table = array(avatar.torso_tables.tables[:, 0]).reshape(-1, 2)
        channels = avatar.torso_layout.channels
        self._torso_first, self._torso_conditions = array(torso.first.weight[:, :channels]), array(torso.first.weight[:, channels:])
        self._plates: dict[bytes, np.ndarray] = {}
        self._waves: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._order: dict[tuple[int, ...], np.ndarray] = {}
        # Both levels of the warp have the same grid: x, y, z (and 0) of a point side by side are found in one look-up.
        both = avatar.warp_tables.tables.reshape(2, -1, 2, avatar.warp_tables.tables.shape[1])
        self._warp = HalfTables(torch.stack([both[0, :, 0], both[0, :, 1], both[1, :, 0], torch.zeros_like(both[0, :, 0])], 1).flatten(0, 1))
        self._tables = HalfTables(avatar.tables.tables)

    @classmethod
    def load(cls, run_dir: Path, subject: Subject) -> "HeadRenderer":
        """Read a run folder. Raises InputError when it holds no usable weights."""
        camera = subject.track.camera
        return cls(Avatar.load(run_dir / "field.safetensors"), load_background(subject, camera.width, camera.height), camera.at(slice(0, 1)))

    def use_volume(self, volume: Volume) -> None:
        """Sample the head in another volume of the same box, such as a carved one (`thnerf.views.carved`)."""
        self.avatar.volume = volume

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """One frame (H,W,3) float32 in [0,1] at the size of the track's camera. background: (H,W,3) float32 in [0,1], else the subject's."""
        colour, opacity = self._person(track, index)
        plate = self._plate(track) if background is None else _resized(np.asarray(background, np.float32), track.camera.width, track.camera.height)
        out = np.empty_like(colour)
        fused.lay_over(colour, opacity, plate, out)
        return out

    def frame_rgba(self, track: Track, index: int) -> np.ndarray:
        """The person alone (H,W,4) float32 in [0,1]: straight (not premultiplied) colour, and opacity."""
        colour, opacity = self._person(track, index)
        straight = colour / np.maximum(opacity, 1e-4)[..., None]
        return np.clip(np.concatenate([straight, opacity[..., None]], -1), 0, 1)

    def _person(self, track: Track, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Premultiplied colour (H,W,3) and opacity (H,W) of head over torso."""
        part = track[index : index + 1]
        if len(part) != 1:
            raise IndexError(f"frame {index} of a track of {len(track)}")
        condition = self.avatar.condition
        psi, pose, torso = condition.expression(part), condition.pose(part), condition.torso(part)
        colour, opacity = self._render_head(part, psi, pose)
        view = self._view(part)
        width, height = part.camera.width, part.camera.height
        inner_width, inner_height = view.size
        row = int(np.ceil(self.avatar.row * inner_height - 1e-9))
        if row < inner_height:
            shade, cover = self.shoulders(inner_width, inner_height, row, pose, torso)
            if not view.whole:
                layer = np.zeros((inner_height, inner_width, 4), np.float32)
                layer[row:, :, :3], layer[row:, :, 3] = shade[row:] * cover[row:, :, None], cover[row:]
                layer = hang(layer, view.homography, width, height, SHOULDER_FALL)
                row, cover = 0, layer[..., 3]
                shade = layer[..., :3] / np.maximum(cover, 1e-6)[..., None]
            fused.lay_under(colour, opacity, shade, cover, row)
        return colour, opacity

    def _view(self, part: Track) -> "_View":
        """Where the fitted picture lies in this frame's."""
        camera = part.camera
        if self.camera is None:
            return _View((camera.width, camera.height), np.eye(3), True)
        homography = plane_homography(self.camera, camera, depth=float(part.translation[0, 2]) + NECK_MM)
        # The layer is drawn at the size it has in the frame, then moved there.
        scale = float(np.sqrt(abs(np.linalg.det(homography[:2, :2])))) if place(homography) is None else homography[0, 0]
        size = max(1, round(self.camera.width * scale)), max(1, round(self.camera.height * scale))
        homography = homography @ np.diag([self.camera.width / size[0], self.camera.height / size[1], 1])
        return _View(size, homography, size == (camera.width, camera.height) and bool(np.allclose(homography, np.eye(3), atol=1e-6)))

    def _render_head(self, part: Track, psi: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        camera = part.camera
        rays = self.avatar.correction.apply_to_rays(self.avatar.pose_features(pose, psi), *head_rays(part, np.array([0])))
        colour, opacity = self.heads(self.blended(psi[0]), np.zeros(1, int), pose, *rays, camera.K, camera.width, camera.height, self._parts(camera))
        return colour[0], opacity[0]

    def blended(self, psi: np.ndarray, steps: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Tables of head and warp under conditions ψ (K,), for `heads`; with steps (K,) also those with each condition moved by its step, K + 1 in all."""
        scale = self.avatar.config.condition_scale
        both = [t.blend(psi * scale)[None] if steps is None else t.nearby(psi * scale, steps * scale) for t in (self._tables, self._warp)]
        return both[0].view(np.uint32), both[1].view(np.uint64)

    def heads(self, blended: tuple[np.ndarray, np.ndarray], which: np.ndarray, pose: np.ndarray, origins: np.ndarray, matrices: np.ndarray, K: np.ndarray,
              width: int, height: int, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The head alone in n views: premultiplied colour (n,height,width,3) and opacity (n,height,width).

        which (n,): the one of the blended tables that a view uses. pose: features (n,6). Rays begin at origins (n,3) mm; matrices (n,3,3) turn directions of the camera K into head space.
        """
        avatar, volume = self.avatar, self.avatar.volume
        extent = (volume.upper - volume.lower).astype(np.float32)
        biases = avatar.head.first.bias.detach().numpy() + avatar.turn(pose).numpy() @ self._head_turn.T  # the same for all samples of a view
        colour, opacity = np.empty((len(which), height, width, 3), np.float32), np.empty((len(which), height, width), np.float32)
        fused.render_heads(
            self._tile_order(width, height), ((origins - volume.lower) / extent).astype(np.float32), (matrices.astype(np.float64) @ np.linalg.inv(K)).astype(np.float32),
            which, *blended, biases, extent, np.float32(volume.step), np.float32(volume.optical_step), np.float32(parts), np.float32(STOP), volume.occupancy, self._prior,
            _grid(avatar.layout), (avatar.warp_layout.scales[0], avatar.warp_layout.resolutions[0]), (self._head_first, *self._head_rest), colour, opacity)
        return colour, opacity

    def _parts(self, camera: Camera) -> int:
        """How many times as fine rays at the outline are sampled. A surface that they graze lies now on, now between their samples; in a picture larger
        than the one that was learned this shows, above the hair as rows of dots."""
        return 1 if self.camera is None or camera.K[0, 0] < 1.5 * self.camera.K[0, 0] else _OUTLINE_PARTS

    def shoulders(self, width: int, height: int, row: int, pose: np.ndarray, torso: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colour (height,width,3) and opacity of the torso layer from a row on, with pose (1,6) and torso features (1,T); other rows are left as they are."""
        avatar, layer = self.avatar, self.avatar.torso
        conditions = np.concatenate([torso, pose], 1)[0]
        by_column, by_row = self._warp_waves(width, height)
        with torch.no_grad():
            warp_bias = layer.warp_first.bias.numpy() + layer.warp_first.weight[:, 4 * FREQUENCIES :].numpy() @ conditions
            affine = np.tensordot(torso[0], layer.affine.numpy(), 1).astype(np.float32)
            layers = (self._torso_first, layer.first.bias.numpy() + self._torso_conditions @ conditions, layer.last.weight.numpy(), layer.last.bias.numpy())
            warp = layer.warp_last.weight.numpy(), layer.warp_last.bias.numpy()
        colour, opacity = np.empty((height, width, 3), np.float32), np.empty((height, width), np.float32)
        fused.render_torso(row, by_column, (by_row + warp_bias).astype(np.float32), warp, affine, np.float32(MARGIN), np.float32(REACH),
                           _grid(avatar.torso_layout), self._torso_table, layers, colour, opacity)
        return colour, opacity

    def _warp_waves(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """The waves of a column see only u, those of a row only v: their part of the first warp layer, (W,hidden) and (H,hidden)."""
        if (width, height) not in self._waves:
            weight = self.avatar.torso.warp_first.weight.detach().numpy()[:, : 4 * FREQUENCIES].reshape(-1, 2, 2 * FREQUENCIES)

            def part(count: int, axis: int) -> np.ndarray:
                angles = (np.arange(count)[:, None] + 0.5) / count * np.pi * 2.0 ** np.arange(FREQUENCIES)
                return np.ascontiguousarray(np.concatenate([np.sin(angles), np.cos(angles)], 1) @ weight[:, axis].T, np.float32)

            self._waves[width, height] = part(width, 0), part(height, 1)
        return self._waves[width, height]

    def _tile_order(self, width: int, height: int) -> np.ndarray:
        """Tiles in Morton's order, so that what one found in the tables the next finds in the cache; dealt out to the threads, for equal work."""
        across, down, threads = -(-width // fused.TILE), -(-height // fused.TILE), numba.get_num_threads()
        key = across, down, threads
        if key not in self._order:
            y, x = (a.ravel() for a in np.mgrid[0:down, 0:across])
            code = sum((x >> k & 1) << 2 * k | (y >> k & 1) << 2 * k + 1 for k in range(12))
            order = np.argsort(code)
            dealt = np.argsort(np.arange(len(order)) % threads, kind="stable")
            self._order[key] = order[dealt]
        return self._order[key]

    def _plate(self, track: Track) -> np.ndarray:
        """The subject's background as the track's camera shows it when it stands where the fitted one stood; beyond its border blurred."""
        camera = track.camera
        key = camera.K.tobytes() + bytes((camera.width, camera.height).__repr__(), "ascii")
        if key not in self._plates:
            self._plates[key] = _resized(self.background, camera.width, camera.height) if self.camera is None else _continued(self.background, self.camera, camera)
        return self._plates[key]


@dataclass(frozen=True)
class _View:
    """size (width, height) px at which the torso layer is drawn; homography from its pixels to the frame's; whole: it is the frame."""

    size: tuple[int, int]
    homography: np.ndarray
    whole: bool


def _grid(layout: HashGridLayout) -> tuple[np.ndarray, ...]:
    return layout.scales, layout.resolutions, layout.entries, layout.hashed, layout.offsets


def _resized(plate: np.ndarray, width: int, height: int) -> np.ndarray:
    """A background (H,W,3) at another size."""
    if plate.shape[:2] == (height, width):
        return plate
    from PIL import Image

    image = Image.fromarray((np.clip(plate, 0, 1) * 255 + 0.5).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def _continued(plate: np.ndarray, fitted: Camera, camera: Camera) -> np.ndarray:
    """A plate (H,W,3) of the fitted camera as another one with the same axes shows it; its border goes on outside, ever more blurred."""
    from scipy.ndimage import gaussian_filter

    x, y, scale = camera.K[0, 2] - fitted.K[0, 2] * camera.K[0, 0] / fitted.K[0, 0], camera.K[1, 2] - fitted.K[1, 2] * camera.K[1, 1] / fitted.K[1, 1], camera.K[0, 0] / fitted.K[0, 0]
    x, y, width, height = (int(round(v)) for v in (x, y, fitted.width * scale, fitted.height * scale))
    inner = _resized(plate, width, height)
    if (x, y, width, height) == (0, 0, camera.width, camera.height):
        return inner
    out = hang(inner, np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]]), camera.width, camera.height)
    rows, columns = np.arange(camera.height), np.arange(camera.width)
    outside = np.maximum(np.maximum(y - rows, rows - (y + height - 1))[:, None], np.maximum(x - columns, columns - (x + width - 1)))
    for sigma in (4.0, 12.0, 36.0):
        sigma *= min(width, height) / 256
        share = np.clip(outside / (2 * sigma), 0, 1)[..., None].astype(np.float32)
        if share.any():
            out = (1 - share) * out + share * gaussian_filter(out, (sigma, sigma, 0), mode="nearest")
    return np.ascontiguousarray(out, np.float32)
