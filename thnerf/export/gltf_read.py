"""Reads a head out of a glTF file: JSON and arrays only, every number of the file checked before it is used.

The first mesh with morph targets is the head. Where it is skinned the joint named head (or the one that holds most of it) carries the pose, else the
mesh's own node does. Several animations of one file (Blender may write one for the pose and one for the weights) count together.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, Optional

import numpy as np

from render.camera import Camera
from render.files import InputError
from render.rotations import matrix_to_axis_angle
from thnerf.export.names import plain, swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.rig_names import EYES, HEAD, MOST as MOST_JOINTS, joint_angles
from thnerf.export.space import Space, checked_rotation
from thnerf.export.text import MAX_BYTES, MAX_FRAMES

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
MOST = 1 << 28  # bytes of one accessor's values, and frames times weights
SNAP = 0.01  # frames
HEIGHT = 1000.0  # px of a camera that says nothing about pixels
COMMON = [Fraction(n, d) for n in (24000, 30000, 48000, 60000, 120000) for d in (1001,)] + [Fraction(k) for k in range(1, 241)]


def read_gltf(path: Path, options: ExportOptions) -> Imported:
    """See `thnerf.export.gltf.read`."""
    try:
        return _read(path, options)
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:  # the file's structure is not glTF's
        raise InputError(f"{path} is not a glTF file that can be read ({type(error).__name__}: {str(error)[:120]}); export it again") from None


def _read(path: Path, options: ExportOptions) -> Imported:
    """Everything, raising whatever a wrong structure leads to."""
    file = _File(path)
    mesh_node = file.head_node()
    mesh = file.json["meshes"][file.nodes[mesh_node]["mesh"]]
    names = file.target_names(mesh)
    weights_at = file.channels.get((mesh_node, "weights"))
    times, fps = file.frames(options.fps)
    weights = np.zeros((len(times), len(names)))
    if weights_at is not None and names:
        weights = file.sampled(weights_at, times, len(names))
    else:
        start = np.asarray(file.nodes[mesh_node].get("weights") or mesh.get("weights") or np.zeros(len(names)), np.float64)
        if start.shape == (len(names),):
            weights[:] = start
    matrices = file.matrices(mesh_node, times)
    space, local = Space(0.001), Space(1.0)
    R = checked_rotation(matrices[HEAD][:, :3, :3], str(path))
    rotation, translation = matrix_to_axis_angle(space.world.T @ R @ local.local), matrices[HEAD][:, :3, 3] @ space.world / space.scale
    gaze = None
    if all(eye in matrices for eye in EYES):
        gaze = local.gaze_back(np.stack([np.swapaxes(R, 1, 2) @ checked_rotation(matrices[eye][:, :3, :3], str(path)) for eye in EYES], 1))
    turns = {name: R if name == HEAD else checked_rotation(m[:, :3, :3], str(path)) for name, m in matrices.items()}
    extra, values = joint_angles(turns, file.hangs_on, local.local)
    names, weights = [*names, *extra], np.concatenate([weights, values], 1)
    if options.sides == "viewer":
        names = [swap_side(n) for n in names]
    return Imported(fps, tuple(names), weights, rotation, translation, gaze, file.camera(times, space), tuple(file.notes))


class _File:
    """The JSON of a file, its buffers and its animation."""

    def __init__(self, path: Path) -> None:
        self.path, self.notes, self.rate, self.hangs_on = path, [], 25.0, {}
        self.json, self.binary = _chunks(path)
        self.nodes: list[dict[str, Any]] = [dict(n) for n in self.json.get("nodes", [])]
        self.buffers: dict[int, bytes] = {}
        self.parents: dict[int, int] = {}
        for i, node in enumerate(self.nodes):
            for child in node.get("children", []):
                if not isinstance(child, int) or not 0 <= child < len(self.nodes) or child in self.parents:
                    raise InputError(f"{path} has nodes that are no tree; export it again")
                self.parents[child] = i
        for i in range(len(self.nodes)):
            self.above(i)
        self.channels: dict[tuple[int, str], dict[str, Any]] = {}
        for animation in self.json.get("animations", []):
            for channel in animation["channels"]:
                target = channel["target"]
                key = (target.get("node", -1), str(target["path"]))
                sampler = animation["samplers"][_index(channel["sampler"], animation["samplers"])]
                old = self.channels.get(key)
                if old is None or self.count(sampler["input"]) > self.count(old["input"]):
                    self.channels[key] = sampler

    def above(self, node: int) -> list[int]:
        """A node and everything that it hangs on, the root last."""
        out = [node]
        while out[-1] in self.parents:
            out.append(self.parents[out[-1]])
            if len(out) > len(self.nodes):
                raise InputError(f"{self.path} has nodes that hang on each other in a circle; export it again")
        return out

    def count(self, accessor: int) -> int:
        """How many entries an accessor has."""
        return int(self.json["accessors"][_index(accessor, self.json["accessors"])]["count"])

    def accessor(self, index: int) -> np.ndarray:
        """Values (N,C) of an accessor, float64; normalised integers become fractions."""
        entry = self.json["accessors"][_index(index, self.json["accessors"])]
        kind, width, count = COMPONENTS[entry["componentType"]], SIZES[entry["type"]], int(entry["count"])
        if not 0 < count or count * width * 8 > MOST:
            raise InputError(f"{self.path} has an accessor of {count} entries, which is no motion; export it again")
        values = np.zeros((count, width))
        if "bufferView" in entry:
            values[:] = self.view(entry["bufferView"], int(entry.get("byteOffset", 0)), kind, count, width)
        if sparse := entry.get("sparse"):
            n = int(sparse["count"])
            where = self.view(sparse["indices"]["bufferView"], int(sparse["indices"].get("byteOffset", 0)), COMPONENTS[sparse["indices"]["componentType"]], n, 1)[:, 0]
            if where.dtype.kind != "u" or (len(where) and where.max() >= count):
                raise InputError(f"{self.path} has a sparse accessor that points outside itself; export it again")
            values[where] = self.view(sparse["values"]["bufferView"], int(sparse["values"].get("byteOffset", 0)), kind, n, width)
        if entry.get("normalized") and kind != "<f4":
            values = np.maximum(values / np.iinfo(np.dtype(kind)).max, -1)
        if not np.isfinite(values).all():
            raise InputError(f"{self.path} has values that are not finite; export it again")
        return values

    def view(self, index: int, offset: int, kind: str, count: int, width: int) -> np.ndarray:
        """Part of a buffer as an array (count,width)."""
        entry = self.json["bufferViews"][_index(index, self.json["bufferViews"])]
        data, start, length = self.buffer(entry["buffer"]), int(entry.get("byteOffset", 0)), int(entry["byteLength"])
        dtype = np.dtype(kind)
        stride = int(entry.get("byteStride", 0)) or dtype.itemsize * width
        last = offset + (count - 1) * stride + dtype.itemsize * width
        if min(start, length, offset, count) < 0 or stride < dtype.itemsize * width or last > length or start + length > len(data):
            raise InputError(f"{self.path} is cut off or refers to bytes that it does not have; copy or export it again")
        return np.ndarray((count, width), dtype, data, start + offset, (stride, dtype.itemsize))

    def buffer(self, index: int) -> bytes:
        """A buffer: the file's own, one spelt out in the JSON, or a file beside it."""
        if index not in self.buffers:
            entry = self.json["buffers"][_index(index, self.json["buffers"])]
            uri = entry.get("uri")
            if uri is None:
                data = self.binary
            elif uri.startswith("data:"):
                try:
                    data = base64.b64decode(uri.split(",", 1)[1], validate=True)
                except binascii.Error:
                    raise InputError(f"{self.path} has a buffer that is no base64; export it again") from None
            else:
                beside = self.path.parent / Path(uri).name
                if Path(uri).name != uri or not beside.is_file() or beside.stat().st_size > MAX_BYTES:
                    raise InputError(f"{self.path} refers to {uri[:80]!r}, which does not lie beside it; export a .glb, which holds everything")
                data = beside.read_bytes()
            self.buffers[index] = data
        return self.buffers[index]

    def head_node(self) -> int:
        """The node with the mesh that has most morph targets, else the first skinned one. Raises InputError without either."""
        meshes = self.json.get("meshes", [])
        carriers = [i for i, n in enumerate(self.nodes) if isinstance(n.get("mesh"), int) and 0 <= n["mesh"] < len(meshes)]
        targets = lambda i: max((len(p.get("targets", [])) for p in meshes[self.nodes[i]["mesh"]]["primitives"]), default=0)  # noqa: E731
        best = max(carriers, key=targets, default=None)
        if best is not None and targets(best):
            return best
        skinned = next((i for i in carriers if "skin" in self.nodes[i]), None)
        if skinned is None:
            raise InputError(f"{self.path} has no mesh with morph targets or a skin; export the head with its shape keys")
        return skinned

    def target_names(self, mesh: dict[str, Any]) -> list[str]:
        """Names of a mesh's morph targets. Raises InputError where there are fewer or more names than targets."""
        count = max((len(p.get("targets", [])) for p in mesh["primitives"]), default=0)
        names = [str(n)[:200] for n in (mesh.get("extras") or {}).get("targetNames", [])]
        if count and len(names) != count:
            raise InputError(f"{self.path} has {count} morph targets and {len(names)} names for them (extras.targetNames); export it with names")
        return names[:count]

    def frames(self, fps: Optional[float]) -> tuple[np.ndarray, float]:
        """Seconds of the frames and frames per second: those asked for, else what the key frames are spaced by."""
        inputs = {s["input"]: self.accessor(s["input"])[:, 0] for s in self.channels.values()}
        keys = [k for k in inputs.values() if len(k)]
        if not keys:
            return np.zeros(1), fps or 25.0
        if any((np.diff(k) <= 0).any() or k[0] < 0 for k in keys):
            raise InputError(f"{self.path} has key frames whose times do not rise; export it again")
        end = max(float(k[-1]) for k in keys)
        densest = max(keys, key=len)
        rate = fps
        if rate is None:
            said = (self.json.get("asset", {}).get("extras") or {}).get("fps")
            step = float(np.median(np.diff(densest))) if len(densest) > 1 else 1 / 25
            rate = float(said) if isinstance(said, (int, float)) and abs(said * step - 1) < 1e-2 else _nearest_rate(1 / step)
        if not (np.isfinite(rate) and 0 < rate <= 1000 and end * rate < MAX_FRAMES):
            raise InputError(f"{self.path} has {end:.6g} s at {rate:.6g} frames a second, which is no motion; export it again")
        self.rate = float(rate)
        return np.arange(int(round(end * rate)) + 1) / rate, float(rate)

    def sampled(self, sampler: dict[str, Any], times: np.ndarray, width: int, turn: bool = False) -> np.ndarray:
        """Values (T,width) of a sampler at some times; quaternions with `turn` (linear ones normalised: frames are near each other)."""
        keys, values = self.accessor(sampler["input"])[:, 0], self.accessor(sampler["output"])
        whole = np.round(keys * self.rate)
        near = np.where(np.abs(keys * self.rate - whole) < SNAP, whole / self.rate, keys)  # times are float32: put keys back on their frames
        keys = near if (np.diff(near) > 0).all() else keys
        how = sampler.get("interpolation", "LINEAR")
        cubic = how == "CUBICSPLINE"
        if len(times) * width * 8 > MOST or values.size != len(keys) * width * (3 if cubic else 1):
            raise InputError(f"{self.path} has an animation with {len(keys)} key frames and {values.size} values for {width} channels; export it again")
        values = values.reshape((len(keys), 3, width) if cubic else (len(keys), width))
        at = np.clip(times, keys[0], keys[-1])
        i = np.clip(np.searchsorted(keys, at + 1e-6, side="right") - 1, 0, max(0, len(keys) - 2))
        if len(keys) == 1:
            return np.repeat(values[:, 1] if cubic else values, len(times), 0)
        span = (keys[i + 1] - keys[i])[:, None]
        s = np.clip((at - keys[i])[:, None] / span, 0, 1)
        if how == "STEP":
            return np.where(s > 1 - 1e-4, values[i + 1], values[i])
        if cubic:  # Hermite, as in the specification's appendix C
            a, b = values[i, 1], values[i + 1, 1]
            out, into = values[i, 2] * span, values[i + 1, 0] * span
            return (2 * s**3 - 3 * s**2 + 1) * a + (s**3 - 2 * s**2 + s) * out + (3 * s**2 - 2 * s**3) * b + (s**3 - s**2) * into
        a, b = values[i], values[i + 1]
        if turn:
            b = np.where((a * b).sum(1, keepdims=True) < 0, -b, b)
        return (1 - s) * a + s * b

    def world(self, node: int, times: np.ndarray) -> np.ndarray:
        """Matrices (T,4,4) from a node's coordinates to the world."""
        out = np.repeat(np.eye(4)[None], len(times), 0)
        for i in self.above(node):
            out = self._local(i, times) @ out
        return out

    def _local(self, i: int, times: np.ndarray) -> np.ndarray:
        """A node's own matrices (T,4,4) or (1,4,4)."""
        node = self.nodes[i]
        if "matrix" in node:
            return _vector(node["matrix"], 16).reshape(1, 4, 4).swapaxes(1, 2)
        parts = {}
        for path, width, default in (("translation", 3, (0, 0, 0)), ("rotation", 4, (0, 0, 0, 1)), ("scale", 3, (1, 1, 1))):
            sampler = self.channels.get((i, path))
            parts[path] = _vector(node.get(path, default), width)[None] if sampler is None else self.sampled(sampler, times, width, path == "rotation")
        out = np.repeat(np.eye(4)[None], max(len(p) for p in parts.values()), 0)
        out[:, :3, :3] = _quaternion_matrix(parts["rotation"], self.path) * parts["scale"][:, None, :]
        out[:, :3, 3] = parts["translation"]
        return out

    def matrices(self, mesh_node: int, times: np.ndarray) -> dict[str, np.ndarray]:
        """What takes the mesh's coordinates to the world, (T,4,4), for the head and each eye that has a joint."""
        skins, index = self.json.get("skins", []), self.nodes[mesh_node].get("skin")
        if index is None:
            return {HEAD: self.world(mesh_node, times)}
        skin = skins[_index(index, skins)]
        joints = [_index(j, self.nodes) for j in skin["joints"]]
        bind = self.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2) if "inverseBindMatrices" in skin else np.repeat(np.eye(4)[None], len(joints), 0)
        if not joints or len(bind) < len(joints):
            raise InputError(f"{self.path} has a skin with {len(joints)} joints and {len(bind)} bind matrices; export it again")
        named = {plain(str(self.nodes[j].get("name", ""))): k for k, j in reversed(list(enumerate(joints)))}
        chosen = {HEAD: named.get(plain(HEAD), 0)} | {eye: named[plain(eye)] for eye in EYES if plain(eye) in named}
        for k, j in enumerate(joints):  # a jaw, a neck
            if k not in chosen.values() and joints[chosen[HEAD]] in self.above(j) and len(chosen) < MOST_JOINTS:
                chosen.setdefault(str(self.nodes[j].get("name", ""))[:200], k)
        name_of = {joints[k]: name for name, k in chosen.items()}
        self.hangs_on = {name: name_of.get(self.parents.get(j, -1), HEAD) for j, name in name_of.items()}
        return {name: self.world(joints[k], times) @ bind[k] for name, k in chosen.items()}

    def camera(self, times: np.ndarray, space: Space) -> Optional[Camera]:
        """The first perspective camera, in px of its own extras or of a picture HEIGHT px high; None without one that makes sense."""
        cameras = self.json.get("cameras", [])
        node = next((i for i, n in enumerate(self.nodes) if isinstance(n.get("camera"), int) and 0 <= n["camera"] < len(cameras) and "perspective" in cameras[n["camera"]]), None)
        if node is None:
            return None
        entry = cameras[self.nodes[node]["camera"]]
        lens = entry["perspective"]
        fov, aspect = float(lens["yfov"]), float(lens.get("aspectRatio", 1.0))
        if not (0.001 < fov < 3.1 and 0.01 < aspect < 100):
            return None
        width = max(1, round(HEIGHT * aspect))
        focal = HEIGHT / 2 / np.tan(fov / 2)
        pose = np.array(np.broadcast_to(self.world(node, times), (len(times), 4, 4)))
        pose[:, :3, :3] = checked_rotation(pose[:, :3, :3], str(self.path))
        K = np.array([[focal, 0, width / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
        return Camera(K, space.camera_back(pose), width, int(HEIGHT))


def _chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a .glb or .gltf and the binary part of a .glb. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size >> 20} MiB, more than the {MAX_BYTES >> 20} MiB that are read; export the head alone")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); give another file") from None
    text, binary = data, b""
    if data[:4] == b"glTF":
        at, text = 12, b""
        while at + 8 <= len(data):
            size, kind = struct.unpack_from("<II", data, at)
            if at + 8 + size > len(data):
                raise InputError(f"{path} is cut off; copy or export it again")
            if kind == JSON_CHUNK and not text:
                text = data[at + 8 : at + 8 + size]
            elif kind == BINARY_CHUNK and not binary:
                binary = data[at + 8 : at + 8 + size]
            at += 8 + size + (-size % 4)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a glTF file that can be read ({str(error)[:120]}); export it again") from None
    if not isinstance(value, dict) or not isinstance(value.get("asset"), dict):
        raise InputError(f"{path} is not a glTF file; export it again")
    return value, binary


def _index(value: Any, sequence: Any) -> int:
    """A checked index. Raises IndexError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(sequence):
        raise IndexError(f"{str(value)[:40]} is no index of {len(sequence)} entries")
    return value


def _vector(value: Any, width: int) -> np.ndarray:
    """Checked numbers (width,). Raises ValueError."""
    out = np.asarray(value, np.float64)
    if out.shape != (width,) or not np.isfinite(out).all():
        raise ValueError(f"{width} finite numbers are wanted")
    return out


def _quaternion_matrix(quaternion: np.ndarray, path: Path) -> np.ndarray:
    """Quaternions (T,4) x, y, z, w of any length → rotation matrices (T,3,3). Raises InputError for zeros."""
    length = np.linalg.norm(quaternion, axis=1, keepdims=True)
    if not (length > 1e-6).all():
        raise InputError(f"{path} has a rotation without a direction; export it again")
    x, y, z, w = (quaternion / length).T
    return np.stack([
        np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1)], 1)


def _nearest_rate(rate: float) -> float:
    """The usual frame rate within 0.2 % of a measured one, else that itself."""
    best = min(COMMON, key=lambda f: abs(float(f) - rate))
    return float(best) if abs(float(best) / rate - 1) < 2e-3 else rate
