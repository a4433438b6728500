"""The head as a triangle mesh with vertex colours: out of the field, or the fitted face model with colours from the footage.

Model space: mm, y up, z out of the face, +x to the subject's left. PLY and OBJ keep mm and sRGB colours; GLB is in metres with linear
colours, as glTF wants both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Literal

import numpy as np

from recon.subject import Subject
from render.files import InputError, atomic_path
from render.isosurface import fill_in, largest_component, surface_nets, taubin
from render.light import linear
from render.raster import rasterise, vertex_normals

OPAQUE_MM = 5.0  # the surface is where this depth of the field stops half of the light
REACH_MM = 12.0  # colours are those met from this far outside to this far inside
FORMATS = (".ply", ".glb", ".obj")
GRAIN_MM = 1.5  # finer bumps than this are noise of the field
VIEWS = 32  # frames that colour the fitted mesh


@dataclass(frozen=True)
class HeadMesh:
    """vertices (V,3) mm in model space, faces (F,3), colours (V,3) sRGB in [0,1], seen (V,) bool: False where the colour was filled in."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    seen: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write .ply, .glb or .obj by the name, atomically. Raises InputError for another ending."""
        import trimesh

        path, kind = Path(path), Path(path).suffix.lower()
        if kind not in FORMATS:
            raise InputError(f"a mesh is written as {', '.join(FORMATS)}, not {path.name!r}")
        metric = kind == ".glb"
        colours = linear(self.colours) if metric else self.colours
        rgba = np.concatenate([(np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8), np.full((len(colours), 1), 255, np.uint8)], 1)
        mesh = trimesh.Trimesh(self.vertices / 1000 if metric else self.vertices, self.faces, vertex_colors=rgba, process=False)
        mesh.vertex_normals  # noqa: B018 - computed, so that it is exported
        data = trimesh.exchange.gltf.export_glb(trimesh.Scene(mesh), include_normals=True, tree_postprocessor=_matt) if metric else mesh.export(file_type=kind[1:])
        with atomic_path(path) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def _matt(tree: dict[str, Any]) -> None:
    """A rough, non-metallic material for every primitive: glTF's own default is metal."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive["material"] = 0


def export_mesh(subject: Subject, out: str | Path, source: Literal["field", "fit"] = "field", run: str = "default", frame: int | None = None,
                cell_mm: float = 1.5) -> dict[str, Any]:
    """Write the subject's head as a mesh; returns {file, source, vertices, faces, seen (fraction of the vertices with a colour of their own)}.

    frame: whose expression it has; the median of the training frames by default. cell_mm: grain of the field's mesh.
    Raises InputError for a missing run, a frame or ending that does not exist, a cell size outside 0.75 to 10 mm.
    """
    if Path(out).suffix.lower() not in FORMATS:
        raise InputError(f"a mesh is written as {', '.join(FORMATS)}, not {Path(out).name!r}")
    if not 0.75 <= cell_mm <= 10:
        raise InputError(f"--cell-mm must lie between 0.75 and 10, not {cell_mm:g}")
    if frame is not None and not 0 <= frame < len(subject.track):
        raise InputError(f"--frame must lie between 0 and {len(subject.track) - 1}, not {frame}")
    mesh = fit_mesh(subject, frame) if source == "fit" else field_mesh(subject, run, frame, cell_mm)
    mesh.save(out)
    return {"file": str(out), "source": source, "vertices": len(mesh.vertices), "faces": len(mesh.faces), "seen": float(mesh.seen.mean())}


def typical(subject: Subject, frame: int | None) -> Any:
    """A Track of one frame with the expression of `frame`, or the median expression of the training frames looking ahead."""
    track = subject.track
    if frame is not None:
        return track[frame : frame + 1]
    train = subject.frames("train")
    return track[:1].replace(expression=np.median(track.expression[train], 0)[None], gaze=np.zeros((1, 2, 2)))


def field_mesh(subject: Subject, run: str = "default", frame: int | None = None, cell_mm: float = 1.5) -> HeadMesh:
    """The surface of the trained field. The field knows only what the camera saw: behind it the fitted face model closes the head.

    Raises InputError when the run is missing. An untrained field gives the shape of the face model.
    """
    from thnerf.avatar import Avatar

    avatar, part = Avatar.load(subject.run(run) / "field.safetensors"), typical(subject, frame)
    radiance = field_opacity(avatar, part)
    values, lower = solid(avatar, subject, part, cell_mm)
    vertices, faces = largest_component(*surface_nets(values, 0.5))
    vertices = taubin(lower + (vertices + 0.5) * cell_mm, faces)
    colours, seen = _field_colours(radiance, vertices, vertex_normals(vertices, faces))
    return HeadMesh(vertices, faces, fill_in(vertices, faces, colours, seen), seen)


def field_opacity(avatar: Any, part: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The field of a Track's first frame as a function of points (N,3) mm: opacity (N,) of OPAQUE_MM of it, 0 outside its shell, and colour (N,3)."""
    import torch

    avatar.head.eval()
    volume = avatar.volume
    field = avatar.field(avatar.condition.expression(part), avatar.condition.pose(part))

    def radiance(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        unit = volume.unit(points).astype(np.float32)
        cell = np.floor(unit * len(volume.occupancy)).astype(int)
        there = ((cell >= 0) & (cell < len(volume.occupancy))).all(1)
        there[there] = volume.occupancy[tuple(cell[there].T)]
        opacity, colour = np.zeros(len(points), np.float32), np.zeros((len(points), 3), np.float32)
        with torch.no_grad():
            density, rgb = field(torch.from_numpy(np.ascontiguousarray(unit[there])))
        opacity[there], colour[there] = 1 - np.exp(-density.numpy() * OPAQUE_MM / 100), rgb.numpy()
        return opacity, colour

    return radiance


def solid(avatar: Any, subject: Subject, part: Any, cell_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """The head of a Track's first frame as a filled body: values (X,Y,Z) above 0.5 inside, and the corner (3,) mm of the grid of cells."""
    model, volume = subject.model, avatar.volume
    head = model.vertices(part.shape, part.expression[0])
    lower, upper = volume.lower.astype(np.float64), volume.upper.astype(np.float64)
    lower[2] = min(lower[2], head[head[:, 1] > lower[1], 2].min() - 4 * cell_mm)  # the field ends at the ears, the head further back
    shape = np.ceil((upper - lower) / cell_mm).astype(int)
    return _solid(field_opacity(avatar, part), head, model.faces, lower, shape, cell_mm), lower


def _solid(radiance: Any, head: np.ndarray, head_faces: np.ndarray, lower: np.ndarray, shape: np.ndarray, cell: float) -> np.ndarray:
    """Opacity (X,Y,Z) on cell centres: the field's front, and everything behind it as far back as the face model's skull goes."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter, median_filter

    from thnerf.shell import rasterise_surface

    values = np.empty(tuple(shape), np.float32)
    y, z = np.meshgrid(*(lower[k] + (np.arange(shape[k]) + 0.5) * cell for k in (1, 2)), indexing="ij")
    for i in range(shape[0]):
        points = np.stack([np.full(y.size, lower[0] + (i + 0.5) * cell), y.ravel(), z.ravel()], 1)
        values[i] = radiance(points)[0].reshape(y.shape)
    # The grid of the face model must be a cube for the marking; coarser than ours, it has no holes.
    coarse, side = 3.0, int(np.ceil(shape.max() * cell / 3.0))
    marked = np.zeros((side,) * 3, bool)
    rasterise_surface(marked, head, head_faces, lower, lower + side * coarse)
    hit = marked.any(2)
    back = np.where(hit, marked.argmax(2), 0) * coarse
    front = np.where(hit, side - 1 - marked[:, :, ::-1].argmax(2), 0) * coarse
    # Hair beside the head has no skull behind it: it reaches as deep as the nearest outline of the head.
    near = distance_transform_edt(~hit, return_distances=False, return_indices=True)
    back, front = back[tuple(near)], np.where(hit, front, -1.0)
    column = [np.clip(((np.arange(shape[k]) + 0.5) * cell / coarse).astype(int), 0, side - 1) for k in (0, 1)]
    column = [np.clip(((np.arange(shape[k]) + 0.5) * cell / coarse).astype(int), 0, side - 1) for k in (0, 1)]
    smooth = lambda grid: gaussian_filter(grid[np.ix_(*column)], 1.5 * coarse / cell)  # noqa: E731
    back = smooth(back)
    front = np.where(hit[np.ix_(*column)], smooth(front), -1.0)
    depth = (np.arange(shape[2]) + 0.5) * cell
    # Specks of density that float before the surface are no part of it: the front is what its neighbours agree on.
    opaque = gaussian_filter(values, GRAIN_MM / cell) > 0.5
    first = np.where(opaque.any(2), (shape[2] - 1 - opaque[:, :, ::-1].argmax(2) + 0.5) * cell, np.where(front > 0, front - 6.0, -1.0))
    first = gaussian_filter(median_filter(first, max(3, int(6 / cell) | 1)), 1.0)
    solid = (depth > back[:, :, None]) & (depth <= first[:, :, None])
    values[depth > first[:, :, None] + 2.0] = 0.0
    values[solid] = 1.0
    return gaussian_filter(values, GRAIN_MM / cell)


def _field_colours(radiance: Any, vertices: np.ndarray, normals: np.ndarray, steps: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Colours (V,3) met on the way in along the normals, and which vertices the field colours: opaque there, and turned to the camera."""
    light, colours = np.ones(len(vertices)), np.zeros((len(vertices), 3))
    for offset in np.linspace(REACH_MM, -REACH_MM, steps):
        opacity, rgb = radiance(vertices + offset * normals)
        opacity = 1 - (1 - opacity) ** (2 * REACH_MM / steps / OPAQUE_MM)
        colours += (light * opacity)[:, None] * rgb
        light *= 1 - opacity
    return colours / np.maximum(1 - light, 1e-6)[:, None], (light < 0.3) & (normals[:, 2] > -0.2)


def fit_mesh(subject: Subject, frame: int | None = None) -> HeadMesh:
    """The fitted face model in canonical pose, coloured by the training frames that see each vertex, those that see it frontally counting most."""
    from recon.overlay import posed_vertices
    from render.video import read_frames

    model, track, part = subject.model, subject.track, typical(subject, frame)
    train = subject.frames("train")
    wanted = set(train[np.unique(np.round(np.linspace(0, len(train) - 1, VIEWS)).astype(int))].tolist())
    total, weights = np.zeros((len(model.mean), 3)), np.zeros(len(model.mean))
    frames, mattes = read_frames(subject.video_path), read_frames(subject.matte_path, grey=True)
    for index, (picture, matte) in enumerate(zip(frames, mattes)):
        if index in wanted:
            weight, colour = _projected(picture, matte, posed_vertices(model, track, index), model.faces, track.camera, index)
            total += weight[:, None] * colour
            weights += weight
        if index >= max(wanted):
            break
    seen = weights > 0.2
    vertices = model.vertices(part.shape, part.expression[0]).astype(np.float64)
    return HeadMesh(vertices, model.faces, fill_in(vertices, model.faces, total / np.maximum(weights, 1e-9)[:, None], seen), seen)


def _projected(picture: np.ndarray, matte: np.ndarray, vertices: np.ndarray, faces: np.ndarray, camera: Any, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight (V,) and colour (V,3) in [0,1] of posed vertices in one frame: 0 where hidden, turned away, or off the person."""
    import cv2

    camera = camera.at(slice(index, index + 1))
    pixels = camera.project(vertices[None])[0]
    depth = rasterise(vertices, faces, camera).depth
    pose = camera.world_to_camera[0]
    local = vertices @ pose[:3, :3].T + pose[:3, 3]
    normals = vertex_normals(vertices, faces) @ pose[:3, :3].T
    facing = -(normals * local).sum(1) / np.linalg.norm(local, axis=1)
    at = np.nan_to_num(pixels, nan=-1e3).astype(np.float32) - 0.5
    pick = lambda image: cv2.remap(image, at[:, None, :1], at[:, None, 1:], cv2.INTER_LINEAR, borderValue=0)[:, 0]  # noqa: E731
    nearest = np.full(len(vertices), -np.inf)
    column, row = np.floor(at + 0.5).astype(int).T
    inside = (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    nearest[inside] = depth[row[inside], column[inside]]
    visible = inside & (local[:, 2] <= nearest + 3.0) & (facing > 0.15) & (pick(matte) > 200)
    return np.where(visible, np.maximum(facing, 0) ** 2, 0.0), pick(picture).astype(np.float64) / 255
