"""Video files: read at a constant frame rate by timestamps, write H.264 + AAC, all streamed, through PyAV.

Frames are (H,W,3) uint8 RGB. Time 0 is the first video frame; sound is placed against it. Colours are
converted by the matrix and range the file declares (BT.601 for small untagged video, BT.709 for large),
and written as tagged BT.709, so that write → read shifts nothing. `av` is imported on first use.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Collection, Iterator

import numpy as np

from render.encode import SYNTHETIC, VideoWriter
from render.files import InputError
from render.sound import AUDIO_RATE, decode, fit_length, reason, resample_audio, scaling, sound_blocks

__all__ = ["SYNTHETIC", "VideoInfo", "VideoWriter", "crop_square", "fit_length", "frame_times", "load_video", "picked_frames", "probe", "read_audio_track", "read_frames", "read_frames_from", "resample_audio", "timed_frames", "timestamps"]
PathLike = str | os.PathLike[str]
_LONGEST_GAP = 60.0  # s; a longer jump of the timestamps is a break in the stream, not a held frame


@dataclass(frozen=True)
class VideoInfo:
    """What a video file declares.

    width, height: px as displayed (rotation and pixel aspect applied). fps: nominal frames per second.
    frames: count (of packets, where the container has none). duration: s. rotation: degrees
    counter-clockwise that were applied. sample_rate and channels are 0 without sound.
    """

    width: int
    height: int
    fps: float
    frames: int
    duration: float
    rotation: int
    has_audio: bool
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    audio_codec: str = ""
    sample_rate: int = 0
    channels: int = 0
    audio_duration: float = 0.0


def probe(path: PathLike) -> VideoInfo:
    """What the file declares, after decoding its first frame. Raises InputError when it is no readable video."""
    with _open(path) as source:
        stream = source.streams.video[0]
        frame = next(decode(source, stream, path), None)
        if frame is None:
            raise InputError(f"{path} contains no frame that can be decoded; export it again as H.264 mp4")
        height, width = _rgb(frame, stream).shape[:2]
        fps = float(_rate(stream))
        duration = _seconds(stream.duration, stream.time_base) or _picture_length(path, _seconds(source.duration, Fraction(1, 1000000))) or stream.frames / fps
        audio = source.streams.audio[0] if source.streams.audio else None
        return VideoInfo(
            width, height, fps, stream.frames or max(1, len(timestamps(path))), duration or 1 / fps, int(frame.rotation) % 360,
            audio is not None, source.format.name, stream.codec_context.name, frame.format.name, audio.codec_context.name if audio else "",
            int(audio.rate or 0) if audio else 0, int(audio.channels or 0) if audio else 0,
            _seconds(audio.duration, audio.time_base) if audio else 0.0)


def _picture_length(path: PathLike, declared: float) -> float:
    """How long the picture is (s) in a container that declares the length of all streams only: as declared, but for a whole file whose sound is longer."""
    ends, first = {"video": 0.0, "audio": 0.0}, None
    with _open(path) as source:
        for packet in source.demux(source.streams.video[0], *source.streams.audio[:1]):
            if packet.pts is not None and packet.size:
                begin = float(packet.pts * packet.time_base)
                first = begin if first is None and packet.stream.type == "video" else first
                ends[packet.stream.type] = max(ends[packet.stream.type], begin + float((packet.duration or 0) * packet.time_base))
    whole = max(ends.values()) >= declared - 0.5
    return ends["video"] - (first or 0.0) if whole else declared


def timestamps(path: PathLike) -> np.ndarray:
    """Presentation times (N,) float64, s from the first frame, sorted, read without decoding (packets without one are left out)."""
    with _open(path) as source:
        stream = source.streams.video[0]
        times = np.sort([float(p.pts * p.time_base) for p in source.demux(stream) if p.pts is not None and p.size])
    return times - times[0] if len(times) else np.zeros(0)


def read_frames(path: PathLike, fps: float | None = None, grey: bool = False) -> Iterator[np.ndarray]:
    """Stream the frames of a video, (H,W,3) uint8 RGB, or (H,W) with `grey`; upright, square pixels.

    With `fps`, frame i is the one on screen at i / fps, where a frame counts as on screen from half a period
    (the shorter of its own and 1 / fps) early, so that jitter of timestamps changes nothing and a faster
    constant rate gives the nearest frame; a frame is repeated or left out as needed. Raises InputError when the file is no readable video.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"frames per second must be positive, not {fps}")
    with _open(path) as source:
        stream = source.streams.video[0]
        if fps is None:
            chosen = ((frame, 1) for frame in decode(source, stream, path))
        else:
            chosen = _choose(_timed(decode(source, stream, path), stream), fps, 1 / float(_rate(stream)))
        empty = True
        for frame, count in chosen:
            empty = False
            image = _luma(frame, stream) if grey else _rgb(frame, stream)
            for _ in range(count):
                yield image
        if empty:
            raise InputError(f"{path} contains no frame that can be decoded; export it again as H.264 mp4")


