"""A Track in, a video out: frames are rendered, and encoded beside it in a thread, one at a time.

Memory does not grow with the length of the video: at most `AHEAD` rendered frames wait for the encoder.
Whatever happens (Ctrl-C, a full disk), the output file is either whole or as it was before.
"""

from __future__ import annotations

import re
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, Iterator, Protocol

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from render.outputs import output_kind, to_uint8
from render.progress import progress
from thnerf.background import load_background, resolve_background

AHEAD = 8
"""Rendered frames that may wait for the encoder."""
SOUND_RATE = 48_000
POSES = ("audio", "source", "still")
__all__ = ["POSES", "SOUND_RATE", "Renderer", "driving_track", "load_background", "parse_size", "pose_source", "render_speech", "render_track", "sized", "to_uint8"]


class Renderer(Protocol):
    """Anything that draws a Track; `thnerf.renderer.HeadRenderer` is one."""

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """Frame `index` of `track` as (H,W,3) float32 in [0,1], over `background` (H,W,3) float32 or the subject's own."""
        ...

    def frame_rgba(self, track: Track, index: int) -> np.ndarray:
        """The person alone, (H,W,4) float32 in [0,1]: straight colour and alpha."""
        ...


def render_track(renderer: Renderer, track: Track, out: str | Path, audio: Any = None, background: np.ndarray | Iterator[np.ndarray] | None = None,
                 label: str = "render", transparent: bool = False, numbers: bool = False) -> dict[str, Any]:
    """Render every frame of a track, marked as synthetic media, to what `out` names (see render.outputs); returns {frames, seconds, fps}.

    fps = frames per second of work. audio: a sound file, or (samples, rate), cut or padded to the frames. background: (H,W,3) float32 in [0,1],
    an iterator with one for each frame, or None for the subject's own. transparent: write the person alone, with alpha.
    numbers: see `open_output`.
    Raises InputError for a track without frames, StageError when the disk is full or the encoder fails.
    """
    from render.outputs import open_output

    if not len(track):
        raise InputError("the track has no frames, so there is nothing to render; give longer sound or fit the clip again")
    start = time.perf_counter()
    width, height = track.camera.width, track.camera.height
    pictures = repeat(background) if background is None or isinstance(background, np.ndarray) else background
    waiting: deque[Future[None]] = deque()
    # The pool is left first, so no thread writes any more when the writer ends or, on an error, throws the file away.
    with open_output(out, width, height, track.fps, audio=audio, synthetic=True, numbers=numbers) as writer, ThreadPoolExecutor(1) as pool:
        try:
            for index in progress(range(len(track)), label):
                frame = renderer.frame_rgba(track, index) if transparent else renderer.frame(track, index, next(pictures))
                waiting.append(pool.submit(writer.write, frame))
                if len(waiting) > AHEAD:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    seconds = time.perf_counter() - start
    return {"frames": len(track), "seconds": seconds, "fps": len(track) / seconds}


def pose_source(pose: str | Path | Track, subject: Subject) -> str | Track:
    """What `--pose` means: one of POSES, or a Track (or its .npz) of the subject's face model, at the subject's frame rate.

    Raises InputError for another word, an unreadable file, an empty track, or a track of another face model.
    """
    if isinstance(pose, str) and pose in POSES:
        return pose
    if not isinstance(pose, Track):
        if Path(pose).suffix != ".npz" and not Path(pose).exists():
            raise InputError(f"--pose takes {', '.join(POSES)} or a Track .npz, not {str(pose)!r}")
        pose = Track.load(pose)
    if not len(pose):
        raise InputError("the pose track has no frames; export it again")
    if pose.model_id != subject.track.model_id:
        raise InputError(
            f"the pose track belongs to the face model {pose.model_id} and this subject to {subject.track.model_id}; "
            "their head positions do not compare, so fit the source clip with the subject's model")
    return pose.resample(subject.track.fps)


