"""USD, read back by usd-core itself: validators, UsdSkel's own skinning against ours, and our reader."""

from pathlib import Path

import numpy as np
import pytest

from recon.model import load_model
from recon.overlay import posed_vertices
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between, from_head_angles
from thnerf.export import export_scene
from thnerf.export.options import ExportOptions
from thnerf.export.rig import make_rig
from thnerf.export.scene import Scene

pytest.importorskip("pxr", reason="usd-core is not installed")


def make_track(frames: int = 6, seed: int = 0, off_centre: bool = True) -> Track:
    """Random motion of the default model before a camera whose principal point is not in the middle."""
    rng, model = np.random.default_rng(seed), load_model()
    K = np.array([[700.0, 0, 130 if off_centre else 128], [0, 700, 121 if off_centre else 128], [0, 0, 1]])
    return Track(
        fps=25, model_id=model.model_id, camera=Camera(K, np.repeat(np.eye(4)[None], frames, 0), 256, 256), shape=rng.normal(size=20),
        expression=rng.random((frames, 52)), rotation=from_head_angles(rng.uniform(-0.5, 0.5, (frames, 3))),
        translation=rng.normal(0, 20, (frames, 3)) + (0, 0, 900), gaze=rng.uniform(-0.3, 0.3, (frames, 2, 2)), torso=np.zeros((frames, 4)),
        valid=np.ones(frames, bool), expression_names=model.expression_names)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(make_track(), "some one", load_model())


@pytest.fixture(scope="module")
def usd():
    from thnerf.export import usd

    return usd


def stage_of(path):
    from pxr import Usd

    return Usd.Stage.Open(str(path))


def validate(stage) -> list[str]:
    """What usd-core's validators say."""
    from pxr import UsdValidation

    registry = UsdValidation.ValidationRegistry()
    context = UsdValidation.ValidationContext(registry.GetOrLoadAllValidators())
    return [f"{e.GetName()}: {e.GetMessage()}" for e in context.Validate(stage)]


def skinned(stage, frame: float) -> np.ndarray:
    """World positions of the mesh, by UsdSkel's own baking of shapes and joints."""
    from pxr import Usd, UsdGeom, UsdSkel

    assert UsdSkel.BakeSkinning(stage.Traverse())
    mesh = next(p for p in stage.Traverse() if p.IsA(UsdGeom.Mesh))
    local = np.array(UsdGeom.Mesh(mesh).GetPointsAttr().Get(frame))
    world = np.array(UsdGeom.XformCache(Usd.TimeCode(frame)).GetLocalToWorldTransform(mesh))
    return local @ world[:3, :3] + world[3, :3]


@pytest.mark.parametrize("ending", ["usda", "usdc", "usd"])
def test_the_stage_is_valid_and_says_what_it_is(scene, usd, tmp_path, ending):
    from pxr import UsdGeom

    usd.write(scene, tmp_path / f"a.{ending}", ExportOptions(start_frame=100))
    stage = stage_of(tmp_path / f"a.{ending}")
    assert validate(stage) == []
    assert [p.GetPath() for p in stage.GetPseudoRoot().GetChildren()] == [stage.GetDefaultPrim().GetPath()]
    assert (stage.GetTimeCodesPerSecond(), stage.GetFramesPerSecond(), stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (25, 25, 100, 105)
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1


@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(up="z", units="cm"), ExportOptions(units="mm", start_frame=7)])
def test_usd_skins_the_mesh_as_we_pose_it(scene, usd, tmp_path, options):
    usd.write(scene, tmp_path / "a.usda", options)
    space, track = scene.space(options, "m"), scene.track
    for i in (0, 4):
        ours = posed_vertices(scene.model, track, i) @ space.world.T * space.scale
        theirs = skinned(stage_of(tmp_path / "a.usda"), options.first_frame(25) + i)
        assert np.linalg.norm(ours - theirs, axis=1).max() / space.scale < 0.02  # mm


