"""Runs inside Blender (bpy): imports a file, notes what Blender made of it, changes one curve and exports it again.

    python tests/blender_loop.py FILE --fps 25 --frames 0 10 … -o NOTES.npz [--edit NAME --saved FILE] [--picture PNG]

NOTES.npz: names, weights (T,K) of the shape keys at every frame, head (T,4,4) what carries the mesh in Blender's world, points (N,V,3) of
the frames asked for, after all modifiers, camera K (3,3) px and camera (4,4), fps, frame_start, frame_end. Needs no thnerf.
"""

import argparse
import sys

import bpy
import numpy as np
from mathutils import Matrix


def load(path: str, fps: float) -> None:
    """An empty scene at the right frame rate, then the file. The rate comes first: glTF's seconds become frames by it."""
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps = max(1, round(fps))
    scene.render.fps_base = scene.render.fps / fps
    if path.lower().endswith((".glb", ".gltf")):
        bpy.ops.import_scene.gltf(filepath=path)
    elif path.lower().endswith(".fbx"):
        bpy.ops.import_scene.fbx(filepath=path, anim_offset=0.0)
    else:
        bpy.ops.wm.usd_import(filepath=path, set_frame_range=True)
    if abs(scene.render.fps / scene.render.fps_base - fps) > 1e-6:
        print(f"the importer changed the frame rate to {scene.render.fps}", file=sys.stderr)
        scene.render.fps, scene.render.fps_base = max(1, round(fps)), max(1, round(fps)) / fps
    if actions := list(bpy.data.actions):
        scene.frame_start = int(round(min(a.frame_range[0] for a in actions)))
        scene.frame_end = int(round(max(a.frame_range[1] for a in actions)))


def head_object():
    """The mesh with shape keys; with none (a baked file) the largest mesh."""
    meshes = [o for o in bpy.data.objects if o.type == "MESH"]
    keyed = [o for o in meshes if o.data.shape_keys]
    return max(keyed or meshes, key=lambda o: len(o.data.vertices))


def carrier(head) -> Matrix:
    """Matrix that takes rest coordinates of the mesh to the world: of the head bone, or of the mesh itself."""
    armature = head.find_armature()
    if armature is None:
        return head.matrix_world.copy()
    bone = armature.pose.bones["head"]
    return armature.matrix_world @ bone.matrix @ bone.bone.matrix_local.inverted() @ armature.matrix_world.inverted() @ head.matrix_world


def intrinsics(scene, camera) -> np.ndarray:
    """K (3,3) in px of the render size that Blender's camera means, from its own frustum."""
    width, height = scene.render.resolution_x, scene.render.resolution_y
    P = np.array(camera.calc_matrix_camera(bpy.context.evaluated_depsgraph_get(), x=width, y=height))
    return np.array([[P[0, 0] * width / 2, 0, (1 - P[0, 2]) * width / 2], [0, P[1, 1] * height / 2, (1 + P[1, 2]) * height / 2], [0, 0, 1]])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256))
    parser.add_argument("--frames", type=int, nargs="*", default=[])
    parser.add_argument("-o", dest="out", required=True)
    parser.add_argument("--edit")
    parser.add_argument("--saved")
    args = parser.parse_args(sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else None)
    load(args.file, args.fps)
    scene, head = bpy.context.scene, head_object()
    scene.render.resolution_x, scene.render.resolution_y = args.size
    camera = next(o for o in bpy.data.objects if o.type == "CAMERA")
    scene.camera = camera
    keys = [k for k in head.data.shape_keys.key_blocks[1:]] if head.data.shape_keys else []
    weights, poses, points = [], [], []
    for frame in range(scene.frame_start, scene.frame_end + 1):
        scene.frame_set(frame)
        weights.append([k.value for k in keys])
        poses.append(np.array(carrier(head)))
        if frame - scene.frame_start in args.frames:
            evaluated = head.evaluated_get(bpy.context.evaluated_depsgraph_get())
            mesh = evaluated.to_mesh()
            flat = np.empty(3 * len(mesh.vertices), np.float32)
            mesh.vertices.foreach_get("co", flat)
            world = np.array(evaluated.matrix_world)
            points.append(flat.reshape(-1, 3) @ world[:3, :3].T + world[:3, 3])
            evaluated.to_mesh_clear()
    np.savez(args.out, names=np.array([k.name for k in keys], dtype=str), weights=np.array(weights, np.float64), head=np.array(poses), points=np.array(points),
             K=intrinsics(scene, camera), camera=np.array(camera.matrix_world), fps=scene.render.fps / scene.render.fps_base,
             frame_start=scene.frame_start, frame_end=scene.frame_end)
    if args.edit:
        edit(head, args.edit)
        save(args.saved)


def curves(block) -> list:
    """All F-curves of what animates a data block."""
    action = block.animation_data.action
    if hasattr(action, "fcurves"):
        return list(action.fcurves)
    slot = block.animation_data.action_slot
    return [c for layer in action.layers for strip in layer.strips for bag in [strip.channelbag(slot)] if bag for c in bag.fcurves]


def edit(head, name: str) -> None:
    """What an artist does: halve one curve and lift it by 0.1."""
    curve = next(c for c in curves(head.data.shape_keys) if f'"{name}"' in c.data_path)
    for point in curve.keyframe_points:
        point.co.y = 0.5 * point.co.y + 0.1
    curve.update()


def save(path: str) -> None:
    """Export with Blender's own settings, animation on."""
    if path.lower().endswith((".glb", ".gltf")):
        bpy.ops.export_scene.gltf(filepath=path, export_cameras=True, export_animations=True)
    else:
        bpy.ops.wm.usd_export(filepath=path, export_animation=True)


if __name__ == "__main__":
    main()
