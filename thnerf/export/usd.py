"""USD: one head with UsdSkel blend shapes and joints, a camera with the fitted intrinsics, the sound.

    /NAME             Xform, the default prim
      /Head           SkelRoot
        /Mesh         the neutral head of the subject with texture coordinates and one sparse BlendShape per expression
        /Skeleton     joints head, head/eye_left, head/eye_right
          /Animation  weights and joint transforms at every frame
      /Camera         what filmed the footage
      /Sound          SpatialAudio, the file lies beside
      /Material       UsdPreviewSurface, its texture lies beside

Lengths are in metres unless asked otherwise, time codes are frames. With `bake` there is no skeleton: Mesh has its points at every frame, in the
world. Needs usd-core.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from render.files import InputError, StageError, atomic_path
from thnerf.export.names import identifiers
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.rig import Rig, make_rig, quaternions
from thnerf.export.scene import Scene
from thnerf.export.skin import scene_texture

UNIT = "m"
APERTURE = 36.0  # mm, width of the film: the focal length then reads as on a small-picture camera
BAKED_MB = 4000  # all points of a baked file are in memory at once


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write .usd, .usdc (binary) or .usda (text), with `NAME_texture.png` and `NAME_sound.wav` beside it.

    Raises InputError without usd-core, without the track's face model, or for a bake of more than some minutes.
    """
    _need()
    if options.bake and len(scene.track) * len(scene.model.mean) * 24 > BAKED_MB * 1e6:
        raise InputError(f"baking {len(scene.track)} frames takes more than {BAKED_MB // 1000} GB; bake a shorter clip, or export without --bake")
    from pxr import Sdf

    rig = make_rig(scene, options, UNIT)
    layer = Sdf.Layer.CreateAnonymous(path.suffix.lower())
    beside = _beside(scene, path)
    _Stage(layer, scene, rig, options, beside).write()
    with atomic_path(path) as temporary:
        if not layer.Export(str(temporary)):
            raise StageError(f"usd-core could not write {path}; free some space or choose another folder")


def read(path: Path, options: ExportOptions) -> Imported:
    """Weights, pose, gaze and camera of a file written here, or by Blender from one. Raises InputError when it is damaged or holds no such head."""
    _need()
    from thnerf.export.usd_read import read_apart

    return read_apart(path, options)


def _need() -> None:
    """Raise InputError without usd-core."""
    os.environ.setdefault("TF_ENV_SETTING_ALERTS_ENABLED", "0")  # no banner about the next line
    os.environ.setdefault("USD_WRITE_NEW_USDC_FILES_AS_VERSION", "0.9.0")  # time codes as values need it; usd-core would upgrade with a warning
    try:
        import pxr.Sdf  # noqa: F401
    except ImportError:
        raise InputError('USD needs usd-core; install it with: pip install "thnerf[dcc]"') from None


def _beside(scene: Scene, path: Path) -> dict[str, str]:
    """Write the texture and the sound beside the file; their names by 'texture' and 'sound', where there are any."""
    out = {}
    if picture := scene_texture(scene):
        out["texture"] = f"{path.stem}_texture.png"
        with atomic_path(path.with_name(out["texture"])) as temporary:
            temporary.write_bytes(picture)
    if scene.audio is not None and Path(scene.audio).is_file():
        out["sound"] = f"{path.stem}_sound{Path(scene.audio).suffix.lower()}"  # an own NAME.wav may lie there
        if path.with_name(out["sound"]).resolve() != Path(scene.audio).resolve():
            with atomic_path(path.with_name(out["sound"])) as temporary:
                shutil.copyfile(scene.audio, temporary)
    return out