def test_shapes_are_sparse_with_normals_and_arkit_names(scene, usd, tmp_path):
    from pxr import UsdGeom, UsdSkel

    usd.write(scene, tmp_path / "a.usdc", ExportOptions())
    stage = stage_of(tmp_path / "a.usdc")
    mesh = next(p for p in stage.Traverse() if p.IsA(UsdGeom.Mesh))
    targets = UsdSkel.BindingAPI(mesh).GetBlendShapeTargetsRel().GetTargets()
    assert tuple(UsdSkel.BindingAPI(mesh).GetBlendShapesAttr().Get()) == scene.model.expression_names
    counts = []
    for name, path in zip(scene.model.expression_names, targets):
        shape = UsdSkel.BlendShape(stage.GetPrimAtPath(path))
        index, offsets, normals = (np.array(a.Get()) for a in (shape.GetPointIndicesAttr(), shape.GetOffsetsAttr(), shape.GetNormalOffsetsAttr()))
        whole = np.zeros_like(scene.model.mean)
        whole[index] = offsets * 1000
        np.testing.assert_allclose(whole, scene.model.expression_basis[scene.model.index(name)], atol=1e-3)
        assert len(offsets) == len(normals) == len(index)
        counts.append(len(index))
    assert np.mean(counts) < 0.3 * len(scene.model.mean)


@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(up="z", units="cm")])
def test_the_camera_projects_like_ours(scene, usd, tmp_path, options):
    """Through usd-core's frustum, principal point included."""
    from pxr import Usd, UsdGeom

    usd.write(scene, tmp_path / "a.usdc", options)
    stage, space, track = stage_of(tmp_path / "a.usdc"), scene.space(options, "m"), scene.track
    prim = next(p for p in stage.Traverse() if p.IsA(UsdGeom.Camera))
    frustum = UsdGeom.Camera(prim).GetCamera(Usd.TimeCode(0)).frustum
    view = np.array(frustum.ComputeViewMatrix()) @ np.array(frustum.ComputeProjectionMatrix())
    world = posed_vertices(scene.model, track, 0)[::50]
    clip = np.concatenate([world @ space.world.T * space.scale, np.ones((len(world), 1))], 1) @ view
    ndc = clip[:, :2] / clip[:, 3:]
    pixels = np.stack([(ndc[:, 0] + 1) / 2 * 256, (1 - ndc[:, 1]) / 2 * 256], 1)
    np.testing.assert_allclose(pixels, track.camera.project(world[None])[0], atol=0.01)


@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(up="z"), ExportOptions(units="cm", start_frame=1), ExportOptions(sides="viewer")])
def test_what_is_written_is_read_back(scene, usd, tmp_path, options):
    usd.write(scene, tmp_path / "a.usdc", options)
    found, track = usd.read(tmp_path / "a.usdc", options), scene.track
    assert found.fps == 25 and len(found) == len(track)
    np.testing.assert_allclose(found.weights, track.expression[:, [track.expression_names.index(n) for n in found.names]], atol=1e-6)
    assert np.rad2deg(angle_between(found.rotation, track.rotation)).max() < 1e-3
    np.testing.assert_allclose(found.translation, track.translation, atol=1e-2)
    np.testing.assert_allclose(found.gaze, track.gaze, atol=1e-5)
    np.testing.assert_allclose(found.camera.resized(256, 256).K, track.camera.K, atol=0.01)
    np.testing.assert_allclose(found.camera.world_to_camera, track.camera.world_to_camera, atol=1e-5)


