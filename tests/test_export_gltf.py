"""GLB, read by pygltflib and posed by a skinner written from the specification; Khronos' validator where npm has it; our reader."""

import json
import os
import shutil
import struct
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest

from recon.model import load_model
from recon.overlay import posed_vertices
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, matrix_to_axis_angle
from test_export_usd import make_track
from thnerf.export import export_scene, gltf
from thnerf.export.options import ExportOptions
from thnerf.export.scene import Scene

pygltflib = pytest.importorskip("pygltflib", reason="pygltflib is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:the principal point")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(make_track(7), "some one", load_model())


@pytest.fixture
def glb(scene, tmp_path) -> Path:
    gltf.write(scene, tmp_path / "a.glb", ExportOptions())
    return tmp_path / "a.glb"


class Reader:
    """The specification, section by section, over pygltflib's parser."""

    def __init__(self, path):
        self.file = pygltflib.GLTF2().load(str(path))
        self.blob = self.file.binary_blob()

    def view(self, view, offset, kind, width, count):
        at = self.file.bufferViews[view].byteOffset + (offset or 0)
        return np.frombuffer(self.blob, kind, count * width, at).reshape(count, width)

    def accessor(self, index):
        entry = self.file.accessors[index]
        kind, width = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}[entry.componentType], {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}[entry.type]
        out = np.zeros((entry.count, width), kind) if entry.bufferView is None else self.view(entry.bufferView, entry.byteOffset, kind, width, entry.count).copy()
        if entry.sparse:
            s = entry.sparse
            index = self.view(s.indices.bufferView, s.indices.byteOffset, {5123: "<u2", 5125: "<u4"}[s.indices.componentType], 1, s.count)[:, 0]
            out[index] = self.view(s.values.bufferView, s.values.byteOffset, kind, width, s.count)
        if entry.min:
            np.testing.assert_array_equal(out.min(0), np.array(entry.min, kind))
            np.testing.assert_array_equal(out.max(0), np.array(entry.max, kind))
        return out

    def posed(self, frame):
        """World positions of the mesh at a key frame: morph, then skin."""
        channels = {(c.target.node, c.target.path): self.accessor(self.file.animations[0].samplers[c.sampler].output) for c in self.file.animations[0].channels}
        primitive = self.file.meshes[0].primitives[0]
        points = self.accessor(primitive.attributes.POSITION).astype(float)
        weights = channels[0, "weights"].reshape(-1, len(primitive.targets))[frame]
        for target, weight in zip(primitive.targets, weights):
            points += weight * self.accessor(target["POSITION"] if isinstance(target, dict) else target.POSITION)
        skin = self.file.skins[0]
        bind = self.accessor(skin.inverseBindMatrices).reshape(-1, 4, 4).swapaxes(1, 2)
        parents = {c: i for i, n in enumerate(self.file.nodes) for c in n.children or []}

        def matrix(node):
            from scipy.spatial.transform import Rotation

            entry, out = self.file.nodes[node], np.eye(4)
            turn, move = channels.get((node, "rotation")), channels.get((node, "translation"))
            out[:3, :3] = Rotation.from_quat((entry.rotation or [0, 0, 0, 1]) if turn is None else turn[frame]).as_matrix()
            out[:3, 3] = (entry.translation or [0, 0, 0]) if move is None else move[frame]
            return matrix(parents[node]) @ out if node in parents else out

        joints = np.stack([matrix(j) for j in skin.joints]) @ bind
        which, strength = self.accessor(primitive.attributes.JOINTS_0), self.accessor(primitive.attributes.WEIGHTS_0)
        homogeneous = np.concatenate([points, np.ones((len(points), 1))], 1)
        return np.einsum("vk,vkij,vj->vi", strength, joints[which], homogeneous)[:, :3]


def nearest(a, b):
    """Largest distance from a point of `a` to `b`."""
    from scipy.spatial import cKDTree

    return cKDTree(b).query(a)[0].max()


def test_an_independent_reader_poses_the_head_as_we_do(scene, glb):
    reader, space = Reader(glb), scene.space(ExportOptions(), "m")
    for i in (0, 3, 6):
        ours, theirs = posed_vertices(scene.model, scene.track, i) @ space.world.T * 0.001, reader.posed(i)
        used = np.unique(scene.model.faces)
        assert nearest(ours[used], theirs) < 2e-5 and nearest(theirs, ours) < 2e-5  # m


