"""Reads a head out of a USD file, in a process of its own: usd-core is C++, and a damaged file may end the process that opens it.

    python -m thnerf.export.usd_read FILE NOTES.npz UP      (what `read_apart` runs)

Blend shapes, joints and transforms are found by their types, not by our prim paths, so that what Blender or another program exports is
understood too: the first mesh with blend shapes is the head; the joint named head (or the one that holds most of the mesh) carries the pose.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Optional

import numpy as np

from render.camera import Camera
from render.files import InputError
from render.rotations import matrix_to_axis_angle
from thnerf.export.names import plain, swap_side
from thnerf.export.options import ExportOptions, Imported
from thnerf.export.rig_names import EYES, HEAD, MOST, joint_angles
from thnerf.export.space import Space, checked_rotation
from thnerf.export.text import MAX_FRAMES

SECONDS, SECONDS_PER_MB = 8.0, 3.0
MEMORY = 1 << 30
REFUSED = 3  # exit code: the sentence on stdout is for the user
WIDTH = 1000.0  # px of a camera that says nothing about pixels


def read_apart(path: Path, options: ExportOptions) -> Imported:
    """Run `main` in another process and take its result. Raises InputError when that refuses the file, dies or takes too long."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; name the USD file to import")
    limit = SECONDS + SECONDS_PER_MB * path.stat().st_size / 1e6
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "notes.npz"
        command = [sys.executable, "-m", "thnerf.export.usd_read", str(path.resolve()), str(out), options.up]
        root = str(Path(__file__).resolve().parents[2])
        try:
            done = subprocess.run(command, capture_output=True, timeout=limit, cwd=root)
        except subprocess.TimeoutExpired:
            raise InputError(f"{path} took usd-core more than {limit:.0f} s to read; it is damaged or too large, export it again") from None
        if done.returncode == REFUSED:
            raise InputError(done.stdout.decode(errors="replace").strip())
        if done.returncode or not out.exists():
            raise InputError(f"{path} is not a USD file that can be read (usd-core ended with {done.returncode}); export it again")
        with np.load(out, allow_pickle=False) as data:
            found = {name: data[name] for name in data.files}
    optional = lambda name: found.get(name)  # noqa: E731
    names = tuple(str(n) for n in found["names"].tolist())
    if options.sides == "viewer":
        names = tuple(swap_side(n) for n in names)
    camera = None
    if "K" in found:
        camera = Camera(found["K"], found["world_to_camera"], int(WIDTH), int(found["height"]))
    return Imported(float(found["fps"]), names, found["weights"], optional("rotation"), optional("translation"), optional("gaze"), camera,
                    tuple(str(n) for n in found["notes"].tolist()))


def main(arguments: list[str]) -> int:
    """The process: FILE, the .npz to write, and the axis that was up when the file was exported. Returns the exit code."""
    path, out, up = arguments
    _limit_memory()
    try:
        np.savez(out, **_read(path, up))
    except InputError as error:
        print(error)
        return REFUSED
    return 0


