"""FBX through Blender: which Blender, what happens without one, and, where there is one, what it reads in its own file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recon.model import load_model
from render.files import InputError, StageError
from test_export_usd import make_track
from thnerf.export import fbx
from thnerf.export.options import ExportOptions
from thnerf.export.scene import Scene

pytest.importorskip("pxr", reason="usd-core is not installed")
BLENDER = os.environ.get("THNERF_BLENDER_PYTHON")


@pytest.fixture
def scene() -> Scene:
    return Scene(make_track(5, off_centre=False), "a", load_model())


def program(path: Path, text: str) -> str:
    """An executable script."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return str(path)


def test_without_blender_one_sentence_says_so(scene, tmp_path, monkeypatch):
    monkeypatch.delenv("THNERF_BLENDER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fbx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="THNERF_BLENDER"):
        fbx.write(scene, tmp_path / "a.fbx", ExportOptions())
    monkeypatch.setenv("THNERF_BLENDER", "/nowhere/blender")
    with pytest.raises(InputError, match="no program"):
        fbx.write(scene, tmp_path / "a.fbx", ExportOptions())
    assert list(tmp_path.iterdir()) == []


def test_the_executable_runs_in_the_background_and_a_python_runs_the_script(tmp_path, monkeypatch):
    monkeypatch.setenv("THNERF_BLENDER", program(tmp_path / "blender", "#!/bin/sh\n"))
    assert fbx.blender()[1:] == ["--background", "--factory-startup", "--python-exit-code", "1", "--python"]
    monkeypatch.setenv("THNERF_BLENDER", sys.executable)
    assert fbx.blender() == [sys.executable]


def test_a_blender_that_fails_leaves_the_earlier_file(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("THNERF_BLENDER", program(tmp_path / "blender", "#!/bin/sh\necho out of memory >&2\nexit 1\n"))
    (tmp_path / "a.fbx").write_text("earlier")
    with pytest.raises(StageError, match="out of memory"):
        fbx.write(scene, tmp_path / "a.fbx", ExportOptions())
    assert (tmp_path / "a.fbx").read_text() == "earlier" and sorted(p.name for p in tmp_path.iterdir()) == ["a.fbx", "blender"]


@pytest.mark.slow
@pytest.mark.skipif(not BLENDER, reason="THNERF_BLENDER_PYTHON does not name a Python with bpy")
def test_blender_reads_its_own_fbx(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("THNERF_BLENDER", BLENDER)
    fbx.write(scene, tmp_path / "a.fbx", ExportOptions())
    command = [BLENDER, str(Path(__file__).with_name("blender_loop.py")), str(tmp_path / "a.fbx"), "--fps", "25", "-o", str(tmp_path / "notes.npz")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    notes = np.load(tmp_path / "notes.npz")
    assert tuple(notes["names"]) == scene.track.expression_names
    np.testing.assert_allclose(notes["weights"], scene.track.expression, atol=1e-3)