def test_names_times_and_sparse_targets(scene, glb):
    reader = Reader(glb)
    mesh = reader.file.meshes[0]
    assert tuple(mesh.extras["targetNames"]) == scene.model.expression_names and len(mesh.weights) == 52
    times = reader.accessor(reader.file.animations[0].samplers[0].input)[:, 0]
    np.testing.assert_allclose(times, np.arange(7) / 25, atol=1e-6)
    for target in mesh.primitives[0].targets:
        for index in (target["POSITION"], target["NORMAL"]) if isinstance(target, dict) else (target.POSITION, target.NORMAL):
            assert reader.file.accessors[index].sparse and reader.file.accessors[index].bufferView is None


def test_key_times_never_lie_before_their_frames():
    for fps in (24, 25, 29.97, 30, 60):
        times = gltf.key_times(15000, fps).astype(np.float64) * fps
        assert (times.astype(int) == np.arange(15000)).all() and np.abs(times - np.arange(15000)).max() < 0.01


def test_what_is_written_is_read_back(scene, glb):
    found, track = gltf.read(glb, ExportOptions()), scene.track
    assert found.fps == 25 and len(found) == 7
    np.testing.assert_allclose(found.weights, track.expression[:, [track.expression_names.index(n) for n in found.names]], atol=1e-6)
    assert np.rad2deg(angle_between(found.rotation, track.rotation)).max() < 1e-3
    np.testing.assert_allclose(found.translation, track.translation, atol=1e-2)
    np.testing.assert_allclose(found.gaze, track.gaze, atol=1e-5)
    np.testing.assert_allclose(found.camera.K[0, 0] / found.camera.width, 700 / 256, rtol=1e-5)
    np.testing.assert_allclose(found.camera.world_to_camera, track.camera.world_to_camera, atol=1e-5)


@pytest.mark.parametrize("fps", [24.0, 29.97, 60.0, 23.976])
def test_the_frame_rate_follows_from_the_key_frames(scene, tmp_path, fps):
    """Other programs drop what the asset says about it."""
    gltf.write(Scene(scene.track.replace(fps=fps), "a", scene.face_model), tmp_path / "a.glb", ExportOptions())
    document, rest = split(tmp_path / "a.glb")
    del document["asset"]["extras"]
    join(tmp_path / "b.glb", document, rest)
    found = gltf.read(tmp_path / "b.glb", ExportOptions())
    assert abs(found.fps / fps - 1) < 2e-3 and len(found) == 7
    np.testing.assert_allclose(found.weights, scene.track.expression, atol=2e-3)


def test_a_mesh_without_a_skin_is_moved_by_its_node(scene, glb, tmp_path):
    """Through transforms above it, with a cubic curve and a second animation."""
    document, rest = split(glb)
    head = document["nodes"][1]
    del document["nodes"][0]["skin"]
    head["children"] = [0]
    document["nodes"].append({"name": "above", "children": [1], "rotation": [0, 1, 0, 0], "scale": [2, 2, 2]})
    document["scenes"][0]["nodes"] = [len(document["nodes"]) - 1]
    first = document["animations"][0]
    document["animations"] = [{**first, "channels": [c]} for c in first["channels"]]
    join(tmp_path / "b.glb", document, rest)
    found = gltf.read(tmp_path / "b.glb", ExportOptions())
    turn = np.diag([-1.0, 1, -1])
    F = np.diag([1.0, -1, -1])
    want = F @ turn @ F @ axis_angle_to_matrix(scene.track.rotation)
    assert np.rad2deg(angle_between(found.rotation, matrix_to_axis_angle(want))).max() < 1e-3
    np.testing.assert_allclose(found.translation, 2 * scene.track.translation @ (F @ turn @ F).T, atol=0.02)
    np.testing.assert_allclose(found.weights, scene.track.expression, atol=1e-6)