def test_a_relative_path_is_read_too(scene, usd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usd.write(scene, Path("a.usdc"), ExportOptions())
    assert len(usd.read(Path("a.usdc"), ExportOptions())) == len(scene.track)


def test_a_head_moved_by_other_transforms_is_read_where_it_stands(scene, usd, tmp_path):
    """Another program may hang the head below transforms, and turn the axes up."""
    from pxr import Gf, UsdGeom

    usd.write(scene, tmp_path / "a.usda", ExportOptions())
    stage, track = stage_of(tmp_path / "a.usda"), scene.track
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 0.1)
    UsdGeom.Xformable(stage.GetDefaultPrim()).AddTransformOp().Set(Gf.Matrix4d().SetRotate(Gf.Rotation(Gf.Vec3d(1, 0, 0), 90)) * Gf.Matrix4d().SetScale(10))
    stage.GetRootLayer().Export(str(tmp_path / "b.usdc"))
    found = usd.read(tmp_path / "b.usdc", ExportOptions())
    assert np.rad2deg(angle_between(found.rotation, track.rotation)).max() < 1e-3
    np.testing.assert_allclose(found.translation, track.translation, atol=1e-2)


def test_eyes_as_blend_shapes_turn_the_eyeballs(usd, tmp_path):
    track = make_track(2)
    track = track.replace(expression=np.zeros((2, 52)), gaze=np.zeros((2, 2, 2)))
    expression = track.expression.copy()
    expression[1, track.expression_names.index("eyeLookOutLeft")] = 1
    scene = Scene(track.replace(expression=expression), "a", load_model())
    rig = make_rig(scene, ExportOptions(eyes="blendshape", units="mm"), "m")
    assert rig.joints == ("head",)
    gaze = np.zeros((2, 2, 2))
    gaze[1, 0, 0] = np.deg2rad(30)
    want = posed_vertices(scene.model, scene.track.replace(gaze=gaze), 1) @ scene.space(ExportOptions(), "mm").world.T
    np.testing.assert_allclose(rig.posed(1), want, atol=0.01)


def test_baking_writes_every_vertex_of_every_frame(scene, usd, tmp_path):
    from pxr import UsdGeom

    usd.write(scene, tmp_path / "a.usdc", ExportOptions(bake=True))
    stage = stage_of(tmp_path / "a.usdc")
    assert validate(stage) == []
    mesh = UsdGeom.Mesh(next(p for p in stage.Traverse() if p.IsA(UsdGeom.Mesh)))
    space = scene.space(ExportOptions(), "m")
    for i in range(len(scene.track)):
        want = posed_vertices(scene.model, scene.track, i) @ space.world.T * space.scale
        np.testing.assert_allclose(np.array(mesh.GetPointsAttr().Get(i)), want, atol=2e-6)


@pytest.mark.filterwarnings("ignore:the principal point")
def test_a_model_with_joints_is_posed_by_its_skeleton(usd, tmp_path):
    """Jaw and neck turn by their angles, exactly, where the model has no pose correctives."""
    from recon.joints import Joints
    from synthetic import toy_model
    import dataclasses

    toy, rng = toy_model(), np.random.default_rng(0)
    V, names = len(toy.mean), (*toy.expression_names, "neckPitch", "jawPitch", "jawYaw")
    jaw = np.clip(-toy.mean[:, 1] / 100, 0, 1)
    joints = Joints(("neck", "jaw"), np.array([-1, 0]), np.stack([1 - jaw, jaw], 1).astype(np.float32), np.array([[0, -80, -20], [0, -10, 0]], np.float32),
                    rng.normal(0, 1, (1, 2, 3)).astype(np.float32), np.zeros((7, 2, 3), np.float32), np.array([4, 5, 6]), np.array([0, 1, 1]), np.array([0, 0, 1]),
                    np.zeros((0, 9, V, 3), np.float32))
    model = dataclasses.replace(toy, expression_basis=np.concatenate([toy.expression_basis, joints.linearised(toy.mean, 7)]), expression_names=names, joints=joints)
    track = make_track(3)
    track = track.replace(model_id="toy", shape=np.array([1.5]), expression=rng.uniform(0, 0.4, (3, 7)), expression_names=names)
    scene = Scene(track, "toy", model)
    usd.write(scene, tmp_path / "a.usda", ExportOptions(units="mm"))
    for i in range(3):
        want = posed_vertices(model, track, i) @ scene.space(ExportOptions(), "mm").world.T
        np.testing.assert_allclose(skinned(stage_of(tmp_path / "a.usda"), i), want, atol=0.02)
    from thnerf.export import gltf

    gltf.write(scene, tmp_path / "a.glb", ExportOptions())
    for found in (usd.read(tmp_path / "a.usda", ExportOptions(units="mm")), gltf.read(tmp_path / "a.glb", ExportOptions())):
        for name in names:
            np.testing.assert_allclose(found.weights[:, found.names.index(name)], track.column(name), atol=1e-5)


