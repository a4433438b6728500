"""A subject as training data: its frames, what each frame is conditioned on, where its rays come from.

Every statistic here is of the training frames alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from recon.model import MorphableModel
from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from render.rotations import axis_angle_to_matrix, relative_to_frontal
from thnerf.exposure import cell_means, measure
from thnerf.frames import CompressedFrames, frame_memory

LIMIT, BLINK_LIMIT = 3.0, 7.0  # conditions are clipped to this many standard deviations; a blink is rare, and whole only far from the mean
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
_GAZE_FLOOR, _BLINK_FLOOR = np.radians(3.0), 0.15  # spreads below these are noise and are not amplified
_MOUTH, _EYES, _FACE, _LOW = 0.2, 0.06, 0.41, 0.15  # shares of the rays; the rest goes to the whole image
PATCH = 12  # px: side of the squares that the structural loss compares
LARGE_PATCH = 64  # px: side of the square that LPIPS compares, as were those that its heads were fitted to (BAPPS)


@dataclass(frozen=True)
class Condition:
    """Affine maps from a Track to what the networks see; saved beside the weights.

    expression: ψ = clip((x − offset) @ matrix, ±limit) with x = [expression (E), gaze (4)]: principal modes of expression,
    then left and right blink where the model has them, then gaze yaw and pitch. pose: whitened rotation against
    frontal (3, rad) and translation (3, mm). torso: whitened torso coefficients.
    """

    matrix: np.ndarray
    offset: np.ndarray
    pose_mean: np.ndarray
    pose_scale: np.ndarray
    torso_mean: np.ndarray
    torso_scale: np.ndarray
    expression_names: tuple[str, ...] = field(default=())
    limit: np.ndarray = field(default_factory=lambda: np.array(LIMIT, np.float32))

    @property
    def modes(self) -> int:
        """How many of ψ are principal modes of expression; blinks and gaze follow."""
        return self.matrix.shape[1] - 2 - sum(name in self.expression_names for name in BLINKS)

    def expression(self, track: Track) -> np.ndarray:
        """ψ (T,K) float32. Raises InputError when the track belongs to another model."""
        if track.expression_names != self.expression_names:
            raise InputError("the track's expression names differ from those the run was trained with; retarget the track or train again")
        x = np.concatenate([track.expression, track.gaze.reshape(len(track), 4)], 1)
        return np.clip((x - self.offset) @ self.matrix, -self.limit, self.limit).astype(np.float32)

    def pose(self, track: Track) -> np.ndarray:
        """Pose features (T,6) float32."""
        return np.clip((_pose(track) - self.pose_mean) / self.pose_scale, -LIMIT, LIMIT).astype(np.float32)

    def torso(self, track: Track) -> np.ndarray:
        """Torso features (T,K) float32. Raises InputError when the track has another number of torso coefficients."""
        if track.torso.shape[1] != len(self.torso_mean):
            raise InputError(f"the track has {track.torso.shape[1]} torso coefficients, the run was trained with {len(self.torso_mean)}")
        return np.clip((track.torso - self.torso_mean) / self.torso_scale, -LIMIT, LIMIT).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """The maps as float32 arrays by name."""
        names = ("matrix", "offset", "pose_mean", "pose_scale", "torso_mean", "torso_scale", "limit")
        return {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in names}

    @classmethod
    def fit(cls, track: Track, frames: np.ndarray, model: MorphableModel, modes: int) -> "Condition":
        """Statistics of some frames (n,) of a track. At most `modes` principal modes, fewer when the expression has fewer."""
        matrix, offset = _expression_map(track, frames, model, modes)
        pose, torso = _pose(track)[frames], track.torso[frames]
        pose_scale, torso_scale = np.maximum(pose.std(0), [0.01] * 3 + [0.5] * 3), np.maximum(torso.std(0), 1e-3)
        limit = np.full(matrix.shape[1], LIMIT, np.float32)
        limit[-2 - sum(name in track.expression_names for name in BLINKS) : -2] = BLINK_LIMIT
        return cls(matrix, offset, pose.mean(0), pose_scale, torso.mean(0), torso_scale, track.expression_names, limit)


def _pose(track: Track) -> np.ndarray:
    return np.concatenate([relative_to_frontal(track.rotation), track.translation], 1)


def _expression_map(track: Track, frames: np.ndarray, model: MorphableModel, modes: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal modes of the landmarks' displacement (mm), lips counting most, as a map on coefficients: (E+4, K), (E+4,)."""
    count = len(track.expression_names)
    x = track.expression[frames].astype(np.float64)
    scheme = "ibug68" if "ibug68" in model.landmarks else next(iter(model.landmarks))
    basis = model.points(model.expression_basis, scheme).astype(np.float64)
    weight = np.ones(basis.shape[1])
    if scheme == "ibug68":
        weight[48:68], weight[:17] = 2.0, 0.5
    blinks = [track.expression_names.index(n) for n in BLINKS if n in track.expression_names]
    basis[blinks] = 0
    flat = (basis * weight[:, None]).reshape(count, -1) / np.sqrt(basis.shape[1])
    _, spread, directions = np.linalg.svd((x - x.mean(0)) @ flat, full_matrices=False)
    spread = spread / np.sqrt(len(x))
    keep = min(modes, int((spread > 1e-6).sum()))
    spread = np.maximum(spread[:keep], 0.03 * spread[:1])
    columns = [np.pad(flat @ directions[:keep].T / spread, ((0, 4), (0, 0)))]
    for b in blinks:
        columns.append(np.eye(count + 4)[:, [b]] / max(x[:, b].std(), _BLINK_FLOOR))
    gaze = track.gaze[frames].reshape(-1, 4).astype(np.float64)
    for axis in (0, 1):
        mean = np.zeros((count + 4, 1))
        mean[count + axis] = mean[count + 2 + axis] = 0.5
        columns.append(mean / max((gaze @ mean[count:]).std(), _GAZE_FLOOR))
    return np.concatenate(columns, 1), np.concatenate([x.mean(0), gaze.mean(0)])


