"""glTF 2.0, binary: one head with sparse morph targets and a skeleton, their animation, the texture inside, a camera.

Nodes: Head (the skinned mesh), head (a joint; its animation is the pose) with eye_left and eye_right, Camera. Lengths are in metres with y up, as
glTF wants. Frame i is at second i / fps. `extras.targetNames` of the mesh holds the names of the morph targets, `extras` of the camera its intrinsics:
a camera of glTF looks through the middle of its picture. Specification: Khronos, glTF 2.0, registry.khronos.org/glTF.
"""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any, Optional

import numpy as np

import thnerf
from render.files import InputError, atomic_path
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.rig import Rig, make_rig, quaternions
from thnerf.export.scene import Scene
from thnerf.export.skin import scene_texture

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
UNSIGNED_BYTE, UNSIGNED_SHORT, UNSIGNED_INT, FLOAT = 5121, 5123, 5125, 5126
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
VERTICES, INDICES = 34962, 34963  # what a buffer view is for
CENTRE_PX = 0.5  # a principal point further from the middle than this is worth a warning


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write .glb, atomically. Warns when the camera's principal point is not in the middle of the picture.

    Raises InputError for another unit, for z up, for a bake, or without the track's face model.
    """
    if options.bake:
        raise InputError("glTF has no vertices over time; bake to USD, or export without --bake")
    if options.units not in ("auto", "m") or options.up != "y":
        raise InputError("glTF is always in metres with y up; leave --units and --up as they are")
    if options.start_frame or options.timecode:
        raise InputError("glTF counts seconds from 0; leave out --start-frame and --timecode")
    K, camera = scene.track.camera.K, scene.track.camera
    if max(abs(K[0, 2] - camera.width / 2), abs(K[1, 2] - camera.height / 2)) > CENTRE_PX:
        warnings.warn(f"the principal point of the camera is ({K[0, 2]:.1f}, {K[1, 2]:.1f}) px and glTF can only say the middle: the head will look "
                      f"shifted through it; USD keeps it", stacklevel=2)
    data = _Document(scene, make_rig(scene, options, "m")).pack()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read(path: Path, options: ExportOptions) -> Imported:
    """Weights, pose, gaze and camera of a .glb or .gltf written here, or by Blender from one. Raises InputError when it is damaged or holds no such head."""
    from thnerf.export.gltf_read import read_gltf

    return read_gltf(path, options)


class _Document:
    """Collects the JSON and the one buffer of a file."""

    def __init__(self, scene: Scene, rig: Rig) -> None:
        self.scene, self.rig, self.binary = scene, rig, bytearray()
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": f"thnerf {thnerf.__version__}", "extras": {"fps": scene.track.fps, "frames": len(scene.track)}},
            "scene": 0, "accessors": [], "bufferViews": [], "buffers": [{}],
        }

    def pack(self) -> bytes:
        """The whole file."""
        J, document = len(self.rig.joints), self.json
        nodes: list[dict[str, Any]] = [{"name": "Head", "mesh": 0, "skin": 0}]
        for j, name in enumerate(self.rig.joints):  # joint j is node 1 + j
            node: dict[str, Any] = {"name": name, "translation": self.rig.at_rest(j).tolist()}
            if children := [1 + k for k, parent in enumerate(self.rig.parents) if parent == j]:
                node["children"] = children
            nodes.append(node)
        nodes.append(self.camera())
        document["nodes"] = nodes
        document["scenes"] = [{"name": self.scene.name, "nodes": [0, *(1 + j for j, parent in enumerate(self.rig.parents) if parent < 0), 1 + J]}]
        self.mesh()
        bind = np.repeat(np.eye(4)[None], J, 0)
        bind[:, 3, :3] = -self.rig.rest  # columns come first in the file
        document["skins"] = [{"name": "Head", "joints": list(range(1, J + 1)), "skeleton": 1, "inverseBindMatrices": self.accessor(bind.reshape(J, 16))}]
        self.animation()
        if picture := scene_texture(self.scene):
            self.texture(picture)
        document["buffers"][0]["byteLength"] = len(self.binary)
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        body = bytes(self.binary) + b"\0" * (-len(self.binary) % 4)
        size = 12 + 8 + len(text) + 8 + len(body)
        return b"".join([struct.pack("<III", MAGIC, 2, size), struct.pack("<II", len(text), JSON_CHUNK), text, struct.pack("<II", len(body), BINARY_CHUNK), body])

    def view(self, data: bytes, target: Optional[int] = None) -> int:
        """Append bytes to the buffer; index of their view."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data)} | ({"target": target} if target else {}))
        self.binary += data
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, kind: int = FLOAT, target: Optional[int] = None, bounds: bool = False) -> int:
        """Append an array (N,C) or (N,); index of its accessor."""
        values = np.ascontiguousarray(values, {FLOAT: "<f4", UNSIGNED_INT: "<u4", UNSIGNED_SHORT: "<u2", UNSIGNED_BYTE: "u1"}[kind])
        flat = values.reshape(len(values), -1)
        entry: dict[str, Any] = {"bufferView": self.view(flat.tobytes(), target), "componentType": kind, "count": len(flat), "type": TYPES[flat.shape[1]]}
        if bounds:
            entry |= {"min": flat.min(0).astype(float).tolist(), "max": flat.max(0).astype(float).tolist()}
        self.json["accessors"].append(entry)
        return len(self.json["accessors"]) - 1

    def sparse(self, count: int, index: np.ndarray, values: np.ndarray, bounds: bool) -> int:
        """An accessor (count,3) that is zero but for values (N,3) at rising indices (N,)."""
        values = np.ascontiguousarray(values, "<f4")
        entry: dict[str, Any] = {"componentType": FLOAT, "count": count, "type": "VEC3"}
        if len(index):
            entry["sparse"] = {
                "count": len(index), "indices": {"bufferView": self.view(index.astype("<u2" if count <= 65536 else "<u4").tobytes()),
                                                 "componentType": UNSIGNED_SHORT if count <= 65536 else UNSIGNED_INT},
                "values": {"bufferView": self.view(values.tobytes())}}
        if bounds:
            zero = np.zeros((0 if len(index) == count else 1, 3), "<f4")
            whole = np.concatenate([values, zero])
            entry |= {"min": whole.min(0).astype(float).tolist(), "max": whole.max(0).astype(float).tolist()}
        self.json["accessors"].append(entry)
        return len(self.json["accessors"]) - 1

    def mesh(self) -> None:
        """The mesh; vertices on a seam of the texture are doubled, because glTF's have one texture coordinate each."""
        rig = self.rig
        corners = np.concatenate([rig.faces.reshape(-1, 1), np.round(rig.uv.reshape(-1, 2) * 65536)], 1).astype(np.int64)
        unique, first, inverse = np.unique(corners, axis=0, return_index=True, return_inverse=True)
        source = unique[:, 0]
        count = len(unique)
        normals = rig.normals / np.maximum(np.linalg.norm(rig.normals, axis=1, keepdims=True), 1e-9)
        normals[np.linalg.norm(rig.normals, axis=1) < 0.5] = (0, 0, 1)  # vertices without a face
        attributes = {
            "POSITION": self.accessor(rig.points[source], target=VERTICES, bounds=True),
            "NORMAL": self.accessor(normals[source], target=VERTICES),
            "TEXCOORD_0": self.accessor(rig.uv.reshape(-1, 2)[first] * [1, -1] + [0, 1], target=VERTICES),
            "JOINTS_0": self.accessor(np.where(rig.strengths > 0, rig.influences, 0)[source], UNSIGNED_BYTE, VERTICES),
            "WEIGHTS_0": self.accessor(_unit_sum(rig.strengths)[source], target=VERTICES),
        }
        primitive: dict[str, Any] = {"attributes": attributes, "material": 0, "indices": self.accessor(inverse.ravel(), UNSIGNED_INT, INDICES)}
        self.json["materials"] = [{"name": "Head", "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.8, "baseColorFactor": [0.6, 0.45, 0.38, 1.0]}}]
        mesh: dict[str, Any] = {"name": "Head", "primitives": [primitive]}
        if rig.shapes:
            primitive["targets"] = []
            where = np.full(len(rig.points), -1)
            for shape in rig.shapes:
                where[:] = -1
                where[shape.index] = np.arange(len(shape.index))
                index = np.flatnonzero(where[source] >= 0)
                rows = where[source][index]
                primitive["targets"].append({"POSITION": self.sparse(count, index, shape.offsets[rows], True), "NORMAL": self.sparse(count, index, shape.normals[rows], False)})
            mesh |= {"weights": [0.0] * len(rig.shapes), "extras": {"targetNames": [s.name for s in rig.shapes]}}
        self.json["meshes"] = [mesh]

    def animation(self) -> None:
        """Weights, and the rotation and place of each joint that moves."""
        rig, T = self.rig, len(self.scene.track)
        times = self.accessor(key_times(T, self.scene.track.fps), bounds=True)
        samplers, channels = [], []

        def channel(node: int, path: str, values: np.ndarray) -> None:
            channels.append({"sampler": len(samplers), "target": {"node": node, "path": path}})
            samplers.append({"input": times, "output": self.accessor(values), "interpolation": "LINEAR"})

        if rig.shapes:
            channel(0, "weights", rig.weights.reshape(-1, 1))
        turns = quaternions(rig.rotation)
        for j in range(len(rig.joints)):
            channel(1 + j, "rotation", turns[:, j])
            if np.abs(rig.position[:, j] - rig.at_rest(j)).max() > 1e-9:
                channel(1 + j, "translation", rig.position[:, j])
        self.json["animations"] = [{"name": self.scene.name, "samplers": samplers, "channels": channels}]

    def texture(self, picture: bytes) -> None:
        """The texture, inside the file."""
        self.json["images"] = [{"name": "Head", "mimeType": "image/png", "bufferView": self.view(picture)}]
        self.json["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        self.json["textures"] = [{"source": 0, "sampler": 0}]
        self.json["materials"][0]["pbrMetallicRoughness"] |= {"baseColorTexture": {"index": 0}, "baseColorFactor": [1.0, 1.0, 1.0, 1.0]}

    def camera(self) -> dict[str, Any]:
        """The camera's node; where it moves, its first pose."""
        camera, space = self.scene.track.camera, self.rig.space
        K, pose = camera.K, space.camera(camera)[0]
        self.json["cameras"] = [{
            "type": "perspective", "name": "Camera",
            "perspective": {"yfov": float(2 * np.arctan(camera.height / 2 / K[1, 1])), "aspectRatio": float(camera.width / K[0, 0] / (camera.height / K[1, 1])), "znear": 0.01, "zfar": 100.0},
            "extras": {"width": camera.width, "height": camera.height, "K": K.ravel().tolist()}}]
        turn = quaternions(pose[None, None, :3, :3])[0, 0]
        return {"name": "Camera", "camera": 0, "translation": pose[:3, 3].tolist(), "rotation": turn.tolist()}


def _unit_sum(strengths: np.ndarray) -> np.ndarray:
    """Weights (V,4) float32 that sum to 1 as exactly as float32 can."""
    out = strengths.astype(np.float32)
    return out / out.sum(1, keepdims=True)


def key_times(frames: int, fps: float) -> np.ndarray:
    """Seconds (T,) float32 of frames, none of them before its frame: Blender cuts 498.99999 to 498 and would lose the last one."""
    exact = np.arange(frames) / fps
    times = exact.astype(np.float32)
    return np.where(times.astype(np.float64) * fps < np.arange(frames), np.nextafter(times, np.float32(np.inf)), times)