def test_texture_and_sound_lie_beside_the_file(scene, usd, tmp_path, monkeypatch):
    import dataclasses
    import io

    from PIL import Image
    from pxr import UsdShade

    png = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 100, 50)).save(png, format="PNG")
    monkeypatch.setattr(usd, "scene_texture", lambda scene: png.getvalue())
    (tmp_path / "speech.wav").write_bytes(b"RIFF")
    usd.write(dataclasses.replace(scene, audio=tmp_path / "speech.wav"), tmp_path / "out" / "me.usda", ExportOptions(start_frame=10))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["me.usda", "me_sound.wav", "me_texture.png"]
    stage = stage_of(tmp_path / "out" / "me.usda")
    assert validate(stage) == []
    mesh = next(p for p in stage.Traverse() if p.GetTypeName() == "Mesh")
    material = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()[0]
    surface = material.ComputeSurfaceSource()[0]
    source = surface.GetInput("diffuseColor").GetConnectedSources()[0][0].source
    assert UsdShade.Shader(source.GetPrim()).GetInput("file").Get().path == "./me_texture.png"
    sound = next(p for p in stage.Traverse() if p.GetTypeName() == "SpatialAudio")
    assert sound.GetAttribute("filePath").Get().path == "./me_sound.wav" and sound.GetAttribute("startTime").Get() == 10


def test_names_that_no_prim_may_have(scene, usd, tmp_path):
    """Blend shapes keep their names as tokens; only their prims are renamed, each to a name of its own."""
    import dataclasses

    names = ("a b", "a-b", "1", *scene.model.expression_names[3:])
    odd = Scene(scene.track.replace(expression_names=names), "9 lives.", dataclasses.replace(scene.model, expression_names=names))
    usd.write(odd, tmp_path / "a.usdc", ExportOptions())
    assert validate(stage_of(tmp_path / "a.usdc")) == []
    found = usd.read(tmp_path / "a.usdc", ExportOptions())
    assert found.names == names
    np.testing.assert_allclose(found.weights, scene.track.expression, atol=1e-6)


def test_bad_requests_and_bad_files_are_one_sentence(scene, usd, tmp_path):
    with pytest.raises(InputError, match="usdz"):
        export_scene(scene, tmp_path / "a.usdz", "usd")
    usd.write(scene, tmp_path / "a.usdc", ExportOptions())
    whole = (tmp_path / "a.usdc").read_bytes()
    for name, content in (("empty.usdc", b""), ("half.usdc", whole[: len(whole) // 2]), ("text.usda", b"#usda 1.0\ndef Mesh {"), ("none.usda", b"#usda 1.0\n")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            usd.read(tmp_path / name, ExportOptions())
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(InputError, match="not exist"):
        usd.read(tmp_path / "nothing.usdc", ExportOptions())
    (tmp_path / "long.usda").write_bytes(b"")
    usd.write(scene, tmp_path / "long.usda", ExportOptions())
    text = (tmp_path / "long.usda").read_text()
    (tmp_path / "long.usda").write_text(text.replace("endTimeCode = 5", "endTimeCode = 1e12"))
    with pytest.raises(InputError, match="time code"):
        usd.read(tmp_path / "long.usda", ExportOptions())
