"""Damaged files of every two-way format: a clear error or a valid Track, never a traceback, a hang or a crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from exporting import moving_scene, small_subject

from render.files import InputError
from thnerf.export import FORMATS, export_scene

MUTATIONS = 500
SLOW = {"usd": 12}  # read in a process of its own, because its library crashes on damaged files; THNERF_FUZZ=1 runs all, in several minutes
TWO_WAY = [name for name, form in FORMATS.items() if form.two_way]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    small_subject(folder / "subject", moving_scene(24).track)
    return folder


def fuzz(name, folder, first, last):
    """Mutations in a subprocess; returns the counts. Fails when the process dies of one."""
    source = folder / f"{name}{FORMATS[name].suffixes[0]}"
    if not source.exists():
        try:
            export_scene(moving_scene(24, seed=1), source, name)
        except InputError as error:
            if "install" in str(error):
                pytest.skip(str(error))
            raise
    work = folder / f"work_{name}"
    work.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("fuzz_import.py")), name, str(source), str(folder / "subject"), str(work), str(first), str(last)],
                          capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, f"mutation {(work / 'at').read_text() if (work / 'at').exists() else '?'} ended the process ({done.returncode}): {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", TWO_WAY)
def test_damaged_files(name, folder):
    count = MUTATIONS if os.environ.get("THNERF_FUZZ") else SLOW.get(name, MUTATIONS)
    result = fuzz(name, folder, 0, count)
    assert not result["failures"], result["failures"][:3]
    assert result["refused"] > 0 and result["tracks"] + result["refused"] == count
