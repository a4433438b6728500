"""Biovision BVH with the head as root and the eyes as its joints: pose and gaze, no expressions.

Lengths are in centimetres unless asked otherwise, angles in degrees; the channels Zrotation Xrotation Yrotation mean Rz·Rx·Ry, as everywhere in BVH.
The rest pose looks along +z (with y up). BVH has a frame time but no first frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import numpy as np

from render.files import InputError, atomic_path
from thnerf.export.curves import assemble
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.scene import Scene
from thnerf.export.space import Space, from_euler, to_euler
from thnerf.export.text import MAX_FRAMES, numbers, read_text, rows

UNIT = "cm"
EYES = np.array([[32.0, 30.0, 60.0], [-32.0, 30.0, 60.0]])  # mm, where the face model is not at hand
TIP = np.array([0.0, 0.0, 40.0])  # mm from a joint to its end, so that programs see a bone


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write a .bvh, atomically."""
    track, space = scene.track, scene.space(options, UNIT)
    matrix, position = space.head(track.rotation, track.translation)
    known = scene.face_model is not None and scene.face_model.eye_centres is not None
    places = space.points(scene.face_model.eyes(track.shape) if known else EYES)
    triple = lambda v: " ".join(f"{x:.6f}" for x in v)  # noqa: E731
    tip, turn = triple(space.points(TIP)), "Zrotation Xrotation Yrotation"
    lines = ["HIERARCHY", "ROOT head", "{", "  OFFSET 0.000000 0.000000 0.000000", f"  CHANNELS 6 Xposition Yposition Zposition {turn}"]
    values = [position, to_euler(matrix, "ZXY")]
    turns = space.eyes(scene.gaze(options))
    for side, name in enumerate(("eye_right", "eye_left") if options.sides == "viewer" else ("eye_left", "eye_right")):
        lines += [f"  JOINT {name}", "  {", f"    OFFSET {triple(places[side])}", f"    CHANNELS 3 {turn}", "    End Site", "    {", f"      OFFSET {tip}", "    }", "  }"]
        values.append(to_euler(turns[:, side], "ZXY"))
    lines += ["}", "MOTION", f"Frames: {len(track)}", f"Frame Time: {1 / track.fps:.9f}"]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="ascii", newline="\n") as stream:
        stream.write("\n".join(lines) + "\n")
        stream.writelines(row + "\n" for row in rows(np.concatenate(values, 1), 6))


@dataclass
class Joint:
    """name; parent as an index, -1 for roots; offset (3,); channels by BVH's names."""

    name: str
    parent: int
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)
    channels: list[str] = field(default_factory=list)


def read(path: Path, options: ExportOptions) -> Imported:
    """Read the head (the joint of that name with its parents' motion, else the root) and the eyes. Raises InputError."""
    joints, data, step = parse(read_text(path), str(path))
    space = Space(options.scale(UNIT), options.up)
    columns = np.cumsum([0] + [len(j.channels) for j in joints])
    local = [_pose(j, data[:, a:b]) for j, a, b in zip(joints, columns, columns[1:])]
    head = next((i for i, j in enumerate(joints) if j.name.lower().rsplit(":", 1)[-1] == "head"), 0)
    matrix, position = local[head]
    parent = joints[head].parent
    while parent >= 0:
        R, t = local[parent]
        matrix, position, parent = R @ matrix, np.einsum("tij,tj->ti", R, position) + t, joints[parent].parent
    eyes = {}
    for i, j in enumerate(joints):
        if j.parent == head and j.name.lower() in ("eye_left", "eye_right", "lefteye", "righteye"):
            eyes["eye_left" if "left" in j.name.lower() else "eye_right"] = dict(zip(("rx", "ry", "rz"), to_euler(local[i][0], "xyz").T))
    pose = dict(zip(("rx", "ry", "rz"), to_euler(matrix, "xyz").T)) | dict(zip(("tx", "ty", "tz"), position.T))
    if not any("position" in c.lower() for c in joints[head].channels) and parent < 0 and joints[head].parent < 0:
        pose = {k: v for k, v in pose.items() if k.startswith("r")}
    fps = 1 / step
    fps = round(fps) if abs(fps - round(fps)) < 1e-4 * fps else fps
    return assemble(float(fps), {}, {"head": pose, **eyes}, space, options, str(path))


