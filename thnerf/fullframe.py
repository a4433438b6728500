"""The rendered crop back in its footage: source resolution and frame rate, a soft edge, and no jump where the footage runs out.

The crop is replaced as a whole, background plate included, so that nothing of the original head shows beside the new one. Its edge lies on
shoulders and background of the very same moment, which is why the head pose has to be the footage's own: with any other pose the shoulders
would break at the edge. Along that edge the drawn picture takes on the exposure of the footage. Speech that is longer than the footage plays it forward and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from recon.subject import Subject
from recon.track import Track, concatenate
from render.camera import Camera
from render.files import InputError
from render.video import probe, read_frames_from
from thnerf.exposure import exposed, match
from thnerf.synthesis import Renderer

FEATHER = 0.06
"""Width of the soft edge, in sides of the crop."""
LARGEST = 1024
"""The crop is rendered with at most this side, px, and enlarged beyond it."""
QUICK = 0.3
"""Part of the way that the drawn exposure goes to what one frame of footage asks for: noise would flicker."""
_BLOCK_BYTES = 2**28  # of decoded frames held while the footage plays backwards
_SAME = 1e-3  # rad and mm: poses that differ by less are the same


@dataclass(frozen=True)
class Clip:
    """One source file: frames [start, end) of the subject's track; its size and fps; the crop's corner and side, px."""

    path: Path
    start: int
    end: int
    width: int
    height: int
    fps: float
    x: int
    y: int
    side: int


def source_clips(subject: Subject, option: str = "--full-frame") -> list[Clip]:
    """The subject's clips with their files, for `option`. Raises InputError when a file is missing or no longer the one that was fitted."""
    clips = []
    for clip in subject.info.get("clips", []):
        path, crop = Path(clip["source"]), clip.get("crop") or subject.info["crop"]
        if not path.is_file():
            raise InputError(f"the footage {path} is not where it was when {subject.path} was fitted; put it back, or leave out {option}")
        info = probe(path)
        x, y, side = (int(crop[k]) for k in ("x", "y", "side"))
        if x + side > info.width or y + side > info.height:
            raise InputError(f"the footage {path} has {info.width}x{info.height} px, too few for the crop of {subject.path}; it was replaced, so fit it again")
        clips.append(Clip(path, int(clip["start"]), int(clip["end"]), info.width, info.height, info.fps, x, y, side))
    if not clips:
        raise InputError(f"{subject.path} does not say which footage it was fitted from; leave out {option}")
    return clips


def back_and_forth(count: int, length: int) -> np.ndarray:
    """(count,) int: 0, 1, … length−1, length−2, … 1, 0, 1, …"""
    last = max(length - 1, 0)
    return np.zeros(count, int) if last == 0 else np.abs((np.arange(count) + last) % (2 * last) - last)


def with_source_pose(track: Track, footage: Track, clip: Clip) -> tuple[Track, np.ndarray]:
    """A spoken track (at clip.fps) with pose, shoulders and gaze of a clip of the footage's track played forward and back; and the source frame of each of its frames."""
    source = footage[clip.start : clip.end].resample(clip.fps)
    index = back_and_forth(len(track), len(source))
    return track.replace(rotation=source.rotation[index], translation=source.translation[index], torso=source.torso[index], gaze=source.gaze[index],
                         camera=source.camera.at(index), clip_starts=(0,)), index


def own_pose(track: Track, *footage: Track) -> None:
    """Raises InputError unless the track has the head poses of the footage, frame by frame, as one of its tracks says they are."""
    alike = lambda own: len(track) == len(own) and track.fps == own.fps and max(np.abs(track.rotation - own.rotation).max(), np.abs(track.translation - own.translation).max()) <= _SAME  # noqa: E731
    if not any(alike(own) for own in footage):
        raise InputError("--full-frame needs a track whose head moves as in the footage, frame by frame; keep its rotation and translation, or leave out --full-frame")


