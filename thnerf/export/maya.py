"""A Maya ASCII scene (.ma): the subject's head with one blend-shape target per expression, its animation curves, the camera, the sound.

    head                 transform: pose of the head (translate, rotate, order xyz)
      headShape          mesh, deformed by head_blendShape out of headShapeOrig
      eye_left, …_right  meshes of their own, which turn about the centres of the eyeballs (with eyes as blend shapes they stay in the head)
    camera               what filmed the footage
    sound                audio node

Lengths are in centimetres unless asked otherwise. Targets are sparse offsets (inputPointsTarget, inputComponentsTarget of item 6000 = weight 1).
Maya's node reference and files that Maya wrote are what this follows. Angles of a face model's joints (FLAME's jaw) are targets by their chord.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator, TextIO

import numpy as np

from recon.model import SIDES
from recon.gaze import LOOK_ANGLE, LOOKS
from render.files import InputError, atomic_path
from thnerf.export.maya_anim import BLEND, HEAD, UNIT, maya_curves
from thnerf.export.maya_time import unit_of
from thnerf.export.names import identifiers
from thnerf.export.options import ExportOptions
from thnerf.export.scene import Scene
from thnerf.export.skin import scene_texture
from thnerf.export.space import Space, to_euler
from thnerf.unwrap import texture_coordinates

CHUNK = 500  # values of an array attribute that one setAttr holds
LONG = {"mm": "millimeter", "cm": "centimeter", "m": "meter"}
APERTURE = 36.0  # mm: width of the film of the exported camera
SHORT = {"translateX": "tx", "translateY": "ty", "translateZ": "tz", "rotateX": "rx", "rotateY": "ry", "rotateZ": "rz"}
LINEAR = 2  # Maya's number of a linear tangent
STILL = 1e-6  # units below which a target does not move a vertex


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write a .ma, atomically, with NAME_texture.png beside it where the subject is known.

    Raises InputError without the track's face model, or for a frame rate that Maya does not have.
    """
    track, first = scene.track, options.first_frame(scene.track.fps)
    unit, rate = UNIT if options.units == "auto" else options.units, unit_of(track.fps)
    texture = scene_texture(scene)
    picture = path.with_name(f"{path.stem}_texture.png")
    parts = _Parts(scene, options)
    if texture is not None:
        with atomic_path(picture) as temporary:
            temporary.write_bytes(texture)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(f'//Maya ASCII 2018 scene\n//Codeset: UTF-8\nrequires maya "2018";\ncurrentUnit -l {LONG[unit]} -a degree -t {rate};\n')
        if options.up == "z":
            stream.write('upAxis -ax "z";\n')
        links = parts.write(stream)
        links += _camera(stream, scene, options)
        links += _material(stream, picture if texture is not None else None, parts.shapes)
        links += _curves(stream, scene, options, first)
        _sound(stream, scene, first)
        last = first + len(track) - 1
        node(stream, "script", "sceneConfigurationScriptNode")
        text(stream, ".b", f"playbackOptions -min {first} -max {last} -ast {first} -aet {last} ")
        stream.write("\tsetAttr \".st\" 6;\n")
        stream.writelines(f"connectAttr \"{a}\" \"{b}\"{' -na' if many else ''};\n" for a, b, many in links)
        stream.write(f"// End of {path.name.encode('ascii', 'replace').decode()}\n")


Link = tuple[str, str, bool]  # from, to, next available


def node(stream: TextIO, kind: str, name: str, parent: str | None = None) -> None:
    """createNode."""
    stream.write(f'createNode {kind} -n "{name}"' + (f' -p "{parent}"' if parent else "") + ";\n")


def text(stream: TextIO, attribute: str, value: str) -> None:
    """setAttr of a string."""
    stream.write(f'\tsetAttr "{attribute}" -type "string" {json.dumps(value, ensure_ascii=False)};\n')