def head_rays(track: Track, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray origins (B,3) mm in head space, and matrices (B,3,3) that turn camera directions into head space."""
    world = track.camera.world_to_camera[frames]
    rotation = axis_angle_to_matrix(track.rotation[frames])
    centre = -np.einsum("bji,bj->bi", world[:, :3, :3], world[:, :3, 3])
    origins = np.einsum("bji,bj->bi", rotation, centre - track.translation[frames])
    return origins, np.einsum("bji,bkj->bik", rotation, world[:, :3, :3])


def landmark_boxes(track: Track, model: MorphableModel, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of the face (+ 10 %), the mouth (+ 25 %) and both eyes (+ 15 %) from the projected model, (n,4) int px x0 y0 x1 y1, inside the image."""
    points = model.points(model.mean + np.tensordot(track.shape, model.shape_basis[: len(track.shape)], 1), "ibug68")
    basis = model.points(model.expression_basis, "ibug68")
    posed = points + np.tensordot(track.expression[frames], basis, 1)
    world = np.einsum("tij,tnj->tni", axis_angle_to_matrix(track.rotation[frames]), posed) + track.translation[frames, None]
    pixels = track.camera.at(frames).project(world)
    size = np.array([track.camera.width, track.camera.height] * 2)

    def box(part: np.ndarray, margin: float) -> np.ndarray:
        low, high = part.min(1), part.max(1)
        grow = margin * (high - low)
        edges = np.concatenate([np.floor(low - grow), np.ceil(high + grow)], 1)
        edges = np.clip(np.nan_to_num(edges), 0, size)
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        return edges.astype(int)

    return box(pixels, 0.1), box(pixels[:, 48:68], 0.25), box(pixels[:, 36:48], 0.15)


@dataclass(frozen=True)
class Batch:
    """Rays of one step: frames (B,) are positions in the training set; slot (R,) says which of them a ray is of.

    u, v (R,) int px; colour (R,3) and matte (R,) float32 in [0,1]. patches (P,S,S): the rays of square pieces of a picture, by row and column.
    """

    frames: np.ndarray
    slot: np.ndarray
    u: np.ndarray
    v: np.ndarray
    colour: np.ndarray
    matte: np.ndarray
    patches: np.ndarray


@dataclass(frozen=True)
class TrainingSet:
    """The training frames of a subject. index (N,) frame numbers in the track; images (N,H,W,3) and mattes (N,H,W) uint8,
    arrays or compressed (`thnerf.frames`).

    background (H,W,3) float32; boxes (N,4) px; psi (N,K), pose (N,6), torso (N,Kt) features; origins (N,3), matrices (N,3,3)
    of head rays; pixel_to_camera (3,3); condition: how the features were made; exposure (N,2,3): how the background says each frame was exposed.
    """

    track: Track
    index: np.ndarray
    images: np.ndarray | CompressedFrames
    mattes: np.ndarray | CompressedFrames
    background: np.ndarray
    face_boxes: np.ndarray
    mouth_boxes: np.ndarray
    eye_boxes: np.ndarray
    condition: Condition
    psi: np.ndarray
    pose: np.ndarray
    torso: np.ndarray
    origins: np.ndarray
    matrices: np.ndarray
    pixel_to_camera: np.ndarray
    exposure: np.ndarray

    def sample(self, rng: np.random.Generator, frames: int, rays: int, patches: int = 0, weight: np.ndarray | None = None, side: int = PATCH) -> Batch:
        """Random frames, and random pixels of them: a fifth in the mouth box, nearly half in and around the face box, some in the torso's rows.

        patches: how many squares of side × side neighbouring pixels are among the rays, half of them about the mouth, half in the face.
        weight (N,): how likely a frame is, relative to others; None: all alike.
        """
        chosen = rng.integers(0, len(self.index), frames) if weight is None else np.searchsorted(np.cumsum(weight), rng.random(frames) * weight.sum())
        single = rays - patches * side**2
        slot, kind, place = rng.integers(0, frames, single + patches), rng.random(single + patches), rng.random((2, single + patches))
        first = rng.integers(2) if patches % 2 else 0
        kind[single:] = np.where((np.arange(patches) + first) % 2, 0, _MOUTH + _EYES)
        height, width = self.images.shape[1:3]
        mouth, eyes, face = self.mouth_boxes[chosen][slot], self.eye_boxes[chosen][slot], self.face_boxes[chosen][slot]
        margin = 0.15 * (face[:, 2:] - face[:, :2])
        wide = np.concatenate([face[:, :2] - margin * [1, 2.5], face[:, 2:] + margin * [1, 0.5]], 1)
        full = np.broadcast_to([0, 0, width, height], wide.shape)
        low = np.broadcast_to([0, self.upper_neck_row * height, width, height], wide.shape)
        share = np.cumsum([_MOUTH, _EYES, _FACE, _LOW])
        box = np.select([(kind < s)[:, None] for s in share], [mouth, eyes, wide, low], full)
        u, v = (box[:, k] + place[k] * (box[:, 2 + k] - box[:, k]) for k in (0, 1))
        grid = np.arange(side)
        left, top = (np.clip(x[single:] - side / 2, 0, size - side).astype(int) for x, size in ((u, width), (v, height)))
        squares = np.broadcast_arrays(slot[single:, None, None], left[:, None, None] + grid, top[:, None, None] + grid[:, None])
        slot, u, v = (np.concatenate([x[:single].astype(int), square.ravel()]) for x, square in zip((slot, u, v), squares))
        order = np.argsort(slot, kind="stable")
        slot, u, v = slot[order].astype(np.int32), np.clip(u[order], 0, width - 1), np.clip(v[order], 0, height - 1)
        where = np.empty(rays, int)
        where[order] = np.arange(rays)
        at = chosen[slot], v, u
        return Batch(chosen, slot, u, v, self.images[at].astype(np.float32) / 255, self.mattes[at].astype(np.float32) / 255, where[single:].reshape(-1, side, side))

    def follow(self, track: Track) -> "TrainingSet":
        """The same frames conditioned on, and seen from, what another track says of them."""
        origins, matrices = head_rays(track, self.index)
        psi, pose, torso = (f(track)[self.index] for f in (self.condition.expression, self.condition.pose, self.condition.torso))
        return dataclasses.replace(self, track=track, psi=psi, pose=pose, torso=torso, origins=origins, matrices=matrices)

    @cached_property
    def upper_neck_row(self) -> float:
        """Fraction of the image height from which the torso layer may show: about the nose, where the neck comes out behind the jaw."""
        nose = self.face_boxes[:, 3] - 0.45 * (self.face_boxes[:, 3] - self.face_boxes[:, 1])
        return float(max(0.0, np.quantile(nose, 0.02)) / self.images.shape[1])


def pixel_directions(pixel_to_camera: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Camera directions (R,3) float32 with z = 1 through the centres of pixels u, v (R,)."""
    return (np.stack([u + 0.5, v + 0.5, np.ones(len(u))], 1) @ pixel_to_camera.T).astype(np.float32)


def load_background(subject: Subject, width: int, height: int) -> np.ndarray:
    """The background plate (H,W,3) float32 in [0,1]. Raises InputError when it cannot be read."""
    from PIL import Image

    try:
        with Image.open(subject.background_path) as image:
            plate = image.convert("RGB")
            return np.asarray(plate if plate.size == (width, height) else plate.resize((width, height)), np.float32) / 255
    except OSError as error:
        raise InputError(f"{subject.background_path} is not a readable image ({error}); run thnerf fit again") from None


def load_training_set(subject: Subject, model: MorphableModel, modes: int, max_frames: int, memory_mib: int = 1536) -> TrainingSet:
    """Read the training frames of a subject; those that need more than `memory_mib` are held compressed.

    Raises InputError when video, matte and track disagree or nothing is usable.
    """
    from render.video import read_frames

    track = subject.track
    if track.model_id != model.model_id:
        raise InputError(f"the track was made with face model {track.model_id!r}, not {model.model_id!r}; run thnerf fit again with the model you want")
    index = subject.frames("train")
    if len(index) == 0:
        raise InputError(f"{subject.path} has no training frame with a usable face; fit a clip in which the face is visible")
    if len(index) > max_frames:
        index = index[np.round(np.linspace(0, len(index) - 1, max_frames)).astype(int)]
    width, height = track.camera.width, track.camera.height
    images, mattes = frame_memory(len(index), height, width, memory_mib)
    cells = [_keep(images, read_frames(subject.video_path), index, subject.video_path),
             _keep(mattes, read_frames(subject.matte_path, grey=True), index, subject.matte_path)]
    condition = Condition.fit(track, index, model, modes)
    boxes = landmark_boxes(track, model, index)
    origins, matrices = head_rays(track, index)
    background = load_background(subject, width, height)
    return TrainingSet(
        track, index, images, mattes, background, *boxes, condition,
        condition.expression(track)[index], condition.pose(track)[index], condition.torso(track)[index],
        origins, matrices, np.linalg.inv(track.camera.K), measure(*cells, background))


def _keep(out: np.ndarray | CompressedFrames, frames: Any, index: np.ndarray, path: Any) -> list[np.ndarray]:
    """Fill `out` with the frames numbered `index` of a stream; returns their means of cells (`thnerf.exposure`), while they are at hand uncompressed."""
    slot, last, cells = 0, int(index[-1]), []
    for number, frame in enumerate(frames):
        if frame.shape != out.shape[1:]:
            raise InputError(f"{path} is {frame.shape[1]}x{frame.shape[0]}, the track says {out.shape[2]}x{out.shape[1]}; run thnerf fit again")
        if number == index[slot]:
            out[slot] = frame
            cells.append(cell_means(frame).astype(np.float16))
            slot += 1
        if number == last:
            return cells
    raise InputError(f"{path} ends after {slot} of {len(out)} training frames; run thnerf fit again")


def person_share(data: TrainingSet, points: np.ndarray, frames: int = 48) -> np.ndarray:
    """In what share (n,) of `frames` evenly spread training frames a point (n,3) mm of head space is covered by the person's matte.

    Points that leave the picture count as covered: there is nothing to say about them.
    """
    track, share = data.track, np.zeros(len(points), np.float32)
    chosen = np.unique(np.round(np.linspace(0, len(data.index) - 1, frames)).astype(int))
    height, width = data.images.shape[1:3]
    for i in chosen:
        t = int(data.index[i])
        pixels = track.camera.at(slice(t, t + 1)).project((points @ axis_angle_to_matrix(track.rotation[t]).T + track.translation[t])[None])[0]
        x, y = (np.floor(np.nan_to_num(pixels, nan=-1)).astype(int)).T
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        share += np.where(inside, data.mattes[int(i)][np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] > 127, True)
    return share / len(chosen)


def typical_meshes(track: Track, index: np.ndarray, model: MorphableModel, count: int = 12) -> np.ndarray:
    """Head meshes (count+1,V,3) mm of the subject: the mean expression, then those furthest from it and from each other."""
    expression = track.expression[index]
    chosen, distance = [], ((expression - expression.mean(0)) ** 2).sum(1)
    for _ in range(min(count, len(index))):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((expression - expression[chosen[-1]]) ** 2).sum(1))
    return model.vertices(track.shape, np.concatenate([expression.mean(0, keepdims=True), expression[chosen]]))
