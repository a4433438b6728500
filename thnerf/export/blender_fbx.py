"""Runs inside Blender, alone: USD in, FBX out.  blender --background --python blender_fbx.py -- IN.usdc OUT.fbx FPS UP"""

import sys


def main() -> None:
    """Command line."""
    import bpy

    source, out, fps, up = sys.argv[sys.argv.index("--") + 1 :]
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.fps = max(1, round(float(fps)))
    scene.render.fps_base = scene.render.fps / float(fps)
    bpy.ops.wm.usd_import(filepath=source, set_frame_range=True)
    ranges = [action.frame_range for action in bpy.data.actions]
    if ranges:
        scene.frame_start, scene.frame_end = round(min(r[0] for r in ranges)), round(max(r[1] for r in ranges))
    bpy.ops.file.pack_all()
    bpy.ops.export_scene.fbx(
        filepath=out, object_types={"ARMATURE", "MESH", "CAMERA", "EMPTY"}, add_leaf_bones=False, bake_anim=True, bake_anim_simplify_factor=0.0, bake_anim_use_all_actions=False,
        bake_anim_use_nla_strips=False, path_mode="COPY", embed_textures=True, axis_up=up.upper(), axis_forward="-Z" if up == "y" else "Y")


if __name__ == "__main__":
    main()
