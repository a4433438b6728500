"""FBX, written by Blender in a process of its own out of our USD: no free library writes FBX with blend shapes.

Blender is `THNERF_BLENDER` (its executable, or a Python that has bpy), else `blender` on the PATH, else bpy in this Python.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from render.files import InputError, StageError, atomic_path
from thnerf.export import usd
from thnerf.export.options import ExportOptions
from thnerf.export.scene import Scene

SECONDS, SECONDS_PER_FRAME = 120.0, 1.0


def write(scene: Scene, path: Path, options: ExportOptions) -> None:
    """Write .fbx, binary, atomically, with the texture inside: head, armature, shape keys, camera.

    Raises InputError without Blender or usd-core, for another unit or a bake; StageError when Blender fails.
    """
    if options.bake or options.units not in ("auto", "cm"):
        raise InputError("FBX is written in centimetres and with blend shapes; leave out --units and --bake, or export to USD")
    command = blender()
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / f"{path.stem}.usdc", Path(__file__).with_name("blender_fbx.py")
        usd.write(scene, source, replace(options, units="m", up="y"))
        with atomic_path(path) as temporary:
            arguments = [str(source), str(temporary), str(scene.track.fps), options.up]
            whole = [*command, str(script), "--", *arguments]
            try:
                done = subprocess.run(whole, capture_output=True, text=True, errors="replace", timeout=SECONDS + SECONDS_PER_FRAME * len(scene.track))
            except subprocess.TimeoutExpired:
                raise StageError(f"Blender took too long to write {path}; export a shorter clip") from None
            except OSError as error:
                raise InputError(f"{command[0]} cannot be started ({error.strerror}); set THNERF_BLENDER to Blender's executable") from None
            if done.returncode or not temporary.stat().st_size:
                last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                raise StageError(f"Blender could not write {path}: {last[:300]}")


def blender() -> list[str]:
    """The command that runs a Python script in Blender, without the script. Raises InputError when there is no Blender."""
    named = os.environ.get("THNERF_BLENDER")
    if named:
        if not shutil.which(named):
            raise InputError(f"THNERF_BLENDER names {named}, which is no program; set it to Blender's executable, or to a Python that has bpy")
        return [named] if Path(named).name.startswith("python") else _background(named)
    if found := shutil.which("blender"):
        return _background(found)
    if importlib.util.find_spec("bpy") is not None:
        return [sys.executable]
    raise InputError("FBX is written by Blender, which is not installed; install it, or set THNERF_BLENDER to its executable or to a Python that has bpy "
                     "(USD and glTF need no Blender)")


def _background(executable: str) -> list[str]:
    """Blender without a window and without the user's settings; errors of the script end it."""
    return [executable, "--background", "--factory-startup", "--python-exit-code", "1", "--python"]