class _Stage:
    """Fills a layer prim by prim through Sdf, which is much faster than UsdStage for many time samples."""

    def __init__(self, layer: Any, scene: Scene, rig: Rig, options: ExportOptions, beside: dict[str, str]) -> None:
        self.layer, self.scene, self.rig, self.options, self.beside = layer, scene, rig, options, beside
        self.first = options.first_frame(scene.track.fps)
        self.root = "/" + identifiers([scene.name])[0]

    def write(self) -> None:
        """Everything."""
        from pxr import Sdf

        track, layer = self.scene.track, self.layer
        layer.defaultPrim = self.root[1:]
        layer.timeCodesPerSecond = layer.framesPerSecond = track.fps
        layer.startTimeCode, layer.endTimeCode = self.first, self.first + len(track) - 1
        layer.comment = f"{self.scene.name}: {len(track)} frames of the face model {track.model_id}"
        layer.pseudoRoot.SetInfo("metersPerUnit", 0.001 / self.rig.space.scale)
        layer.pseudoRoot.SetInfo("upAxis", self.rig.space.up.upper())
        with Sdf.ChangeBlock():
            root = self.prim("", "Xform")
            root.SetInfo("kind", "component")
            root.SetInfo("assetInfo", {"name": self.scene.name})
            self.head()
            self.camera()
            if "texture" in self.beside:
                self.material()
            if "sound" in self.beside:
                self.sound()

    def prim(self, path: str, kind: str, api: tuple[str, ...] = ()) -> Any:
        """A new prim below the root."""
        from pxr import Sdf

        spec = Sdf.CreatePrimInLayer(self.layer, self.root + path)
        spec.specifier, spec.typeName = Sdf.SpecifierDef, kind
        if api:
            spec.SetInfo("apiSchemas", Sdf.TokenListOp.Create(prependedItems=list(api)))
        return spec

    def attribute(self, prim: Any, name: str, kind: str, value: Any = None, uniform: bool = False, **info: Any) -> Any:
        """A new attribute with a default value."""
        from pxr import Sdf

        variability = Sdf.VariabilityUniform if uniform else Sdf.VariabilityVarying
        spec = Sdf.AttributeSpec(prim, name, getattr(Sdf.ValueTypeNames, kind), variability)
        for key, entry in info.items():
            spec.SetInfo(key, entry)
        if value is not None:
            spec.default = value
        return spec

    def relation(self, prim: Any, name: str, *targets: str) -> None:
        """A new relationship to prims below the root."""
        from pxr import Sdf

        spec = Sdf.RelationshipSpec(prim, name, custom=False)
        for target in targets:
            spec.targetPathList.prependedItems.append(self.root + target)

    def samples(self, spec: Any, values: Any) -> None:
        """One value per frame."""
        path = spec.path
        for i, value in enumerate(values):
            self.layer.SetTimeSample(path, self.first + i, value)

    def head(self) -> None:
        """SkelRoot, mesh, shapes, skeleton and animation; or the baked mesh."""
        from pxr import Vt

        rig, baked = self.rig, self.options.bake
        extent = lambda low, high: Vt.Vec3fArray.FromNumpy(np.float32([low, high]))  # noqa: E731
        root = self.prim("/Head", "Xform" if baked else "SkelRoot")
        api = () if baked else ("SkelBindingAPI",)
        mesh = self.prim("/Head/Mesh", "Mesh", api + (("MaterialBindingAPI",) if "texture" in self.beside else ()))
        self.attribute(mesh, "faceVertexCounts", "IntArray", Vt.IntArray(len(rig.faces), 3))
        self.attribute(mesh, "faceVertexIndices", "IntArray", Vt.IntArray.FromNumpy(rig.faces.astype(np.int32).ravel()))
        self.attribute(mesh, "subdivisionScheme", "Token", "none", uniform=True)
        self.attribute(mesh, "primvars:st", "TexCoord2fArray", Vt.Vec2fArray.FromNumpy(rig.uv.reshape(-1, 2).astype(np.float32)), interpolation="faceVarying")
        points = self.attribute(mesh, "points", "Point3fArray", _vectors(rig.points))
        normals = self.attribute(mesh, "normals", "Normal3fArray", _vectors(rig.normals), interpolation="vertex")
        if "texture" in self.beside:
            self.relation(mesh, "material:binding", "/Material")
        if baked:
            self.bake(points, normals, self.attribute(mesh, "extent", "Float3Array", extent(*rig.reach())))
            return
        self.attribute(root, "extent", "Float3Array", extent(*rig.reach()))
        self.attribute(mesh, "extent", "Float3Array", extent(rig.points.min(0), rig.points.max(0)))
        self.skeleton(mesh)

    def bake(self, points: Any, normals: Any, extent: Any) -> None:
        """The mesh's points and normals at every frame."""
        from pxr import Vt
        from render.raster import vertex_normals

        for i in range(len(self.scene.track)):
            posed = self.rig.posed(i)
            when = self.first + i
            self.layer.SetTimeSample(points.path, when, _vectors(posed))
            self.layer.SetTimeSample(normals.path, when, _vectors(vertex_normals(posed, self.rig.faces)))
            self.layer.SetTimeSample(extent.path, when, Vt.Vec3fArray.FromNumpy(np.float32([posed.min(0), posed.max(0)])))

    def skeleton(self, mesh: Any) -> None:
        """What binds the mesh to the skeleton, and how both move."""
        from pxr import Gf, Vt

        rig, names = self.rig, _paths(self.rig)
        self.relation(mesh, "skel:skeleton", "/Head/Skeleton")
        self.attribute(mesh, "primvars:skel:geomBindTransform", "Matrix4d", Gf.Matrix4d(1))
        self.attribute(mesh, "primvars:skel:jointIndices", "IntArray", Vt.IntArray.FromNumpy(rig.influences.astype(np.int32).ravel()), interpolation="vertex", elementSize=4)
        self.attribute(mesh, "primvars:skel:jointWeights", "FloatArray", Vt.FloatArray.FromNumpy(rig.strengths.astype(np.float32).ravel()), interpolation="vertex", elementSize=4)
        labels = identifiers(s.name for s in rig.shapes)
        self.attribute(mesh, "skel:blendShapes", "TokenArray", Vt.TokenArray([s.name for s in rig.shapes]), uniform=True)
        self.relation(mesh, "skel:blendShapeTargets", *(f"/Head/Mesh/{label}" for label in labels))
        for label, shape in zip(labels, rig.shapes):
            prim = self.prim(f"/Head/Mesh/{label}", "BlendShape")
            self.attribute(prim, "offsets", "Vector3fArray", _vectors(shape.offsets), uniform=True)
            self.attribute(prim, "normalOffsets", "Vector3fArray", _vectors(shape.normals), uniform=True)
            self.attribute(prim, "pointIndices", "IntArray", Vt.IntArray.FromNumpy(shape.index.astype(np.int32)), uniform=True)
        skeleton = self.prim("/Head/Skeleton", "Skeleton", ("SkelBindingAPI",))
        self.attribute(skeleton, "joints", "TokenArray", Vt.TokenArray(names), uniform=True)
        at = lambda place: Gf.Matrix4d(1).SetTranslate(Gf.Vec3d(*map(float, place)))  # noqa: E731
        self.attribute(skeleton, "bindTransforms", "Matrix4dArray", Vt.Matrix4dArray([at(p) for p in rig.rest]), uniform=True)
        self.attribute(skeleton, "restTransforms", "Matrix4dArray", Vt.Matrix4dArray([at(rig.at_rest(j)) for j in range(len(names))]), uniform=True)
        self.relation(skeleton, "skel:animationSource", "/Head/Skeleton/Animation")
        motion = self.prim("/Head/Skeleton/Animation", "SkelAnimation")
        self.attribute(motion, "joints", "TokenArray", Vt.TokenArray(names), uniform=True)
        self.attribute(motion, "blendShapes", "TokenArray", Vt.TokenArray([s.name for s in rig.shapes]), uniform=True)
        self.attribute(motion, "scales", "Half3Array", Vt.Vec3hArray(len(names), Gf.Vec3h(1)))
        turns = quaternions(rig.rotation).astype(np.float32)
        flat = [Gf.Quatf(w, x, y, z) for x, y, z, w in turns.reshape(-1, 4).tolist()]
        J = len(names)
        self.samples(self.attribute(motion, "rotations", "QuatfArray"), (Vt.QuatfArray(flat[i : i + J]) for i in range(0, len(flat), J)))
        self.samples(self.attribute(motion, "translations", "Float3Array"), map(_vectors, rig.position))
        self.samples(self.attribute(motion, "blendShapeWeights", "FloatArray"), map(Vt.FloatArray.FromNumpy, rig.weights.astype(np.float32)))

    def camera(self) -> None:
        """The footage's camera. A principal point beside the middle becomes an offset of the film."""
        from pxr import Gf

        camera, space = self.scene.track.camera, self.rig.space
        fx, fy, cx, cy = camera.K[0, 0], camera.K[1, 1], camera.K[0, 2], camera.K[1, 2]
        film = APERTURE * space.scale * 10  # tenths of a unit
        focal = fx * film / camera.width
        prim = self.prim("/Camera", "Camera")
        values = {
            "focalLength": focal, "horizontalAperture": film, "verticalAperture": focal * camera.height / fy,
            "horizontalApertureOffset": focal * (camera.width / 2 - cx) / fx, "verticalApertureOffset": focal * (cy - camera.height / 2) / fy,
        }
        for name, value in values.items():
            self.attribute(prim, name, "Float", float(value))
        self.attribute(prim, "projection", "Token", "perspective")
        self.attribute(prim, "clippingRange", "Float2", Gf.Vec2f(10 * space.scale, 10000 * space.scale))
        pose = np.swapaxes(space.camera(camera), 1, 2)  # USD's vectors are rows
        self.attribute(prim, "xformOpOrder", "TokenArray", ["xformOp:transform"], uniform=True)
        matrix = self.attribute(prim, "xformOp:transform", "Matrix4d", Gf.Matrix4d(pose[0].tolist()))
        if np.ptp(pose, axis=0).max() > 1e-9:
            self.samples(matrix, (Gf.Matrix4d(m) for m in pose.tolist()))

    def material(self) -> None:
        """UsdPreviewSurface with the texture."""
        from pxr import Gf, Sdf

        material = self.prim("/Material", "Material")
        surface, texture, reader = (self.prim(f"/Material/{n}", "Shader") for n in ("Surface", "Texture", "Coordinates"))

        def connect(prim: Any, name: str, kind: str, target: str) -> None:
            self.attribute(prim, name, kind).connectionPathList.prependedItems.append(Sdf.Path(self.root + "/Material" + target))

        connect(material, "outputs:surface", "Token", "/Surface.outputs:surface")
        self.attribute(surface, "info:id", "Token", "UsdPreviewSurface", uniform=True)
        connect(surface, "inputs:diffuseColor", "Color3f", "/Texture.outputs:rgb")
        self.attribute(surface, "inputs:roughness", "Float", 0.7)
        self.attribute(surface, "inputs:metallic", "Float", 0.0)
        self.attribute(surface, "outputs:surface", "Token")
        self.attribute(texture, "info:id", "Token", "UsdUVTexture", uniform=True)
        self.attribute(texture, "inputs:file", "Asset", Sdf.AssetPath("./" + self.beside["texture"]))
        self.attribute(texture, "inputs:sourceColorSpace", "Token", "sRGB")
        self.attribute(texture, "inputs:wrapS", "Token", "clamp")
        self.attribute(texture, "inputs:wrapT", "Token", "clamp")
        self.attribute(texture, "inputs:fallback", "Float4", Gf.Vec4f(0.6, 0.5, 0.45, 1))
        connect(texture, "inputs:st", "Float2", "/Coordinates.outputs:result")
        self.attribute(texture, "outputs:rgb", "Float3")
        self.attribute(reader, "info:id", "Token", "UsdPrimvarReader_float2", uniform=True)
        self.attribute(reader, "inputs:varname", "String", "st")
        self.attribute(reader, "outputs:result", "Float2")

    def sound(self) -> None:
        """The sound, from the first frame on, from nowhere in particular."""
        from pxr import Sdf

        prim = self.prim("/Sound", "SpatialAudio")
        self.attribute(prim, "filePath", "Asset", Sdf.AssetPath("./" + self.beside["sound"]), uniform=True)
        self.attribute(prim, "auralMode", "Token", "nonSpatial", uniform=True)
        self.attribute(prim, "playbackMode", "Token", "onceFromStart", uniform=True)
        self.attribute(prim, "startTime", "TimeCode", Sdf.TimeCode(self.first), uniform=True)
        self.attribute(prim, "endTime", "TimeCode", Sdf.TimeCode(self.first + len(self.scene.track)), uniform=True)


def _vectors(values: np.ndarray) -> Any:
    """(N,3) as USD has it."""
    from pxr import Vt

    return Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values, np.float32))


def _paths(rig: Rig) -> list[str]:
    """Joints as UsdSkel names them: with their parents, head/eye_left."""
    out: list[str] = []
    for name, parent in zip(identifiers(rig.joints), rig.parents):
        out.append((out[parent] + "/" if parent >= 0 else "") + name)
    return out