def _limit_memory() -> None:
    """No file needs more than MEMORY; not every system can say so. Data only: usd-core reserves a GB of addresses that it never touches."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [v for v in (soft, hard, MEMORY) if v != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def _read(path: str, up: str) -> dict[str, Any]:
    """What `read_apart` wants to know, as arrays. Raises InputError."""
    from pxr import Tf, Usd, UsdGeom

    try:
        stage = Usd.Stage.Open(path, Usd.Stage.LoadNone)
    except Tf.ErrorException as error:
        reasons = [line.split(" : ", 1)[1].strip(" '") for line in str(error).splitlines() if " : " in line] or ["damaged"]
        raise InputError(f"{path} is not a USD file that can be read ({reasons[-1][:200]}); export it again") from None
    head = _Head(stage, path)
    times = head.times()
    space = Space(0.001 / head.meters, "z" if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z else "y")
    local = Space(1.0, head.local_up(up))
    out: dict[str, Any] = {"fps": head.fps, "names": np.array(head.shapes, dtype=str), "weights": head.weights(times), "notes": np.array(head.notes, dtype=str)}
    matrices = head.matrices(times)
    R = checked_rotation(matrices["head"][:, :3, :3], path)
    out["rotation"] = matrix_to_axis_angle(space.world.T @ R @ local.local)
    out["translation"] = matrices["head"][:, :3, 3] @ space.world / space.scale
    if all(eye in matrices for eye in EYES):
        turned = [np.swapaxes(R, 1, 2) @ checked_rotation(matrices[eye][:, :3, :3], path) for eye in EYES]
        out["gaze"] = local.gaze_back(np.stack(turned, 1))
    turns = {name: R if name == HEAD else checked_rotation(m[:, :3, :3], path) for name, m in matrices.items()}
    names, values = joint_angles(turns, head.above(), local.local)
    out["names"], out["weights"] = np.array([*head.shapes, *names], dtype=str), np.concatenate([out["weights"], values], 1)
    return out | head.camera(times, space)


class _Head:
    """The head of a stage. Matrices here act on columns: USD's own act on rows."""

    def __init__(self, stage: Any, path: str) -> None:
        from pxr import UsdGeom, UsdSkel

        self.stage, self.path, self.notes = stage, path, []
        self.fps, self.meters = float(stage.GetTimeCodesPerSecond()), float(UsdGeom.GetStageMetersPerUnit(stage))
        if not (np.isfinite(self.meters) and 1e-6 <= self.meters <= 1e6):
            raise InputError(f"{path} says that a unit is {self.meters:g} m long; correct metersPerUnit")
        meshes = [p for p in stage.Traverse() if p.IsA(UsdGeom.Mesh)]
        bindings = [(m, UsdSkel.BindingAPI(m)) for m in meshes]
        found = next(((m, b) for m, b in bindings if b.GetBlendShapesAttr().Get()), None) or next(((m, b) for m, b in bindings if b.GetInheritedSkeleton()), None)
        if found is None:
            raise InputError(f"{path} has no mesh with blend shapes or a skeleton; export the head with its shape keys (and without baking)")
        self.mesh, self.binding = found
        skeleton = self.binding.GetInheritedSkeleton()
        if not skeleton:
            raise InputError(f"{path} has blend shapes but no skeleton that moves them; export the head together with its armature")
        root = UsdSkel.Root.Find(self.mesh)
        self.cache = UsdSkel.Cache()
        if root:
            from pxr import Usd

            self.cache.Populate(root, Usd.PrimDefaultPredicate)
        self.query = self.cache.GetSkelQuery(skeleton)
        self.animation = self.query.GetAnimQuery() if self.query else None
        if not self.query or not self.animation:
            raise InputError(f"{path} has a head that nothing animates; export it with its animation")
        self.prim = self.animation.GetPrim()
        self.shapes = [str(n) for n in self.animation.GetBlendShapeOrder()]
        self.joints = [str(n) for n in self.query.GetJointOrder()]
        if len(self.shapes) * len(self.joints) > 10_000_000:
            raise InputError(f"{path} has more joints and blend shapes than a face; export the head alone")

    def times(self) -> np.ndarray:
        """Time codes of the frames: the stage's range, or where it states none, that of the animation."""
        stage = self.stage
        if stage.HasAuthoredTimeCodeRange():
            first, last = stage.GetStartTimeCode(), stage.GetEndTimeCode()
        else:
            names = ("blendShapeWeights", "rotations", "translations")
            stamps = [t for n in names for t in (self.prim.GetAttribute(n).GetTimeSamples() if self.prim.GetAttribute(n) else [])]
            first, last = (min(stamps), max(stamps)) if stamps else (0.0, 0.0)
        if not (np.isfinite(first) and np.isfinite(last) and 0 <= last - first < MAX_FRAMES):
            raise InputError(f"{self.path} runs from time code {first:g} to {last:g}, which is no range of up to {MAX_FRAMES} frames; correct it")
        return first + np.arange(int(np.floor(last - first + 1e-6)) + 1)

    def weights(self, times: np.ndarray) -> np.ndarray:
        """Blend-shape weights (T,K)."""
        attribute, K = self.prim.GetAttribute("blendShapeWeights"), len(self.shapes)
        out = np.zeros((len(times), K))
        for i, time in enumerate(times if K else ()):
            value = attribute.Get(float(time))
            if value is None or len(value) != K:
                raise InputError(f"{self.path} has {K} blend shapes and {0 if value is None else len(value)} weights at time code {time:g}; export it again")
            out[i] = value
        return out

    def _joint(self, name: str) -> Optional[int]:
        """Index of a joint by its own name."""
        return next((j for j, path in enumerate(self.joints) if plain(path) == plain(name)), None)

    def _head_joint(self) -> Optional[int]:
        """The joint that carries the head; None where the mesh hangs on none."""
        named = self._joint(HEAD)
        if named is not None or not self.joints:
            return named
        indices, weights = self.binding.GetJointIndicesAttr().Get(), self.binding.GetJointWeightsAttr().Get()
        if not indices or not weights or len(indices) != len(weights):
            return 0
        index = np.array(indices, np.int64)
        inside = (index >= 0) & (index < len(self.joints))
        return int(np.bincount(index[inside], np.nan_to_num(np.array(weights))[inside], len(self.joints)).argmax())

    def _carriers(self) -> dict[str, int]:
        """Joints by name: head, eyes, and what hangs on the head besides; nothing without a head."""
        head = self._head_joint()
        if head is None:
            return {}
        out = {HEAD: head} | {eye: j for eye in EYES if (j := self._joint(eye)) is not None}
        for j, path in enumerate(self.joints):
            if j not in out.values() and path.startswith(self.joints[head] + "/") and len(out) < MOST:
                out.setdefault(path.rsplit("/", 1)[-1], j)
        return out

    def above(self) -> dict[str, str]:
        """The joint above each of them, where it is one of them."""
        name_of = {self.joints[j]: name for name, j in self._carriers().items()}
        return {name: name_of.get(path.rpartition("/")[0], HEAD) for path, name in name_of.items()}

    def local_up(self, default: str) -> str:
        """Which axis of the mesh points up: the eyes lie before the head's joint rather than above it."""
        places = self._bind()
        if not all(name in places for name in (HEAD, *EYES)):
            return default
        bind = np.linalg.inv(places[HEAD])
        middle = np.mean([(bind @ places[eye])[:3, 3] for eye in EYES], 0)
        return "y" if abs(middle[2]) > abs(middle[1]) else "z"

    def _bind(self) -> dict[str, np.ndarray]:
        """Bind matrices (4,4) of the head and the eyes."""
        joints = self._carriers()
        bind = self.query.GetJointWorldBindTransforms()
        if len(bind) != len(self.joints):
            raise InputError(f"{self.path} has {len(self.joints)} joints and {len(bind)} bind transforms; export it again")
        out = {name: np.array(bind[j], np.float64).T for name, j in joints.items()}
        if any(not np.isfinite(m).all() or abs(np.linalg.det(m)) < 1e-15 for m in out.values()):
            raise InputError(f"{self.path} has a bind transform that cannot be inverted; export it again")
        return out

    def matrices(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """What takes the mesh's coordinates to the world, (T,4,4), for the head and each eye that has a joint."""
        from pxr import UsdGeom

        joints = self._carriers()
        xforms = UsdGeom.XformCache()
        if HEAD not in joints:
            out = np.empty((len(times), 4, 4))
            for i, time in enumerate(times):
                xforms.SetTime(float(time))
                out[i] = np.array(xforms.GetLocalToWorldTransform(self.mesh)).T
            return {HEAD: out}
        bind = {name: np.linalg.inv(m) for name, m in self._bind().items()}
        geometry = self.binding.GetGeomBindTransformAttr().Get()
        rest = np.eye(4) if geometry is None else np.array(geometry, np.float64).T
        moved = {name: np.empty((len(times), 4, 4)) for name in joints}
        above = np.empty((len(times), 4, 4))
        for i, time in enumerate(times):
            xforms.SetTime(float(time))
            above[i] = np.array(xforms.GetLocalToWorldTransform(self.query.GetPrim())).T
            local = self.query.ComputeJointSkelTransforms(float(time))
            if local is None or len(local) != len(self.joints):
                raise InputError(f"{self.path} has no transforms of its {len(self.joints)} joints at time code {time:g}; export it again")
            for name, j in joints.items():
                moved[name][i] = np.array(local[j]).T
        return {name: above @ moved[name] @ bind[name] @ rest for name in joints}

    def camera(self, times: np.ndarray, space: Space) -> dict[str, Any]:
        """K, world_to_camera (T,4,4) and height of a picture WIDTH px wide; nothing without a camera that makes sense."""
        from pxr import UsdGeom

        prim = next((p for p in self.stage.Traverse() if p.IsA(UsdGeom.Camera)), None)
        if prim is None:
            return {}
        camera, xforms = UsdGeom.Camera(prim), UsdGeom.XformCache()
        get = lambda attribute: float(attribute.Get(float(times[0])) or 0)  # noqa: E731
        focal, film, film_height = get(camera.GetFocalLengthAttr()), get(camera.GetHorizontalApertureAttr()), get(camera.GetVerticalApertureAttr())
        right, above = get(camera.GetHorizontalApertureOffsetAttr()), get(camera.GetVerticalApertureOffsetAttr())
        if not all(np.isfinite(v) and 1e-9 < v < 1e9 for v in (focal, film, film_height)) or not np.isfinite([right, above]).all():
            return {}
        px = WIDTH / film
        height = min(100 * WIDTH, max(1.0, round(film_height * px)))
        pose = np.empty((len(times), 4, 4))
        for i, time in enumerate(times):
            xforms.SetTime(float(time))
            pose[i] = np.array(xforms.GetLocalToWorldTransform(prim)).T
        if not np.isfinite(pose).all() or (np.abs(np.linalg.det(pose[:, :3, :3])) < 1e-12).any():
            return {}
        pose[:, :3, :3] = checked_rotation(pose[:, :3, :3], self.path)
        K = np.array([[focal * px, 0, WIDTH / 2 - right * px], [0, focal * px, height / 2 + above * px], [0, 0, 1]])
        return {"K": K, "world_to_camera": space.camera_back(pose), "height": height}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