def frames_in_order(path: Path, fps: float, index: Sequence[int], frame_bytes: int) -> Iterator[np.ndarray]:
    """Frames (H,W,3) uint8 of a video by number, in an order that runs forwards or backwards by single steps, a few in memory at a time."""
    held: dict[int, np.ndarray] = {}
    block = max(2, _BLOCK_BYTES // max(frame_bytes, 1))
    ahead: Iterator[np.ndarray] = iter(())
    following, last = -1, None
    for number in (int(n) for n in index):
        if number in held:
            picture = held[number]
        elif number == following:
            picture = next(ahead, last)
            following += 1
        elif following < 0 or number > following:
            ahead = read_frames_from(path, fps, number)
            picture = next(ahead, last)
            following = number + 1
        else:
            first = max(0, number - block + 1)
            frames = read_frames_from(path, fps, first)
            held = {n: f for n, f in zip(range(first, number + 1), frames)}
            picture, following = held.get(number, last), number + 1
            ahead = frames
        if picture is None:
            raise InputError(f"{path} has fewer frames than its fit; it was replaced, so fit it again")
        last = picture
        yield picture


def soft_edge(clip: Clip, feather: float = FEATHER) -> np.ndarray:
    """(side,side,1) float32: 1 inside the crop, falling smoothly to 0 at those of its edges that lie inside the frame."""
    reach = max(1.0, feather * clip.side)
    at = np.arange(clip.side) + 0.5

    def ramp(low: bool, high: bool) -> np.ndarray:
        t = np.minimum(np.where(low, at / reach, 1), np.where(high, (clip.side - at) / reach, 1)).clip(0, 1)
        return t * t * (3 - 2 * t)

    across = ramp(clip.x > 0, clip.x + clip.side < clip.width)
    down = ramp(clip.y > 0, clip.y + clip.side < clip.height)
    return (down[:, None] * across)[..., None].astype(np.float32)


class PastedRenderer:
    """A Renderer of whole frames: those of `sources`, in order, with the crop of each clip drawn by `renderer`.

    track: in the fitted camera. owners (T,): which of `clips` each frame belongs to.
    """

    def __init__(self, renderer: Renderer, track: Track, clips: Sequence[Clip], owners: np.ndarray, sources: Iterator[np.ndarray]) -> None:
        self.renderer, self.clips, self.owners, self.sources = renderer, clips, owners, sources
        self.masks = [soft_edge(c) for c in clips]
        self.track, self.next, self.code = track, 0, np.zeros((2, 3), np.float32)

    def frame(self, track: Track, index: int, background: np.ndarray | None = None) -> np.ndarray:
        """Frame `index` (H,W,3) float32; frames are asked for in order. Raises ValueError otherwise."""
        import cv2

        if index != self.next:
            raise ValueError(f"frame {index} was asked for, {self.next} is next")
        self.next += 1
        clip = self.clips[self.owners[index]]
        x, y, width, height = self.region(index)
        scale = min(1.0, LARGEST / clip.side)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        part = self.track[index : index + 1]
        view = part.camera.resized(clip.side, clip.side)
        view = Camera(np.array([[1.0, 0, -x], [0, 1, -y], [0, 0, 1]]) @ view.K, view.world_to_camera, width, height)
        drawn = self.renderer.frame(part.replace(camera=view.resized(*size)), 0)
        if size != (width, height):
            drawn = cv2.resize(drawn, (width, height), interpolation=cv2.INTER_CUBIC)
        out = next(self.sources).astype(np.float32) / 255
        self.paste(out[clip.y + y : clip.y + y + height, clip.x + x : clip.x + x + width], drawn, index)
        return out[: track.camera.height, : track.camera.width]

    def region(self, index: int) -> tuple[int, int, int, int]:
        """What of the crop is drawn anew: x, y, width, height in px of the crop as it lies in the footage."""
        side = self.clips[self.owners[index]].side
        return 0, 0, side, side

    def paste(self, window: np.ndarray, drawn: np.ndarray, index: int) -> None:
        """Blend `drawn` into `window`, that region of the frame, in place; both (height,width,3) float32."""
        owner = self.owners[index]
        mask, code = self.masks[owner], match(drawn, window, self.masks[owner][..., 0])
        self.code = code if index == 0 or owner != self.owners[index - 1] else self.code + QUICK * (code - self.code)
        window += mask * (exposed(drawn, self.code) - window)

    def frame_rgba(self, track: Track, index: int) -> np.ndarray:
        """A whole frame is opaque: alpha 1."""
        picture = self.frame(track, index)
        return np.concatenate([picture, np.ones_like(picture[..., :1])], -1)


def whole_frames(renderer: Renderer, track: Track, clips: Sequence[Clip], pieces: Sequence[tuple[int, np.ndarray]]) -> tuple[PastedRenderer, Track]:
    """Put a track into its footage. pieces: (which clip, its source frames), one after another, as many frames as the track has.

    Returns the renderer and the track with the camera of the whole frame. Raises InputError when the clips differ in size.
    """
    width, height = clips[pieces[0][0]].width, clips[pieces[0][0]].height
    if any((clips[k].width, clips[k].height) != (width, height) for k, _ in pieces):
        raise InputError("the subject's clips differ in picture size, so they make no single video; render them one by one")
    first, camera = clips[pieces[0][0]], track.camera
    shift = np.array([[1.0, 0, first.x], [0, 1, first.y], [0, 0, 1]])
    whole = Camera(shift @ camera.resized(first.side, first.side).K, camera.world_to_camera, width - width % 2, height - height % 2)

    def sources() -> Iterator[np.ndarray]:
        for k, index in pieces:
            yield from frames_in_order(clips[k].path, clips[k].fps, index, 3 * width * height)

    owners = np.concatenate([np.full(len(index), k) for k, index in pieces])
    return PastedRenderer(renderer, track, clips, owners, sources()), track.replace(camera=whole)


def own_footage(track: Track, clips: Sequence[Clip]) -> tuple[Track, list[tuple[int, np.ndarray]]]:
    """A track of the footage's own poses at the footage's frame rate (the first clip's), and the source frames that go with it."""
    fps = clips[0].fps
    if any(abs(c.fps - fps) > 0.01 for c in clips):
        raise InputError("the subject's clips differ in frame rate, so they make no single video; render them one by one")
    parts = [track[c.start : c.end].resample(fps) for c in clips]
    return concatenate(parts), [(k, np.arange(len(part))) for k, part in enumerate(parts)]
