"""A Track in, a video out: frames are rendered, and encoded beside it in a thread, one at a time.

Memory does not grow with the length of the video: at most `AHEAD` rendered frames wait for the encoder.
Whatever happens (Ctrl-C, a full disk), the output file is either whole or as it was before.
"""

from __future__ import annotations

import re
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
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
from thnerf.direction import Direction, direct
from thnerf.performance import POSES, SOUND_RATE, Speech, check_wishes, driving_track, perform, pose_source, speech_of, spoken

AHEAD = 8
"""Rendered frames that may wait for the encoder."""
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
                 label: str = "render", transparent: bool = False, numbers: bool = False, times: np.ndarray | None = None) -> dict[str, Any]:
    """Render every frame of a track, marked as synthetic media, to what `out` names (see render.outputs); returns {frames, seconds, fps}.

    fps = frames per second of work. audio: a sound file, or (samples, rate), cut or padded to the frames. background: (H,W,3) float32 in [0,1],
    an iterator with one for each frame, or None for the subject's own. transparent: write the person alone, with alpha.
    numbers, times: see `open_output`.
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
    with open_output(out, width, height, track.fps, audio=audio, synthetic=True, numbers=numbers, times=times) as writer, ThreadPoolExecutor(1) as pool:
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


def render_speech(subject: Subject, audio: str | Path | None, out: str | Path, run: str = "default", direction: Direction = Direction(),
                  background: str | Path | None = None, device: str = "auto", size: str | int | None = None, full_frame: bool = False,
                  track: str | Path | Track | None = None, camera: str | Path | None = None, depth: str | Path | None = None,
                  normals: str | Path | None = None, dub: bool = False) -> dict[str, Any]:
    """Render the subject speaking a sound file, as long as the sound to within a frame; or moving as it is directed.

    direction, track: see `thnerf.performance.perform`. size: of the picture, '512' or '1280x720'. full_frame: put the picture back into the
    footage. dub: give the footage a new mouth (`thnerf.dub`). camera: see `thnerf.views.place_camera`. depth, normals: outputs besides, of
    the head alone (`thnerf.views.GeometryRenderer`).
    Returns {file, frames, video_fps, duration (s of video), seconds (of work, loading included), fps (frames per second of work), render_fps}.
    Raises InputError for unreadable sound, pose or background, an output of no known kind, a run that is missing or has no speech network,
    and wishes that exclude each other; all of it before the first frame is rendered.
    """
    from thnerf.trainer import load_renderer

    start = time.perf_counter()
    out, run_dir = Path(out), subject.run(run)
    output_kind(out)
    extras = {"depth": depth, "normals": normals}
    _check(out, direction, full_frame, dub, track, {"size": size, "background": background, "camera": camera, **extras})
    view = sized(subject.track[:1], size, out).camera
    times = None
    if dub:
        from thnerf.dub import dubbed

        speech = _speech(audio, direction)
        pictures, transparent, sound = None, False, speech.heard
        renderer, motion, times = dubbed(subject, run_dir, speech, direction, device)
    elif full_frame:
        pictures, transparent = None, False
        renderer, motion, sound = _whole(subject, run_dir, audio, direction, track, device)
    else:
        check_wishes(audio, direction, track)
        pictures, transparent = resolve_background(background, out, view.width, view.height, (track if isinstance(track, Track) else subject.track).fps)
        played = perform(subject, run_dir, audio, direction, track, seen=True)
        motion, sound = sized(played.track, size, out), played.sound
        renderer = load_renderer(run_dir, subject, device)
        if camera is not None:
            from thnerf.views import carved, place_camera

            motion = place_camera(motion, camera)
            renderer.use_volume(carved(renderer.avatar, subject))
    done = render_track(renderer, motion, out, sound, pictures, transparent=transparent, times=times)
    for kind, path in extras.items():
        if path is not None:
            from thnerf.views import GeometryRenderer

            numbers = output_kind(path) == "exr"
            render_track(GeometryRenderer(renderer.avatar, kind, numbers, float(np.median(motion.translation[:, 2]))), motion, path, label=kind, numbers=numbers)
    seconds = time.perf_counter() - start
    return {"file": str(out), **{k: str(p) for k, p in extras.items() if p is not None}, "frames": len(motion), "video_fps": motion.fps, "duration": len(motion) / motion.fps, "seconds": seconds,
            "fps": len(motion) / seconds, "render_fps": done["fps"]}


def _check(out: Path, direction: Direction, full_frame: bool, dub: bool, track: Any, others: dict[str, Any]) -> None:
    """Raises InputError for outputs of no known kind or the same name, and for what --full-frame and --dub leave no room for."""
    depth, normals = others["depth"], others["normals"]
    for extra in (e for e in (depth, normals) if e is not None):
        output_kind(extra)
        if Path(extra) == out or depth == normals:
            raise InputError("the video, --depth and --normals need different names")
    if not (full_frame or dub):
        return
    option = "--dub" if dub else "--full-frame"
    if dub and full_frame:
        raise InputError("--dub replaces the mouth in the footage, --full-frame the whole head; leave out one of them")
    for name, value in others.items():
        if value is not None:
            raise InputError(f"{option} has the size, background and camera of the footage; leave out --{name}")
    if direction.pose not in (None, "source"):
        raise InputError(f"{option} has the head pose of the footage; leave out --pose (or give --pose source)")
    if direction.drive is not None:
        raise InputError(f"{option} has the head pose of the footage, --drive that of another video; leave out one of them")
    if dub and (track is not None or direction.blink != "auto" or direction.gaze != "auto"):
        raise InputError("--dub keeps the footage's own eyes and head; leave out --track, --blink and --gaze")


def _speech(audio: str | Path | None, direction: Direction) -> Speech:
    """The voice that is asked for. Raises InputError where there is none."""
    speech = speech_of(audio, direction)
    if speech is None:
        raise InputError("say what to speak with --audio FILE or --text WORDS")
    return speech


def _whole(subject: Subject, run_dir: Path, audio: str | Path | None, direction: Direction, track: Any, device: str) -> tuple[Renderer, Track, Any]:
    """Renderer, track and sound of --full-frame."""
    from thnerf.audio import load_audio
    from thnerf.drive import face_model
    from thnerf.fullframe import own_footage, own_pose, source_clips, whole_frames, with_source_pose
    from thnerf.trainer import load_renderer

    check_wishes(audio, direction, track)
    clips = source_clips(subject)
    if track is not None:
        played = perform(subject, run_dir, audio, replace(direction, pose=None), track, seen=True)
        own_pose(played.track, subject.track, subject.aligned(run_dir))
        motion, pieces = own_footage(played.track, clips)
        sound = played.sound if audio is not None or not subject.has_audio else (load_audio(subject.audio_path, SOUND_RATE), SOUND_RATE)
    else:
        speech = _speech(audio, direction)
        chosen = max(range(len(clips)), key=lambda k: clips[k].end - clips[k].start)
        motion, index = with_source_pose(spoken(subject, run_dir, speech.understood, direction, "source", clips[chosen].fps), subject.aligned(run_dir), clips[chosen])
        motion = direct(motion, direction, subject.track, face_model(subject) if direction.changes_track else None, seen=True)
        pieces, sound = [(chosen, index)], speech.heard
    renderer, motion = whole_frames(load_renderer(run_dir, subject, device), motion, clips, pieces)
    return renderer, motion, sound