def picked_frames(path: PathLike, wanted: Collection[int], grey: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """(index, frame) of the wanted stored frames, rising, frames like `read_frames` without fps; the others are decoded but not converted."""
    last, wanted = max(wanted, default=-1), set(wanted)
    if last < 0:
        return
    with _open(path) as source:
        stream = source.streams.video[0]
        for index, frame in enumerate(decode(source, stream, path)):
            if index in wanted:
                yield index, _luma(frame, stream) if grey else _rgb(frame, stream)
            if index == last:
                return


def timed_frames(path: PathLike) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the first, frame) of every frame as it was recorded, rising; frames like `read_frames` without fps."""
    with _open(path) as source:
        stream = source.streams.video[0]
        empty = True
        for frame, when in _timed(decode(source, stream, path), stream):
            empty = False
            yield when, _rgb(frame, stream)
        if empty:
            raise InputError(f"{path} contains no frame that can be decoded; export it again as H.264 mp4")


def frame_times(path: PathLike) -> np.ndarray:
    """When each frame of `timed_frames` is shown, (N,) float64 s from the first; frames are decoded but not converted."""
    with _open(path) as source:
        stream = source.streams.video[0]
        return np.array([when for _, when in _timed(decode(source, stream, path), stream)])


def read_frames_from(path: PathLike, fps: float, start: int) -> Iterator[np.ndarray]:
    """The frames of `read_frames(path, fps)` from number `start` on, found through a key frame before it where the file allows it."""
    with _open(path) as source:
        stream = source.streams.video[0]
        first = next(decode(source, stream, path), None)
        if first is not None and first.pts is not None and start > 0:
            zero = float(first.pts * first.time_base)
            source.seek(max(0, int((zero + start / fps - 1.0) / stream.time_base)), stream=stream)
            timed = ((f, float(f.pts * f.time_base) - zero) for f in decode(source, stream, path) if f.pts is not None)
            held = next(timed, None)
            if held is not None and 0 <= held[1] <= start / fps - 0.5 / fps:
                period = 1 / float(_rate(stream))
                index = max(0, math.ceil((held[1] - 0.5 * min(period, 1 / fps) - 1e-6) * fps - 1e-9))
                for frame, count in _choose(chain([held], timed), fps, period, index):
                    index += count
                    if index > start:
                        image = _rgb(frame, stream)
                        for _ in range(min(count, index - start)):
                            yield image
                return
    yield from islice(read_frames(path, fps), start, None)


def load_video(path: PathLike, fps: float | None = None, grey: bool = False) -> np.ndarray:
    """All frames in memory, (T,H,W,3) uint8 (`grey`: (T,H,W)). For subject-sized video; see `read_frames`."""
    return np.stack(list(read_frames(path, fps, grey)))


def read_audio_track(path: PathLike, rate: int = AUDIO_RATE, duration: float | None = None) -> np.ndarray | None:
    """The sound of a video, float32 mono (mean of channels) at `rate`, sample 0 at the first video frame; None without sound.

    Sound that starts later or has holes is padded with zeros there, sound from before the first frame is cut.
    With `duration` (s) the result has exactly round(duration · rate) samples. Values that are not finite become 0.
    """
    with _open(path) as source:
        if not source.streams.audio:
            return None
        frame = next(decode(source, source.streams.video[0], path), None)
        start = 0.0 if frame is None or frame.pts is None else float(frame.pts * frame.time_base)
    with _open(path) as source:
        stream = source.streams.audio[0]
        own_rate, pieces, filled = int(stream.rate), [], 0
        for samples, when in sound_blocks(source, stream, path):
            at = filled if when is None else round((when - start) * own_rate)
            if filled and abs(at - filled) <= 0.03 * own_rate:
                at = filled  # rounding of timestamps, not a hole
            if at > filled:
                pieces.append(np.zeros(at - filled, np.float32))
            piece = samples[max(0, filled - at) :]
            pieces.append(piece)
            filled = max(filled, at) + len(piece)
    sound = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    sound = resample_audio(np.nan_to_num(sound, nan=0.0, posinf=0.0, neginf=0.0), own_rate, rate)
    return sound if duration is None else fit_length(sound, round(duration * rate))


def crop_square(frame: np.ndarray, x: float, y: float, side: float, size: int) -> np.ndarray:
    """The square [x, x+side) × [y, y+side) px of a frame (H,W[,C]) uint8 as (size,size[,C]); antialiased.

    x, y and side are rounded to whole px, so that point p lands at (p − [x, y]) · size / side (centres at +0.5).
    Outside the frame its edge is repeated.
    """
    import cv2

    x, y, side = int(round(x)), int(round(y)), max(1, int(round(side)))
    height, width = frame.shape[:2]
    left, top, right, bottom = max(0, -x), max(0, -y), max(0, x + side - width), max(0, y + side - height)
    if max(left, right) >= side or max(top, bottom) >= side:
        raise ValueError(f"the crop at ({x}, {y}) with side {side} lies outside the {width}x{height} frame")
    part = frame[max(0, y) : y + side, max(0, x) : x + side]
    if left or top or right or bottom:
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_REPLICATE)
    if side == size:
        return np.ascontiguousarray(part)
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if size < side else cv2.INTER_CUBIC)


def _open(path: PathLike) -> Any:
    """An open PyAV container with a moving picture in it; raises InputError with the reason otherwise."""
    import av

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; give the path of a video")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or export it again")
    try:
        source = av.open(str(path), metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path} is not a readable video ({reason(error)}); export it again as H.264 mp4") from None
    name = source.format.name
    still = name.endswith("_pipe") or name in ("image2", "tty") or all("attached_pic" in str(s.disposition) for s in source.streams.video)
    if still or not source.streams.video[0].codec_context:
        source.close()
        raise InputError(f"{path} has no moving picture in it ({name}); give a video of a talking face, for example an mp4")
    source.streams.video[0].thread_type = "AUTO"
    return source


def _timed(frames: Iterator[Any], stream: Any) -> Iterator[tuple[Any, float]]:
    """(frame, seconds from the first frame), rising: missing timestamps are filled in, breaks closed."""
    period = 1 / float(_rate(stream))
    previous, shift = -period, None
    for frame in frames:
        stamp = frame.pts if frame.pts is not None else frame.dts
        own = None if stamp is None else float(stamp * frame.time_base)
        if own is None:
            when = previous + period
        else:
            shift = own if shift is None else shift
            when = own - shift
            if not 0 < when - previous <= _LONGEST_GAP + period:
                shift, when = own - previous - period, previous + period
        previous = when
        yield frame, when


def _choose(frames: Iterator[tuple[Any, float]], fps: float, period: float, index: int = 0) -> Iterator[tuple[Any, int]]:
    """How often each timed frame is shown at a constant rate; frames that are never shown are left out. index: what the first one is shown as."""
    early = 0.5 * min(period, 1 / fps) + 1e-6
    held, at = None, 0.0
    for frame, when in frames:
        if held is not None:
            count = max(0, math.ceil((when - early) * fps - 1e-9) - index)
            if count:
                yield held, count
            index += count
        held, at = frame, when
    if held is not None:
        count = math.ceil((at + period - early) * fps - 1e-9) - index
        if index == 0 or count > 0:
            yield held, max(1, count)


def _rate(stream: Any) -> Fraction:
    """Nominal frame rate; 25 where the file declares none or nonsense."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 1 <= rate <= 1000:
            return rate
    return Fraction(25)


