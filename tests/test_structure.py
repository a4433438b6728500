"""The architecture, read from the source: one chain of rooms, cheap imports, small files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RANK = {"render": 0, "recon": 1, "thnerf": 2, "train": 3}
LEAVES = ("encodings", "field", "torso", "audio", "losses", "lpips")
SOURCES = [p for room in ("render", "recon", "thnerf") for p in sorted((ROOT / room).rglob("*.py"))] + [ROOT / "train.py"]


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found |= {f"{node.module}.{a.name}" for a in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_downwards(path):
    own = RANK[path.relative_to(ROOT).parts[0].removesuffix(".py")]
    for module in imported_modules(path):
        assert RANK.get(module.split(".")[0], -1) <= own, f"{path.name} imports {module}"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_of_thnerf_import_no_sibling(leaf):
    files = sorted((ROOT / "thnerf" / leaf).glob("*.py")) or [ROOT / "thnerf" / f"{leaf}.py"]
    # The field is made of encodings, and what a stage can be told lives in config.
    allowed = {f"thnerf.{leaf}", "thnerf.config", "thnerf.encodings"}
    for path in files:
        for module in imported_modules(path):
            if module.startswith("thnerf."):
                assert any(module == a or module.startswith(a + ".") for a in allowed), f"{path.name} imports {module}"


def test_files_stay_readable():
    lengths = sorted(len(p.read_text().splitlines()) for p in SOURCES)
    assert lengths[-1] <= 450
    assert lengths[len(lengths) // 2] < 200


@pytest.mark.parametrize("name", ["render", "recon", "thnerf", "render.camera", "recon.track", "recon.subject", "recon.model"])
def test_light_imports_load_no_heavy_package(name):
    heavy = ["torch", "mediapipe", "cv2", "matplotlib", "numba", "scipy", "av", "tyro"]
    code = f"import sys, {name}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_starts_without_torch():
    code = "import sys, thnerf.cli; print('torch' in sys.modules, 'mediapipe' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False False", done.stderr
