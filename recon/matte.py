"""Person mattes from MediaPipe's selfie segmentation, and the background plate behind the person."""

from __future__ import annotations

import weakref
from typing import Iterable, Iterator

import numpy as np

from recon.assets import asset
from recon.landmarks import quiet_native_log, without_del

PLATE_FRAMES = 160  # frames looked at for the plate; more change nothing visible
_BACKGROUND = 0.25  # a matte below this is background


class Matter:
    """Soft person masks with the Apache-2.0 selfie segmentation network (256 px input) on the CPU.

    `steadiness` is the weight of the previous mask where the two nearly agree; edges that moved are not delayed.
    """

    def __init__(self, steadiness: float = 0.5) -> None:
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=asset("selfie_segmentation.tflite").read_bytes()),
            running_mode=vision.RunningMode.IMAGE, output_confidence_masks=True, output_category_mask=False)
        self.steadiness = steadiness
        with quiet_native_log():
            self.network = vision.ImageSegmenter.create_from_options(options)
            self.network.__class__ = without_del(vision.ImageSegmenter)
            weakref.finalize(self, self.network.close).atexit = False

    def stream(self, frames: Iterable[np.ndarray], clip_starts: Iterable[int] = (0,)) -> Iterator[np.ndarray]:
        """(H,W,3) uint8 frames → (H,W) uint8 mattes, person 255; nothing is carried across a clip start."""
        import mediapipe

        starts, previous = set(clip_starts), None
        for index, frame in enumerate(frames):
            result = self.network.segment(mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame)))
            mask = np.squeeze(result.confidence_masks[-1].numpy_view()).astype(np.float32)
            if previous is not None and index not in starts:
                # Small differences are flicker of the network, large ones are the person moving.
                keep = self.steadiness * np.clip(1 - np.abs(mask - previous) / 0.25, 0, 1)
                mask = mask + keep * (previous - mask)
            previous = mask
            yield np.round(255 * sharpen(mask)).astype(np.uint8)

    def matte(self, frames: np.ndarray, clip_starts: Iterable[int] = (0,)) -> np.ndarray:
        """(T,H,W,3) uint8 → (T,H,W) uint8."""
        return np.stack(list(self.stream(frames, clip_starts)))


def sharpen(mask: np.ndarray) -> np.ndarray:
    """Stretch a soft mask (values in [0,1]) so that confident pixels reach 0 and 1: a smooth step over [0.15, 0.85]."""
    x = np.clip((mask - 0.15) / 0.7, 0, 1)
    return x * x * (3 - 2 * x)


def background_plate(frames: np.ndarray, mattes: np.ndarray) -> np.ndarray:
    """The empty scene (H,W,3) uint8 behind a person, from frames (T,H,W,3) and mattes (T,H,W), both uint8.

    Median over the frames in which a pixel and its surroundings are background; where the person always
    stood the plate is continued smoothly from its known surroundings, without a ghost of the person.
    """
    pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), PLATE_FRAMES)).astype(int))
    free = np.stack([_clear_of_person(mattes[i]) for i in pick])
    count = free.sum(0)
    plate = np.zeros(frames.shape[1:], np.float32)
    for row in range(frames.shape[1]):  # a row at a time keeps the masked float copy small
        values = frames[pick, row].astype(np.float32)
        values[~free[:, row]] = np.nan
        seen = count[row] > 0
        if seen.any():
            plate[row, seen] = np.nanmedian(values[:, seen], axis=0)
    known = _often_enough(count, len(pick))
    return np.clip(np.round(fill_smoothly(plate, known)), 0, 255).astype(np.uint8)


def seen_background(mattes: np.ndarray) -> np.ndarray:
    """Where (H,W) bool the background was seen in enough of the mattes (T,H,W) uint8 for a plate; elsewhere a plate is a guess."""
    return _often_enough(np.sum([_clear_of_person(m) for m in mattes], axis=0), len(mattes))


def _often_enough(count: np.ndarray, frames: int) -> np.ndarray:
    """Where a pixel was free in enough of so many frames; one or two frames may be the network's mistake."""
    return count >= max(2, 0.03 * frames) if frames > 2 else count > 0


def _clear_of_person(matte: np.ndarray) -> np.ndarray:
    """Where (H,W) bool neither the pixel nor anything within about 2 % of the width belongs to the person."""
    import cv2

    reach = max(1, round(0.02 * matte.shape[1]))
    return cv2.dilate(matte, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) < 255 * _BACKGROUND


def fill_smoothly(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Continue an image (H,W,C) float into unknown pixels by pull-push over a pyramid (Gortler et al. 1996, section 3.4).

    known (H,W) bool. With nothing known the result is mid grey.
    """
    if known.all():
        return image
    if not known.any():
        return np.full_like(image, 127.5)
    return _pull_push(image * known[..., None], known.astype(np.float32)[..., None])


def _pull_push(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Premultiplied colour and weight → filled image; recursion over halved resolutions."""
    import cv2

    height, width = weight.shape[:2]
    if height <= 2 or width <= 2:
        return np.broadcast_to(colour.sum((0, 1)) / max(weight.sum(), 1e-6), colour.shape).astype(np.float32)
    half = (max(1, width // 2), max(1, height // 2))
    small = cv2.resize(colour, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], -1)
    small_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], 1)
    filled = _pull_push(small, small_weight)
    filled = np.where(small_weight > 1e-6, small / np.maximum(small_weight, 1e-6), filled)
    up = cv2.resize(cv2.GaussianBlur(filled.astype(np.float32), (3, 3), 0), (width, height), interpolation=cv2.INTER_LINEAR)
    own = colour / np.maximum(weight, 1e-6)
    share = np.clip(weight, 0, 1)
    return own * share + up.reshape(colour.shape) * (1 - share)