def array(stream: TextIO, attribute: str, values: np.ndarray, digits: int, kind: str = "") -> None:
    """setAttr of an array attribute (N,C), in pieces as Maya writes them."""
    values = np.asarray(values)
    per = max(1, CHUNK // values.shape[1])
    pattern = " ".join(["%d" if values.dtype.kind == "i" else f"%.{digits}f"] * values.shape[1])
    clean = values if values.dtype.kind == "i" else np.round(values, digits) + 0.0
    for a in range(0, len(values), per):
        b = min(a + per, len(values))
        size = f"-s {len(values)} " if a == 0 else ""
        body = " ".join(pattern % tuple(row) for row in clean[a:b].tolist())
        stream.write(f'\tsetAttr {size}"{attribute}[{a}:{b - 1}]" {kind}{body};\n')


class _Parts:
    """The meshes of a head: skin with targets, and eyeballs of their own."""

    def __init__(self, scene: Scene, options: ExportOptions) -> None:
        self.scene, self.options, self.model = scene, options, scene.model
        self.space: Space = scene.space(options, UNIT)
        self.uv = texture_coordinates(self.model)
        self.eyes = self.model.eye_centres is not None and options.eyes == "rotation"
        self.shapes = [f"{HEAD}Shape"] + ([f"eye_{side}Shape" for side in SIDES] if self.eyes else [])
        self.basis = self.model.expression_basis.astype(np.float64)
        if self.model.eye_centres is not None and not self.eyes:
            self._eyes_as_targets()

    def write(self, stream: TextIO) -> list[Link]:
        """All nodes of the meshes; returns their connections."""
        balls = [self.model.regions[f"eye_{side}"] for side in SIDES] if self.eyes else []
        skin = ~np.any(balls, axis=0) if balls else np.ones(len(self.model.mean), bool)
        node(stream, "transform", HEAD)
        node(stream, "mesh", f"{HEAD}Shape", HEAD)
        node(stream, "mesh", f"{HEAD}ShapeOrig", HEAD)
        stream.write('\tsetAttr ".io" yes;\n')
        self._mesh(stream, skin, np.zeros(3))
        for side, mask in zip(SIDES, balls):
            centre = self.model.eyes(self.scene.track.shape)[SIDES.index(side)].astype(np.float64)
            name = f"eye_{SIDES[1 - SIDES.index(side)] if self.options.sides == 'viewer' else side}"
            node(stream, "transform", name, HEAD)
            stream.write('\tsetAttr ".t" -type "double3" ' + " ".join(f"{x:.6f}" for x in self.space.points(centre)) + ";\n")
            node(stream, "mesh", f"{name}Shape", name)
            self._mesh(stream, mask, centre)
        return self._targets(stream, skin)

    def _mesh(self, stream: TextIO, mask: np.ndarray, origin: np.ndarray) -> None:
        """Geometry of the current mesh node: the vertices of `mask` against `origin` (3,) mm."""
        chosen = mask[self.model.faces].all(1)
        faces = (np.cumsum(mask) - 1)[self.model.faces[chosen]]
        corners, place = np.unique(np.round(self.uv[chosen].reshape(-1, 2), 6), axis=0, return_inverse=True)
        place = place.reshape(-1, 3)
        ends = np.stack([faces, np.roll(faces, -1, 1)], -1)  # the three edges of each face
        edges, which = np.unique(np.sort(ends.reshape(-1, 2), 1), axis=0, return_inverse=True)
        which = which.reshape(-1, 3)
        turned = ends[..., 0] > ends[..., 1]
        text(stream, ".uvst[0].uvsn", "map1")
        array(stream, ".uvst[0].uvsp", corners, 6, '-type "float2" ')
        text(stream, ".cuvs", "map1")
        array(stream, ".vt", self.space.points(self.scene.neutral[mask] - origin), 6)
        array(stream, ".ed", np.concatenate([edges, np.ones((len(edges), 1), int)], 1).astype(int), 0)  # 1 = smooth
        signed = np.where(turned, -which - 1, which)
        for a in range(0, len(faces), CHUNK):
            b = min(a + CHUNK, len(faces))
            size = f"-s {len(faces)} " if a == 0 else ""
            body = "\n".join(f"\t\tf 3 {e[0]} {e[1]} {e[2]} mu 0 3 {c[0]} {c[1]} {c[2]}" for e, c in zip(signed[a:b].tolist(), place[a:b].tolist()))
            stream.write(f'\tsetAttr {size}-ch {3 * (b - a)} ".fc[{a}:{b - 1}]" -type "polyFaces"\n{body};\n')

    def _targets(self, stream: TextIO, skin: np.ndarray) -> list[Link]:
        """The blend shape and what Maya needs around a deformer."""
        names = identifiers(self.scene.names(self.options))
        index = np.cumsum(skin) - 1
        node(stream, "blendShape", BLEND)
        stream.write('\taddAttr -ci true -h true -sn "aal" -ln "attributeAliasList" -dt "attributeAlias";\n')
        array(stream, ".w", np.zeros((len(names), 1)), 0)
        for k, offsets in enumerate(self.basis):
            moved = np.flatnonzero((np.abs(self.space.points(offsets)).max(1) > STILL) & skin)
            values = self.space.points(offsets[moved])
            body = " ".join("%.6f %.6f %.6f 1" % tuple(row) for row in (np.round(values, 6) + 0.0).tolist())
            ranges = _ranges(index[moved])
            stream.write(f'\tsetAttr ".it[0].itg[{k}].iti[6000].ipt" -type "pointArray" {len(moved)} {body};\n')
            stream.write(f'\tsetAttr ".it[0].itg[{k}].iti[6000].ict" -type "componentList" {len(ranges)} ' + " ".join(f'"vtx[{r}]"' for r in ranges) + ";\n")
        aliases = ",".join(f'"{name}","weight[{k}]"' for k, name in enumerate(names))
        stream.write(f'\tsetAttr ".aal" -type "attributeAlias" {{{aliases}}};\n')
        node(stream, "groupId", f"{BLEND}GroupId")
        stream.write('\tsetAttr ".ihi" 0;\n')
        node(stream, "groupParts", f"{BLEND}GroupParts")
        stream.write('\tsetAttr ".ihi" 0;\n\tsetAttr ".ic" -type "componentList" 1 "vtx[*]";\n')
        node(stream, "objectSet", f"{BLEND}Set")
        stream.write('\tsetAttr ".ihi" 0;\n\tsetAttr ".vo" yes;\n')
        shape = f"{HEAD}Shape"
        return [(f"{BLEND}GroupParts.og", f"{BLEND}.ip[0].ig", False), (f"{BLEND}GroupId.id", f"{BLEND}.ip[0].gi", False),
                (f"{BLEND}.og[0]", f"{shape}.i", False), (f"{shape}Orig.w", f"{BLEND}GroupParts.ig", False), (f"{BLEND}GroupId.id", f"{BLEND}GroupParts.gi", False),
                (f"{BLEND}GroupId.id", f"{shape}.iog.og[0].gid", False), (f"{BLEND}Set.mwc", f"{shape}.iog.og[0].gco", False),
                (f"{BLEND}GroupId.msg", f"{BLEND}Set.gn", True), (f"{shape}.iog.og[0]", f"{BLEND}Set.dsm", True), (f"{BLEND}.msg", f"{BLEND}Set.ub[0]", False)]

    def _eyes_as_targets(self) -> None:
        """Let the eyeLook targets turn the eyeballs by `LOOK_ANGLE`."""
        from recon.model import gaze_rotation

        centres = self.model.eyes(self.scene.track.shape)
        for side, (label, outward) in enumerate((("Left", 1), ("Right", -1))):
            mask = self.model.regions[f"eye_{SIDES[side]}"]
            ball = self.scene.neutral[mask] - centres[side]
            for stem, angles in zip(LOOKS, ((0, 1), (0, -1), (-outward, 0), (outward, 0))):
                if stem + label in self.model.expression_names:
                    turn = gaze_rotation(np.array(angles) * LOOK_ANGLE)
                    self.basis[self.model.index(stem + label), mask] += ball @ turn.T - ball


def _ranges(index: np.ndarray) -> list[str]:
    """Sorted indices as Maya's component ranges: 3, 7:9, …"""
    if not len(index):
        return []
    starts = np.r_[0, np.flatnonzero(np.diff(index) > 1) + 1]
    ends = np.r_[starts[1:] - 1, len(index) - 1]
    return [str(index[a]) if a == b else f"{index[a]}:{index[b]}" for a, b in zip(starts, ends)]


def _camera(stream: TextIO, scene: Scene, options: ExportOptions) -> list[Link]:
    """The fitted camera: apertures in inches, film offsets for a principal point off the middle; animated where it moves."""
    camera, space = scene.track.camera, scene.space(options, UNIT)
    fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
    inch = 25.4
    wide, high = APERTURE, APERTURE * camera.height / camera.width * fx / fy
    node(stream, "transform", "camera")
    poses = space.camera(camera)
    links: list[Link] = []
    angles, places = to_euler(poses[:, :3, :3], "xyz"), poses[:, :3, 3]
    stream.write('\tsetAttr ".t" -type "double3" ' + " ".join(f"{x:.6f}" for x in places[0]) + ";\n")
    stream.write('\tsetAttr ".r" -type "double3" ' + " ".join(f"{x:.6f}" for x in angles[0]) + ";\n")
    node(stream, "camera", "cameraShape", "camera")
    stream.write('\tsetAttr ".rnd" no;\n')
    stream.write(f'\tsetAttr ".cap" -type "double2" {wide / inch:.8f} {high / inch:.8f};\n\tsetAttr ".ff" 1;\n\tsetAttr ".fl" {fx * wide / camera.width:.6f};\n')
    stream.write(f'\tsetAttr ".fio" -type "double2" {(camera.width / 2 - cx) / camera.width * wide / inch:.8f} {(cy - camera.height / 2) / camera.height * high / inch:.8f};\n')
    first = options.first_frame(scene.track.fps)
    if np.ptp(poses, axis=0).max() > 1e-9:
        for attribute, values, kind in [(a, v, "animCurveTL") for a, v in zip(("tx", "ty", "tz"), places.T)] + [(a, v, "animCurveTA") for a, v in zip(("rx", "ry", "rz"), angles.T)]:
            _curve(stream, kind, f"camera_{attribute}", values, first)
            links.append((f"camera_{attribute}.o", f"camera.{attribute}", False))
    return links


def _material(stream: TextIO, picture: Path | None, shapes: list[str]) -> list[Link]:
    """A lambert with the texture, where there is one; the initial shading group otherwise."""
    if picture is None:
        return [(f"{shape}.iog", ":initialShadingGroup.dsm", True) for shape in shapes]
    node(stream, "lambert", "head_material")
    stream.write('\tsetAttr ".dc" 1;\n')
    node(stream, "shadingEngine", "head_shadingGroup")
    stream.write('\tsetAttr ".ihi" 0;\n\tsetAttr ".ro" yes;\n')
    node(stream, "file", "head_texture")
    text(stream, ".ftn", picture.name)
    node(stream, "place2dTexture", "head_placement")
    return [("head_placement.o", "head_texture.uv", False), ("head_placement.ofs", "head_texture.fs", False), ("head_texture.oc", "head_material.c", False),
            ("head_material.oc", "head_shadingGroup.ss", False), *((f"{shape}.iog", "head_shadingGroup.dsm", True) for shape in shapes),
            ("head_shadingGroup.pa", ":renderPartition.st", True), ("head_material.msg", ":defaultShaderList1.s", True),
            ("head_texture.msg", ":defaultTextureList1.tx", True), ("head_placement.msg", ":defaultRenderUtilityList1.u", True)]


def _curves(stream: TextIO, scene: Scene, options: ExportOptions, first: int) -> list[Link]:
    """One linear curve per channel."""
    kinds = {"linear": "animCurveTL", "angular": "animCurveTA", "unitless": "animCurveTU"}
    links: list[Link] = []
    weights = 0
    for owner, attribute, kind, values in maya_curves(scene, options):
        if owner.startswith("eye_") and scene.model.eye_centres is None:
            continue
        _curve(stream, kinds[kind], f"{owner}_{attribute}", values, first)
        target = f"{owner}.w[{weights}]" if owner == BLEND else f"{owner}.{SHORT[attribute]}"
        weights += owner == BLEND
        links.append((f"{owner}_{attribute}.o", target, False))
    return links


def _curve(stream: TextIO, kind: str, name: str, values: np.ndarray, first: int) -> None:
    """A node with a key at every frame."""
    node(stream, kind, name)
    stream.write(f'\tsetAttr ".tan" {LINEAR};\n\tsetAttr ".wgt" no;\n')
    stream.writelines(_keys(values, first))


def _keys(values: np.ndarray, first: int) -> Iterator[str]:
    """setAttr lines of the keys."""
    rounded = (np.round(np.asarray(values, np.float64), 7) + 0.0).tolist()
    for a in range(0, len(rounded), CHUNK):
        b = min(a + CHUNK, len(rounded))
        size = f"-s {len(rounded)} " if a == 0 else ""
        yield f'\tsetAttr {size}".ktv[{a}:{b - 1}]" ' + " ".join(f"{first + i} {v:.7f}" for i, v in zip(range(a, b), rounded[a:b])) + ";\n"


def _sound(stream: TextIO, scene: Scene, first: int) -> None:
    """An audio node that begins with the first frame."""
    if scene.audio is not None:
        node(stream, "audio", "sound")
        text(stream, ".f", str(Path(scene.audio).resolve()))
        stream.write(f'\tsetAttr ".o" {first};\n')
