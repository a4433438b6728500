"""The artist's loop through a real Blender: import, look, change one curve, export, take it back.

Runs where THNERF_BLENDER_PYTHON names a Python that has bpy (``python3.11 -m venv b && b/bin/pip install "numpy<2" bpy==5.0.1``).
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recon.model import load_model
from recon.overlay import posed_vertices
from recon.subject import Subject, make_split, write_subject
from render.encode import VideoWriter
from render.rotations import angle_between, axis_angle_to_matrix, matrix_to_axis_angle
from test_export_usd import make_track
from thnerf.export import gltf, usd
from thnerf.export.importer import import_track
from thnerf.export.options import ExportOptions
from thnerf.export.rig import make_rig
from thnerf.export.scene import Scene

BLENDER = os.environ.get("THNERF_BLENDER_PYTHON")
pytestmark = [
    pytest.mark.skipif(not BLENDER, reason="THNERF_BLENDER_PYTHON does not name a Python with bpy"), pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the principal point")]
WRITERS = {"usdc": usd, "usda": usd, "glb": gltf}
FRAMES = [0, 1, 7, 13, 22, 31, 40, 45, 58, 59]
Z_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]) @ np.diag([1.0, -1, -1])  # recon's world → Blender's


@pytest.fixture(scope="module", params=[25.0, 29.97], ids=["25fps", "29.97fps"])
def subject(request, tmp_path_factory) -> Subject:
    """60 random frames; at 25 fps the camera's principal point is in the middle, as glTF has it, else beside it."""
    path, T = tmp_path_factory.mktemp("subject"), 60
    track = make_track(T, off_centre=request.param != 25).replace(fps=request.param)
    track.save(path / "track.npz")
    with VideoWriter(path / "video.mp4", 32, 32, 25) as video, VideoWriter(path / "matte.mp4", 32, 32, 25, grey=True) as matte:
        video.write(np.zeros((32, 32, 3), np.uint8))
        matte.write(np.zeros((32, 32), np.uint8))
    Image.new("RGB", (32, 32)).save(path / "background.png")
    write_subject(path, {"clips": [], "split": make_split((0,), T), "fingerprint": "x"})
    return Subject.open(path)


@pytest.fixture(scope="module", params=["usdc", "glb"])
def loop(request, subject, tmp_path_factory):
    """(scene, what Blender noted, the file it exported) after the edit."""
    folder, ending = tmp_path_factory.mktemp("loop"), request.param
    if ending == "glb" and subject.track.fps % 1:
        pytest.skip("Blender turns glTF's seconds into frames by whole frame rates only")
    scene = Scene(subject.track, "some one", load_model())
    WRITERS[ending].write(scene, folder / f"a.{ending}", ExportOptions())
    command = [BLENDER, str(Path(__file__).with_name("blender_loop.py")), str(folder / f"a.{ending}"), "--fps", str(scene.track.fps), "-o", str(folder / "notes.npz"),
               "--edit", "jawOpen", "--saved", str(folder / f"b.{ending}"), "--frames", *map(str, FRAMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return scene, dict(np.load(folder / "notes.npz")), folder / f"b.{ending}"


def test_blender_sees_the_track(loop):
    scene, notes, _ = loop
    track = scene.track
    assert tuple(notes["names"]) == track.expression_names and len(notes["weights"]) == len(track)
    assert abs(notes["fps"] - track.fps) < 1e-4
    assert np.abs(notes["weights"] - track.expression).max() < 1e-3
    local = np.eye(3) if loop[2].suffix == ".usdc" else np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    want = matrix_to_axis_angle(Z_UP @ axis_angle_to_matrix(track.rotation) @ local.T)
    got = notes["head"][:, :3, :3] / np.linalg.norm(notes["head"][:, :3, :3], axis=1, keepdims=True)
    assert np.rad2deg(angle_between(want, matrix_to_axis_angle(got))).max() < 0.1


def vertices(scene, notes, k):
    """The points of frame FRAMES[k] in Blender and ours, (V,3) m, in Blender's order."""
    ours = posed_vertices(scene.model, scene.track, FRAMES[k]) @ Z_UP.T / 1000
    if notes["points"].shape[1] != len(ours):  # glTF doubles the vertices on seams
        rig = make_rig(scene, ExportOptions(), "m")
        ours = ours[np.unique(np.concatenate([rig.faces.reshape(-1, 1), np.round(rig.uv.reshape(-1, 2) * 65536)], 1).astype(int), axis=0)[:, 0]]
    return notes["points"][k], ours


def test_blender_poses_the_vertices_where_they_belong(loop):
    scene, notes, _ = loop
    for k in range(len(FRAMES)):
        theirs, ours = vertices(scene, notes, k)
        assert np.linalg.norm(theirs - ours, axis=1).max() < 1e-4  # 0.1 mm


def test_blenders_camera_sees_the_landmarks_where_ours_does(loop):
    scene, notes, _ = loop
    F = np.diag([1.0, -1, -1])
    back = np.linalg.inv(notes["camera"])
    for k, frame in enumerate(FRAMES):
        ours = posed_vertices(scene.model, scene.track, frame)
        landmarks = scene.model.points(ours, "mediapipe478")
        blender = landmarks @ Z_UP.T / 1000 @ back[:3, :3].T + back[:3, 3]
        pixel = blender @ F.T @ notes["K"].T
        assert np.abs(pixel[:, :2] / pixel[:, 2:] - scene.track.camera.project(landmarks[None])[0]).max() < 1


def test_the_edited_curve_comes_back_and_the_others_unchanged(loop, subject):
    scene, _, path = loop
    track, report = import_track(path, subject)
    own = scene.track
    assert len(track) == len(own) and abs(track.fps - own.fps) < 0.01 and not report["missing"] and not report["unknown"]
    jaw = own.expression_names.index("jawOpen")
    np.testing.assert_allclose(track.expression[:, jaw], 0.5 * own.expression[:, jaw] + 0.1, atol=1e-3)
    np.testing.assert_allclose(np.delete(track.expression, jaw, 1), np.delete(own.expression, jaw, 1), atol=1e-3)
    assert np.rad2deg(angle_between(track.rotation, own.rotation)).max() < 0.05
    np.testing.assert_allclose(track.translation, own.translation, atol=0.05)
    np.testing.assert_allclose(track.gaze, own.gaze, atol=1e-3)