def parse_size(size: str | int | None) -> tuple[int, int] | None:
    """'512' → (512, 512), '1280x720' → (1280, 720), None → None. Raises InputError for anything else, and outside 32 to 4096 px."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", str(size).strip())
    width, height = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (32 <= width <= 4096 and 32 <= height <= 4096):
        raise InputError(f"--size takes a number of px or WIDTHxHEIGHT between 32 and 4096, for example 512 or 1280x720, not {str(size)!r}")
    return width, height


def sized(track: Track, size: str | int | None, out: str | Path) -> Track:
    """The track with its camera at another picture size; the fitted picture stays whole (see `Camera.extended`).

    Raises InputError for a size that cannot be, or an odd one for H.264.
    """
    wanted = parse_size(size)
    if wanted is None:
        return track
    if output_kind(out) == "mp4" and (wanted[0] % 2 or wanted[1] % 2):
        raise InputError(f"H.264 video needs an even width and height, not {wanted[0]}x{wanted[1]}; choose an even --size")
    return track.replace(camera=track.camera.extended(*wanted))


def driving_track(subject: Subject, text: str | Path | Track) -> Track:
    """What `--track` means: 'fit' (the footage's own) or the .npz of an edited or retargeted one.

    Raises InputError when it is unreadable, empty or of another face model.
    """
    track = text if isinstance(text, Track) else subject.track if str(text) == "fit" else Track.load(text)
    if track.model_id != subject.track.model_id:
        raise InputError(f"the track belongs to the face model {track.model_id} and this subject to {subject.track.model_id}; re-express it with thnerf retarget")
    if not len(track):
        raise InputError("the track has no frames, so there is nothing to render; export it again")
    return track


def render_speech(subject: Subject, audio: str | Path | None, out: str | Path, run: str = "default", pose: str | Path | Track | None = None,
                  background: str | Path | None = None, seed: int = 0, device: str = "auto", size: str | int | None = None, full_frame: bool = False,
                  track: str | Path | Track | None = None, camera: str | Path | None = None, depth: str | Path | None = None,
                  normals: str | Path | None = None) -> dict[str, Any]:
    """Render the subject speaking a sound file, as long as the sound to within a frame; or moving as a Track says.

    pose: see `pose_source`, 'audio' by default, 'source' with full_frame. size: of the picture, '512' or '1280x720'. full_frame: put the picture back into the
    footage. track: see `driving_track`; the sound is then `audio`, or the footage's where the track is as long. camera: see
    `thnerf.views.place_camera`. depth, normals: outputs besides, of the head alone (`thnerf.views.GeometryRenderer`).
    Returns {file, frames, video_fps, duration (s of video), seconds (of work, loading included), fps (frames per second of work), render_fps}.
    Raises InputError for unreadable sound, pose or background, an output of no known kind, a run that is missing or has no speech network,
    and wishes that exclude each other; all of it before the first frame is rendered.
    """
    from thnerf.trainer import load_renderer

    start = time.perf_counter()
    out, run_dir = Path(out), subject.run(run)
    output_kind(out)
    if full_frame and (size is not None or background is not None or pose not in (None, "source")):
        raise InputError("--full-frame has the size, background and head pose of the footage; leave out --size, --background and --pose (or give --pose source)")
    extras = {"depth": depth, "normals": normals}
    for extra in (e for e in extras.values() if e is not None):
        output_kind(extra)
        if Path(extra) == out or depth == normals:
            raise InputError("the video, --depth and --normals need different names")
    if full_frame and (camera is not None or depth is not None or normals is not None):
        raise InputError("--full-frame has the camera of the footage; leave out --camera, --depth and --normals")
    if track is not None and pose is not None:
        raise InputError("--track has a head pose already; leave out --pose, or leave out --track")
    motion = None if track is None else driving_track(subject, track)
    head = pose_source(pose or ("source" if full_frame else "audio"), subject)
    sound = _sound(subject, audio, motion)
    view = sized(subject.track[:1], size, out).camera
    pictures, transparent = (None, False) if full_frame else resolve_background(background, out, view.width, view.height, (motion or subject.track).fps)
    if full_frame:
        from thnerf.fullframe import own_footage, own_pose, source_clips, whole_frames, with_source_pose

        clips = source_clips(subject)
        if motion is not None:
            own_pose(motion, subject)
            motion, pieces = own_footage(motion, clips)
        else:
            chosen = max(range(len(clips)), key=lambda k: clips[k].end - clips[k].start)
            motion, index = with_source_pose(_spoken(subject, run_dir, audio, seed, head, clips[chosen].fps), subject, clips[chosen])
            pieces = [(chosen, index)]
        renderer, motion = whole_frames(load_renderer(run_dir, subject, device), motion, clips, pieces)
    else:
        motion = sized(motion if motion is not None else _spoken(subject, run_dir, audio, seed, head, None), size, out)
        renderer = load_renderer(run_dir, subject, device)
        if camera is not None:
            from thnerf.views import carved, place_camera

            motion = place_camera(motion, camera)
            renderer.use_volume(carved(renderer.avatar, subject))
    done = render_track(renderer, motion, out, sound, pictures, transparent=transparent)
    for kind, path in extras.items():
        if path is not None:
            from thnerf.views import GeometryRenderer

            numbers = output_kind(path) == "exr"
            render_track(GeometryRenderer(renderer.avatar, kind, numbers, float(np.median(motion.translation[:, 2]))), motion, path, label=kind, numbers=numbers)
    seconds = time.perf_counter() - start
    return {"file": str(out), **{k: str(p) for k, p in extras.items() if p is not None}, "frames": len(motion), "video_fps": motion.fps, "duration": len(motion) / motion.fps, "seconds": seconds,
            "fps": len(motion) / seconds, "render_fps": done["fps"]}


def _spoken(subject: Subject, run_dir: Path, audio: str | Path, seed: int, pose: str | Track, fps: float | None) -> Track:
    """The subject saying a sound file; at its own frame rate, or at `fps`."""
    from thnerf.audio import RATE, load_audio
    from thnerf.motion import predict_track

    options = {} if fps is None else {"fps": fps}
    return predict_track(subject, run_dir, load_audio(audio, RATE), RATE, seed=seed, pose=pose, **options)


def _sound(subject: Subject, audio: str | Path | None, motion: Track | None) -> tuple[np.ndarray, int] | None:
    """Samples and rate of the sound of a video. Raises InputError when a sound is needed and there is none."""
    from thnerf.audio import load_audio

    if audio is not None:
        return load_audio(audio, SOUND_RATE), SOUND_RATE
    if motion is None:
        raise InputError("say what to speak with --audio FILE, or what to play with --track fit or --track FILE.npz")
    alike = len(motion) == len(subject.track) and motion.fps == subject.track.fps
    return (load_audio(subject.audio_path, SOUND_RATE), SOUND_RATE) if alike and subject.has_audio else None
