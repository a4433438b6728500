"""Speed of the rasteriser on the default face model: python tests/benchmarks/bm_raster.py"""

import time

import numpy as np

from recon.model import load_model
from render.camera import Camera
from render.raster import interpolate, rasterise, vertex_normals


def milliseconds(work, repeat: int = 50) -> float:
    """Median time of a call after a first one that compiles."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def main() -> None:
    model = load_model()
    vertices = model.mean * [1, -1, -1] + [0, 0, 1000.0]
    print(f"{len(model.faces)} triangles; normals {milliseconds(lambda: vertex_normals(vertices, model.faces)):.2f} ms")
    for size in (256, 512, 1024):
        camera = Camera.simple(size * 4, size, size)
        fragments = rasterise(vertices, model.faces, camera)
        draw = milliseconds(lambda: rasterise(vertices, model.faces, camera))
        mix = milliseconds(lambda: interpolate(fragments, model.faces, vertices))
        print(f"{size:5}²: rasterise {draw:.2f} ms, interpolate three channels {mix:.2f} ms")


if __name__ == "__main__":
    main()