def test_cubic_curves_are_hermite(scene, glb, tmp_path):
    """A cubic with the tangents of a parabola reproduces it between the keys."""
    document, rest = split(glb)
    keys, rate = np.array([0.0, 0.2, 0.4]), 25
    values = np.zeros((3, 3, 52), "<f4")
    values[:, 1], values[:, 0], values[:, 2] = (keys**2)[:, None], (2 * keys)[:, None], (2 * keys)[:, None]
    extra = keys.astype("<f4").tobytes() + values.tobytes()
    document["bufferViews"] += [{"buffer": 0, "byteOffset": len(rest), "byteLength": 12}, {"buffer": 0, "byteOffset": len(rest) + 12, "byteLength": values.nbytes}]
    B, A = len(document["bufferViews"]), len(document["accessors"])
    document["accessors"] += [{"bufferView": B - 2, "componentType": 5126, "count": 3, "type": "SCALAR", "min": [0], "max": [0.4]},
                              {"bufferView": B - 1, "componentType": 5126, "count": values.size, "type": "SCALAR"}]
    document["animations"] = [{"samplers": [{"input": A, "output": A + 1, "interpolation": "CUBICSPLINE"}], "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}]}]
    document["buffers"][0]["byteLength"] = len(rest) + len(extra)
    join(tmp_path / "b.glb", document, rest + extra)
    found = gltf.read(tmp_path / "b.glb", ExportOptions(fps=rate))
    np.testing.assert_allclose(found.weights[:, 0], (np.arange(11) / rate) ** 2, atol=1e-6)


def test_a_camera_off_centre_is_warned_about(scene, tmp_path):
    with pytest.warns(UserWarning, match="principal point"):
        gltf.write(scene, tmp_path / "a.glb", ExportOptions())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gltf.write(Scene(make_track(2, off_centre=False), "a", scene.face_model), tmp_path / "b.glb", ExportOptions())


def test_bad_requests_and_bad_files_are_one_sentence(scene, glb, tmp_path):
    for options, words in ((ExportOptions(bake=True), "bake to USD"), (ExportOptions(up="z"), "y up"), (ExportOptions(units="cm"), "metres"), (ExportOptions(start_frame=5), "seconds")):
        with pytest.raises(InputError, match=words):
            gltf.write(scene, tmp_path / "b.glb", options)
    with pytest.raises(InputError, match="glb"):
        export_scene(scene, tmp_path / "b.gltf", "glb")
    whole = glb.read_bytes()
    document, rest = split(glb)
    bad = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello", "array": b"[]", "nested": b"[" * 100000}
    for name, change in {
        "circle": lambda d: d["nodes"][2].update(children=[1]), "far": lambda d: d["accessors"][d["animations"][0]["samplers"][0]["input"]].update(count=10**9), "none": lambda d: d.pop("meshes"),
        "negative": lambda d: d["nodes"][1].update(children=[-1]), "names": lambda d: d["meshes"][0]["extras"].update(targetNames=["a"]),
        "words": lambda d: d["animations"][0]["samplers"][0].update(input="zero"), "number": lambda d: d.update(nodes=5),
        "outside": lambda d: d["buffers"][0].update(uri="../../etc/passwd"),
    }.items():
        changed = json.loads(json.dumps(document))
        change(changed)
        join(tmp_path / "x.glb", changed, rest)
        bad[name] = (tmp_path / "x.glb").read_bytes()
    for name, content in bad.items():
        (tmp_path / "bad.glb").write_bytes(content)
        with pytest.raises(InputError) as caught:
            gltf.read(tmp_path / "bad.glb", ExportOptions())
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, name


def picture() -> bytes:
    """A small PNG."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 100, 50)).save(out, format="PNG")
    return out.getvalue()


def test_the_texture_is_inside(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(gltf, "scene_texture", lambda scene: picture())
    gltf.write(scene, tmp_path / "a.glb", ExportOptions())
    reader = Reader(tmp_path / "a.glb")
    image = reader.file.images[reader.file.textures[reader.file.materials[0].pbrMetallicRoughness.baseColorTexture.index].source]
    view = reader.file.bufferViews[image.bufferView]
    assert image.mimeType == "image/png" and reader.blob[view.byteOffset : view.byteOffset + view.byteLength] == picture()


def split(path: Path) -> tuple[dict, bytes]:
    """JSON and binary of a .glb."""
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def join(path: Path, document: dict, binary: bytes) -> None:
    """The inverse of `split`."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    path.write_bytes(struct.pack("<III", 0x46546C67, 2, 28 + len(text) + len(binary)) + struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x004E4942) + binary)


def validator() -> str | None:
    """A folder whose node_modules has gltf-validator: THNERF_NODE_MODULES or one of npm's."""
    for folder in (os.environ.get("THNERF_NODE_MODULES"), "node_modules", "/usr/lib/node_modules", "/usr/local/lib/node_modules"):
        if folder and (Path(folder) / "gltf-validator").is_dir():
            return str(Path(folder).resolve())
    return None


def issues_of(path: Path) -> dict:
    """What Khronos' validator says about a file."""
    code = f"require({json.dumps(validator() + '/gltf-validator')}).validateBytes(new Uint8Array(require('fs').readFileSync({json.dumps(str(path))}))).then(r=>console.log(JSON.stringify(r.issues)))"
    return json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("node") is None or validator() is None, reason="npm's gltf-validator is not installed: npm install gltf-validator, THNERF_NODE_MODULES=…/node_modules")
@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(eyes="blendshape")])
def test_khronos_validator_finds_nothing(scene, tmp_path, options, monkeypatch):
    monkeypatch.setattr(gltf, "scene_texture", lambda scene: picture())
    gltf.write(scene, tmp_path / "a.glb", options)
    issues = issues_of(tmp_path / "a.glb")
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"]