def _matrix(frame: Any) -> int:
    """The YUV matrix to decode with: as tagged, else BT.601 for standard definition and BT.709 above, as players do."""
    tagged = int(frame.colorspace)
    if tagged in (1, 4, 5, 7, 9):
        return tagged
    if tagged == 6:
        return 5  # SMPTE 170M has the coefficients of BT.601
    return 9 if tagged == 10 else 1 if max(frame.width / 16, frame.height / 9) >= 80 else 5


def _rgb(frame: Any, stream: Any) -> np.ndarray:
    """(H,W,3) uint8 RGB, upright, square pixels."""
    full = 2 if frame.format.name.startswith("yuvj") or int(frame.color_range) == 2 else 1
    planes = frame.format.name
    conversion = {} if planes.startswith(("rgb", "bgr", "gbr", "pal")) else {"src_colorspace": _matrix(frame), "src_color_range": full, "dst_color_range": 2}
    image = frame.reformat(format="rgb24", width=_display_width(frame, stream), interpolation=scaling(), threads=1, **conversion).to_ndarray()
    return _upright(image, frame)


def _luma(frame: Any, stream: Any) -> np.ndarray:
    """(H,W) uint8 grey, full range, upright, square pixels."""
    full = 2 if frame.format.name.startswith("yuvj") or int(frame.color_range) == 2 else 1
    if frame.format.name == "gray" and full == 2 and _display_width(frame, stream) == frame.width:
        return _upright(frame.to_ndarray(), frame)
    image = _rgb(frame, stream).astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    return np.rint(image).astype(np.uint8)


def _display_width(frame: Any, stream: Any) -> int:
    aspect = stream.sample_aspect_ratio
    return frame.width if not aspect or abs(aspect - 1) < 0.01 or not 0.2 < aspect < 5 else round(frame.width * aspect)


def _upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """Apply the display matrix (quarter turns and mirrors; ISO 14496-12: x' = a·x + c·y, y' = b·x + d·y)."""
    side = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if side is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(side), np.int32)[:5]
    swap = abs(b) > abs(a)
    if swap:
        image = image.swapaxes(0, 1)
    x, y = (c, b) if swap else (a, d)
    return np.ascontiguousarray(image[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


def _seconds(value: int | None, base: Fraction | None) -> float:
    return float(value * base) if value and base and value > 0 else 0.0
