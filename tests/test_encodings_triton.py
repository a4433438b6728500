"""The CUDA backends equal the readable encoding: Triton (in its interpreter where there is no GPU) and tiny-cuda-nn's layout rule."""

import math
import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from test_encodings import LAYOUTS, positions, random_tables
from thnerf.encodings import BACKENDS, BlendedTables, HashGridLayout, available, encode, load_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernels are decorated
needs_triton = pytest.mark.skipif(not available("triton"), reason="Triton is not installed (it comes with PyTorch for CUDA; pip install triton)")
COLLIDING = HashGridLayout(3, 4, 2, 5, 8, 64)  # 32 entries a level: every look-up collides


def run(backend: str, layout: HashGridLayout, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Features, table gradient and position gradient of one backend on the same inputs."""
    x = positions(layout).to(device).requires_grad_()
    t = random_tables(layout, 3).to(dtype).to(device).requires_grad_()
    seed = torch.randn(len(x), layout.channels, generator=torch.Generator().manual_seed(2)).to(device)
    out = encode(x, t, layout, torch.arange(len(x), device=device) % 3, backend)
    (out * seed).sum().backward()
    assert out.dtype == torch.float32 and t.grad.dtype == dtype
    return [a.detach().float().cpu() for a in (out, t.grad, x.grad)]


def assert_equal(layout: HashGridLayout, backend: str, dtype: torch.dtype, device: str, tolerance: float) -> None:
    for a, b, name in zip(run("reference", layout, dtype, "cpu"), run(backend, layout, dtype, device), ("features", "table gradient", "position gradient")):
        wrong = (a - b).abs() > tolerance * a.abs().max()
        if name == "position gradient":  # its value jumps on cell borders, where one rounding decides; the test's border points are 20 a level
            x = positions(layout)
            on_border = torch.stack([((x * float(s) + 0.5) % 1 - 0.5).abs() > 0.5 - 1e-4 for s in layout.scales]).any(0).any(-1)
            wrong[on_border] &= DEVICE == "cpu"
        assert not wrong.any(), f"{name}: {(a - b).abs().max():.2e}"


@needs_triton
@pytest.mark.parametrize("layout", [*LAYOUTS, COLLIDING], ids=lambda l: f"{l.dimensions}d{l.levels}")
def test_triton_equals_reference_with_gradients(layout: HashGridLayout) -> None:
    assert_equal(layout, "triton", torch.float32, DEVICE, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["numba", pytest.param("triton", marks=needs_triton)])
def test_half_precision_tables_are_summed_in_float32(backend: str, dtype: torch.dtype) -> None:
    layout, device = LAYOUTS[0], DEVICE if backend == "triton" else "cpu"
    assert_equal(layout, backend, dtype, device, 1e-2)
    whole = encode(positions(layout), random_tables(layout, 1), layout, backend="reference")
    half = encode(positions(layout).to(device), random_tables(layout, 1).to(dtype).to(device), layout, backend=backend).cpu()
    assert 0 < (whole - half).abs().max() < 1e-2 * whole.abs().max()


@pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("triton", marks=needs_triton)])
def test_blend_codes_get_the_gradient_of_their_tables(backend: str) -> None:
    layout, device = HashGridLayout(3, 2, 2, 8, 4, 12), DEVICE if backend == "triton" else "cpu"
    blended = BlendedTables(layout, 3, backend=backend, device=device)
    blended.tables += torch.randn(blended.tables.shape, generator=torch.Generator().manual_seed(0)).to(device)
    x = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)).to(device)
    psi = torch.tensor([[0.3, -1.0, 0.5], [1.0, 0.2, 0.0]], device=device, requires_grad=True)
    which = torch.arange(60, device=device) % 2
    table = blended.blend(psi)
    encode(x, table, layout, which, backend).square().sum().backward()
    direct = psi.detach().clone().requires_grad_()  # by autograd through the plain sum
    plain = blended.tables[:, 0] + direct @ blended.tables[:, 1:].T
    encode(x.cpu(), plain.cpu(), layout, which.cpu(), "reference").square().sum().backward()
    assert direct.grad.abs().min() > 0.1 and torch.allclose(psi.grad, direct.grad, rtol=1e-4, atol=1e-4 * float(direct.grad.abs().max()))
    assert table.grad.shape == (2, layout.size) and table.grad.abs().sum() > 0


@needs_triton
def test_triton_adam_steps_as_the_reference_does() -> None:
    layout, g = HashGridLayout(3, 3, 2, 10, 4, 32), torch.Generator().manual_seed(6)
    psi = torch.randn(2, 3, generator=g)
    pair = [BlendedTables(layout, 3, seed=3, backend="reference"), BlendedTables(layout, 3, seed=3, backend="triton", device=DEVICE)]
    for _ in range(3):
        gradient = torch.randn(2, layout.size, generator=g) * (torch.rand(2, layout.size, generator=g) < 0.3)
        for tables in pair:
            tables.step(gradient.to(tables.device), psi.to(tables.device), 1e-2, 3e-3)
    for name in ("tables", "first", "second"):
        assert torch.allclose(getattr(pair[0], name), getattr(pair[1], name).cpu(), atol=1e-6), name


def tcnn_rule(axes: int, levels: int, log2_entries: int, base: int, growth: float) -> tuple[list[int], list[bool]]:
    """tiny-cuda-nn's documented rule, in its own steps: offsets of levels in entries, and which levels hash."""
    offsets, hashes = [0], []
    for level in range(levels):
        scale = np.float32(np.exp2(np.float32(level) * np.log2(np.float32(growth)))) * np.float32(base) - np.float32(1)
        resolution = int(math.ceil(scale)) + 1
        entries = min(math.ceil(resolution**axes / 8) * 8, 2**log2_entries)
        stride = 1
        for _ in range(axes):
            stride = stride * resolution if stride <= entries else stride
        offsets.append(offsets[-1] + entries)
        hashes.append(entries < stride)
    return offsets, hashes


@pytest.mark.parametrize("layout", [*LAYOUTS, COLLIDING, HashGridLayout(3, 10), HashGridLayout(2, 8, 2, 16, 8, 320), HashGridLayout(3, 16, 2, 19, 16, 2048)],
                         ids=lambda l: f"{l.dimensions}d{l.levels}x{l.log2_entries}")
def test_offsets_follow_tinycudann(layout: HashGridLayout) -> None:
    offsets, hashes = tcnn_rule(layout.dimensions, layout.levels, layout.log2_entries, layout.base_resolution, layout.growth)
    assert list(layout.offsets) == offsets and list(layout.hashed) == hashes


class FakeEncoding(torch.nn.Module):
    """tinycudann.Encoding as far as the adapter sees it: flat parameters, look-ups sample by sample with its corner rule."""

    def __init__(self, n_input_dims: int, encoding_config: dict, seed: int = 1337, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        c = encoding_config
        assert c["otype"] == "HashGrid" and c["interpolation"] == "Linear"
        self.axes, self.levels, self.base, self.growth, self.precision = n_input_dims, c["n_levels"], c["base_resolution"], c["per_level_scale"], dtype
        self.offsets, _ = tcnn_rule(self.axes, self.levels, c["log2_hashmap_size"], self.base, self.growth)
        self.params = torch.nn.Parameter(torch.zeros(self.offsets[-1] * c["n_features_per_level"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.params.to(self.precision).view(-1, 2)
        rows = []
        for point in x.tolist():
            row = []
            for level in range(self.levels):
                entries = self.offsets[level + 1] - self.offsets[level]
                scale = float(np.float32(np.exp2(np.float32(level) * np.log2(np.float32(self.growth)))) * np.float32(self.base) - np.float32(1))
                resolution, value = math.ceil(scale) + 1, 0
                for corner in range(2**self.axes):
                    weight, index, stride, key = 1.0, 0, 1, 0
                    for axis in range(self.axes):
                        at = point[axis] * scale + 0.5
                        up = corner >> axis & 1
                        cell = math.floor(at) + up
                        weight *= at - math.floor(at) if up else 1 - (at - math.floor(at))
                        key ^= cell * (1, 2654435761, 805459861)[axis] % 2**32
                        if stride <= entries:
                            index, stride = index + cell * stride, stride * resolution
                    value = value + weight * table[self.offsets[level] + (key if entries < stride else index) % entries].float()
                row.append(value)
            rows.append(torch.cat(row))
        return torch.stack(rows).to(self.precision)


@pytest.fixture
def fake_tinycudann(monkeypatch: pytest.MonkeyPatch) -> None:
    if available("tinycudann"):
        pytest.skip("the real tinycudann is installed")
    import importlib.machinery

    module = ModuleType("tinycudann")
    module.Encoding, module.__spec__ = FakeEncoding, importlib.machinery.ModuleSpec("tinycudann", None)
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    yield
    sys.modules["thnerf.encodings.tcnn_backend"]._encoding.cache_clear()


@pytest.mark.parametrize("layout", [HashGridLayout(3, 3, 2, 8, 4, 20), HashGridLayout(2, 3, 2, 8, 5, 13)], ids=["3d", "2d"])
def test_tinycudann_adapter_reads_any_checkpoint(layout: HashGridLayout, fake_tinycudann) -> None:
    g = torch.Generator().manual_seed(3)
    x, which, psi = torch.rand(24, layout.dimensions, generator=g), torch.arange(24) % 2, torch.randn(2, 3, generator=g)
    source = BlendedTables(layout, 3, seed=1, backend="numba")
    source.step(torch.randn(2, layout.size, generator=g), psi, 0.1, 0.1)
    results = []
    for name in ("reference", "numba", "tinycudann", *(["triton"] if available("triton") and DEVICE == "cpu" else [])):
        copy = BlendedTables(layout, 3, seed=8, backend=name)
        copy.load(source.state())
        table = copy.blend(psi)
        out = encode(x, table, layout, which, name)
        out.square().sum().backward()
        results.append((out.detach(), table.grad))
    for out, gradient in results[1:]:
        assert torch.allclose(out, results[0][0], atol=1e-5) and torch.allclose(gradient, results[0][1], atol=1e-4)


def test_tinycudann_with_another_layout_is_refused(fake_tinycudann, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = load_backend("tinycudann")
    layout, understood = HashGridLayout(3, 3, 2, 8, 4, 20), backend.config
    monkeypatch.setattr(backend, "config", lambda asked: {**understood(asked), "n_levels": 2})
    with pytest.raises(ValueError, match="parameters"):
        encode(torch.rand(2, 3), torch.zeros(layout.size), layout, backend="tinycudann")


def test_absent_backends_say_what_they_need() -> None:
    for name in BACKENDS:
        if not available(name):
            with pytest.raises(ValueError, match="is not installed"):
                load_backend(name)
    assert load_backend("auto", "cpu").__name__.endswith("numba_backend")


COMPILE = """
import triton, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import thnerf.encodings.triton_backend as t
import inspect
def compile(kernel, types, constants):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "*fp32") for n in names}
    made = triton.compile(ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}), target=GPUTarget("cuda", 90, 32))
    assert "sm_90" in made.asm["ptx"] and len(made.asm["cubin"]) > 1000
shape = {"LEVELS": 10, "AXES": 3, "BLOCK": 256}
ints = {"which": "*i32", "levels": "*i32", "n": "i32", "size": "i32", "count": "i32", "width": "i32", "batch": "i32",
        "beta1": "fp32", "beta2": "fp32", "correction1": "fp32", "correction2": "fp32"}
for half in ("*fp32", "*fp16", "*bf16"):
    compile(t._forward, {**ints, "tables": half}, shape)
compile(t._backward_tables, ints, shape)
compile(t._backward_positions, ints, {**shape, "AXES": 2})
compile(t._adam, ints, {"WIDTH": 16, "BLOCK": 256})
"""


@needs_triton
def test_triton_kernels_compile_for_a_gpu_without_one(tmp_path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
