"""A Track in, a video out: frames are rendered, and encoded beside it in a thread, one at a time.

Memory does not grow with the length of the video: at most `AHEAD` rendered frames wait for the encoder.
Whatever happens (Ctrl-C, a full disk), the output file is either whole or as it was before.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from render.progress import progress

AHEAD = 8
"""Rendered frames that may wait for the encoder."""
SOUND_RATE = 48_000
POSES = ("audio", "source", "still")


class Renderer(Protocol):
    """Anything that draws a Track; `thnerf.renderer.HeadRenderer` is one."""

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """Frame `index` of `track` as (H,W,3) float32 in [0,1], over `background` (H,W,3) float32 or the subject's own."""
        ...


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(H,W,3) float in [0,1] → uint8, rounded; values outside are clipped, NaN is black."""
    return (np.nan_to_num(np.clip(image, 0, 1)) * 255 + 0.5).astype(np.uint8)


def load_background(path: str | Path, width: int, height: int) -> np.ndarray:
    """A picture file scaled to cover width × height and cropped in the middle, (H,W,3) float32 in [0,1].

    EXIF orientation is applied, transparency goes over black. Raises InputError when it is no readable picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"the background {path} does not exist; give a picture such as room.jpg")
    try:
        with Image.open(path) as source:
            picture = ImageOps.exif_transpose(source).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"the background {path} is not a readable picture ({reason}); export it again as PNG or JPEG") from None
    opaque = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    opaque.alpha_composite(picture)
    fitted = ImageOps.fit(opaque.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.float32) / 255


def render_track(renderer: Renderer, track: Track, out: str | Path, audio: Any = None, background: np.ndarray | None = None,
                 label: str = "render") -> dict[str, Any]:
    """Render every frame of a track to an H.264 mp4 marked as synthetic media; returns {frames, seconds, fps}, fps = frames per second of work.

    audio: a sound file, or (samples, rate), muxed as AAC and cut or padded to the frames. background: (H,W,3) float32 in [0,1].
    Raises InputError for a track without frames, StageError when the disk is full or the encoder fails.
    """
    from render.video import VideoWriter

    if not len(track):
        raise InputError("the track has no frames, so there is nothing to render; give longer sound or fit the clip again")
    start = time.perf_counter()
    width, height = track.camera.width, track.camera.height
    waiting: deque[Future[None]] = deque()
    # The pool is left first, so no thread writes any more when the writer ends or, on an error, throws the file away.
    with VideoWriter(out, width, height, track.fps, audio=audio, synthetic=True) as writer, ThreadPoolExecutor(1) as pool:
        try:
            for index in progress(range(len(track)), label):
                waiting.append(pool.submit(writer.write, to_uint8(renderer.frame(track, index, background))))
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


def render_speech(subject: Subject, audio: str | Path, out: str | Path, run: str = "default", pose: str | Path | Track = "audio",
                  background: str | Path | None = None, seed: int = 0, device: str = "auto") -> dict[str, Any]:
    """Render the subject speaking a sound file, as long as the sound to within a frame.

    Returns {file, frames, video_fps, duration (s of video), seconds (of work, loading included), fps (frames per second of work)}.
    Raises InputError for unreadable sound, pose or background, an output that is no .mp4, and a run that is missing or has no speech network;
    all of it before the first frame is rendered.
    """
    from thnerf.audio import RATE, load_audio
    from thnerf.motion import predict_track
    from thnerf.trainer import load_renderer

    start = time.perf_counter()
    out, run_dir = Path(out), subject.run(run)
    if out.suffix.lower() != ".mp4":
        raise InputError(f"the output must be an .mp4, not {out.name!r}")
    head = pose_source(pose, subject)
    sound = load_audio(audio, SOUND_RATE)
    track = predict_track(subject, run_dir, load_audio(audio, RATE), RATE, seed=seed, pose=head)
    picture = None if background is None else load_background(background, track.camera.width, track.camera.height)
    renderer = load_renderer(run_dir, subject, device)
    done = render_track(renderer, track, out, (sound, SOUND_RATE), picture)
    seconds = time.perf_counter() - start
    return {"file": str(out), "frames": len(track), "video_fps": track.fps, "duration": len(track) / track.fps, "seconds": seconds,
            "fps": len(track) / seconds, "render_fps": done["fps"]}