def _pose(joint: Joint, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (T,3,3) and position (T,3) of a joint against its parent."""
    names = [c.lower() for c in joint.channels]
    position = np.repeat(np.array([joint.offset], np.float64), len(data), 0)
    for i, axis in enumerate("xyz"):
        if f"{axis}position" in names:
            position[:, i] = data[:, names.index(f"{axis}position")]
    turning = [(c[0].upper(), k) for k, c in enumerate(names) if c.endswith("rotation")]
    matrix = np.repeat(np.eye(3)[None], len(data), 0)
    for axis, k in turning:  # the first channel is the outermost rotation
        matrix = matrix @ from_euler(np.stack([data[:, k], 0 * data[:, k], 0 * data[:, k]], 1), axis + "".join(a for a in "XYZ" if a != axis))
    return matrix, position


def parse(text: str, what: str) -> tuple[list[Joint], np.ndarray, float]:
    """Joints in the order of their columns, motion (T,C), seconds a frame. Raises InputError when it is no BVH."""
    head, _, motion = text.partition("MOTION")
    words = iter(head.replace("{", " { ").replace("}", " } ").split())
    if next(words, "") != "HIERARCHY" or not motion:
        raise InputError(f"{what} is no BVH (HIERARCHY and MOTION are missing); export it again")
    joints, count = _hierarchy(words, what), 0
    count = sum(len(j.channels) for j in joints)
    lines = motion.split("\n")
    settings = {}
    at = 0
    for at, line in enumerate(lines):
        name, colon, value = line.partition(":")
        if colon:
            settings[name.strip().lower()] = value.strip()
        if len(settings) == 2:
            break
    try:
        frames, step = int(settings.get("frames", "")), float(settings.get("frame time", ""))
        body = [float(x) for x in " ".join(lines[at + 1 :]).split()]
    except (ValueError, OverflowError) as error:
        raise InputError(f"{what} has something other than numbers in its motion ({error}); export it again") from None
    if not (0 < frames <= MAX_FRAMES and 1e-3 <= step <= 1) or not count or len(body) != frames * count:
        raise InputError(f"{what} has {len(body)} numbers for {frames} frames of {count} channels; export it again")
    return joints, numbers(np.array(body).reshape(frames, count), what, (frames, count)), step


def _hierarchy(words: Iterator[str], what: str) -> list[Joint]:
    """The joints of a HIERARCHY. Raises InputError when its words do not fit together."""
    joints: list[Joint] = []
    stack: list[int] = []  # index of each open block; -2 for an End Site
    pending = None
    try:
        for word in words:
            if word in ("ROOT", "JOINT"):
                parent = next((i for i in reversed(stack) if i >= 0), -1)
                joints.append(Joint(next(words), parent))
                pending = len(joints) - 1
            elif word == "End":
                next(words)
                pending = -2
            elif word == "{":
                stack.append(-2 if pending is None else pending)
            elif word == "}":
                stack.pop()
            elif word == "OFFSET":
                offset = tuple(float(next(words)) for _ in range(3))
                if stack[-1] >= 0:
                    joints[stack[-1]].offset = offset
            elif word == "CHANNELS":
                names = [next(words) for _ in range(min(int(next(words)), 6))]
                if stack[-1] < 0 or any(n.lower()[1:] not in ("position", "rotation") or n.lower()[0] not in "xyz" for n in names):
                    raise ValueError("channels")
                joints[stack[-1]].channels = names
            else:
                raise ValueError(word)
    except (ValueError, IndexError, StopIteration, RuntimeError):
        raise InputError(f"{what} has a HIERARCHY that cannot be read; export it again") from None
    if stack or not joints or len(joints) > 1000 or not all(np.isfinite(j.offset).all() for j in joints):
        raise InputError(f"{what} has a HIERARCHY that is not closed, empty or too large; export it again")
    return joints
