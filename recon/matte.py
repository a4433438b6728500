"""Person mattes from MediaPipe's selfie segmentation with edges refined by colour, and the background plate behind the person."""

from __future__ import annotations

import weakref
from typing import Iterable, Iterator

import numpy as np
from numba import njit

from recon.assets import asset
from recon.landmarks import quiet_native_log, without_del

PLATE_FRAMES = 160  # frames looked at for the plate; more change nothing visible
_BACKGROUND, _EMPTY = 0.25, 0.02  # a matte below the first is background where nothing of the person is near, below the second anywhere
_CLEAR, _CLOSE = 0.02, 0.008  # distances to the person, shares of the width


class Matter:
    """Soft person masks with the Apache-2.0 selfie segmentation network (256 px input) on the CPU.

    `steadiness` is the weight of the previous mask where the two nearly agree; edges that moved are not delayed.
    `refine`: let the colours around the edge decide where it runs (`EdgeRefiner`).
    """

    def __init__(self, steadiness: float = 0.5, refine: bool = True) -> None:
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=asset("selfie_segmentation.tflite").read_bytes()),
            running_mode=vision.RunningMode.IMAGE, output_confidence_masks=True, output_category_mask=False)
        self.steadiness, self.refine = steadiness, refine
        with quiet_native_log():
            self.network = vision.ImageSegmenter.create_from_options(options)
            self.network.__class__ = without_del(vision.ImageSegmenter)
            weakref.finalize(self, self.network.close).atexit = False

    def stream(self, frames: Iterable[np.ndarray], clip_starts: Iterable[int] = (0,)) -> Iterator[np.ndarray]:
        """(H,W,3) uint8 frames → (H,W) uint8 mattes, person 255; nothing is carried across a clip start."""
        return self.refined(self.masks(frames), clip_starts)

    def masks(self, frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames (H,W,3) uint8, each with the network's mask (H,W) float32 in [0,1]. This half of `stream` may run in a thread beside the other."""
        import mediapipe

        for frame in frames:
            result = self.network.segment(mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame)))
            yield frame, np.squeeze(result.confidence_masks[-1].numpy_view()).astype(np.float32)

    def refined(self, masks: Iterable[tuple[np.ndarray, np.ndarray]], clip_starts: Iterable[int] = (0,)) -> Iterator[np.ndarray]:
        """What `masks` gives → (H,W) uint8 mattes, steadied over time."""
        starts = set(clip_starts)
        previous, alpha, refiner = None, None, EdgeRefiner()
        for index, (frame, mask) in enumerate(masks):
            if index in starts:
                previous, alpha, refiner = None, None, EdgeRefiner()
            previous = self._steadied(mask, previous)
            alpha = self._steadied(refiner(frame, previous), alpha) if self.refine else sharpen(previous)
            yield np.round(255 * alpha).astype(np.uint8)

    def _steadied(self, mask: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
        """A mask drawn towards the previous one where they nearly agree: small differences are flicker, large ones the person moving."""
        if previous is None:
            return mask
        out = np.empty_like(mask)
        _steady(mask, previous, self.steadiness, out)
        return out

    def matte(self, frames: np.ndarray, clip_starts: Iterable[int] = (0,)) -> np.ndarray:
        """(T,H,W,3) uint8 → (T,H,W) uint8."""
        return np.stack(list(self.stream(frames, clip_starts)))


class EdgeRefiner:
    """Alpha in the band around the edge of a soft mask, from colours: strands of hair return, and rims of background go.

    In the band a pixel I is taken as alpha·F + (1 − alpha)·B, with F the mean of the sure foreground nearby and B the empty
    scene as far as earlier frames have shown it, else the mean of the sure background nearby; alpha is the projection onto
    that line (as in Chuang et al. 2001, section 4.2). The network keeps the say where F and B are alike, where I lies off the line, and where
    I is as well explained as F in more or less light: shading darkens a neck towards its outline, too. Call it
    with successive frames of one clip.
    """

    BAND, NOISE = 0.008, 10.0  # share of the width; deviation of 8-bit colours
    SHADE, RIM, MEMORY = (0.5, 1.15), 0.06, 30  # light that F may see; alpha that noise may fake; frames of the running mean of B

    def __init__(self) -> None:
        self._plate: np.ndarray | None = None
        self._seen = np.zeros((0, 0), np.float32)
        self._index = 0

    def __call__(self, frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 and the network's mask (H,W) float32 in [0,1] → alpha (H,W) float32."""
        import cv2

        height, width = mask.shape
        reach = max(1, round(self.BAND * width))
        box = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        inside = cv2.erode(cv2.compare(mask, 0.95, cv2.CMP_GT), box)
        outside = 255 - cv2.dilate(cv2.compare(mask, 0.05, cv2.CMP_GT), box)
        half = (max(1, width // 2), max(1, height // 2))
        small, front, behind = (cv2.resize(image, half, interpolation=cv2.INTER_AREA) for image in (frame, inside, outside))
        small = small.astype(np.float32)
        seen = self._remember(small, behind == 255)
        counted = cv2.merge([*cv2.split(small), np.ones(small.shape[:2], np.float32)])
        out = (inside > 0).astype(np.float32)
        _project(frame, mask, inside, outside, *_around(counted, front), *_around(counted, behind), self._plate, seen, self.NOISE, self.SHADE, self.RIM, out)
        return out

    def _remember(self, small: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Take the free pixels of every third frame into the running plate; returns how well each pixel of it is known, (h,w) in [0,1]."""
        if self._plate is None:
            self._plate, self._seen = np.zeros_like(small), np.zeros(free.shape, np.float32)
        if self._index % 3 == 0:
            self._seen += free
            self._plate += (free / np.clip(self._seen, 1, self.MEMORY))[..., None] * (small - self._plate)
        self._index += 1
        return np.minimum(self._seen / 4, 1)


@njit(cache=True, nogil=True)
def _steady(mask: np.ndarray, previous: np.ndarray, steadiness: float, out: np.ndarray) -> None:
    """`Matter._steadied` for contiguous float32 (H,W)."""
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            change = previous[i, j] - mask[i, j]
            out[i, j] = mask[i, j] + np.float32(steadiness) * max(np.float32(0), 1 - abs(change) / np.float32(0.25)) * change


def _around(counted: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums near each place of the pixels (h,w,4), colour and 1, whose share (h,w) uint8 is 255, and the same of further ones (h/2,w/2,4)."""
    import cv2

    twice = np.array([1, 2, 3, 2, 1], np.float32) / 9  # a box of three, twice; a tenth of the time that cv2.blur takes
    near = cv2.sepFilter2D(cv2.copyTo(counted, cv2.compare(share, 255, cv2.CMP_EQ)), -1, twice, twice)
    coarse = cv2.resize(near, (max(1, near.shape[1] // 2), max(1, near.shape[0] // 2)), interpolation=cv2.INTER_AREA)
    return near, cv2.blur(cv2.blur(coarse, (9, 9)), (9, 9))


def sharpen(mask: np.ndarray) -> np.ndarray:
    """Stretch a soft mask (values in [0,1]) so that confident pixels reach 0 and 1: a smooth step over [0.15, 0.85]."""
    x = np.minimum(np.maximum((mask - 0.15) / 0.7, 0), 1)  # np.clip of one value is not known to numba
    return x * x * (3 - 2 * x)


_sharpen = njit(nogil=True)(sharpen)  # of one value, inside kernels


@njit(cache=True, nogil=True)
def _project(frame: np.ndarray, mask: np.ndarray, inside: np.ndarray, outside: np.ndarray, front: np.ndarray, front_far: np.ndarray, behind: np.ndarray,
             behind_far: np.ndarray, plate: np.ndarray, seen: np.ndarray, noise: float, shade: tuple[float, float], rim: float, out: np.ndarray) -> None:
    """Alpha of `EdgeRefiner` into out (H,W) where a pixel is neither inside nor outside; mask (H,W): the network's, the rest: see there and `_around`."""
    F, B = np.empty(3), np.empty(3)
    for y in range(frame.shape[0]):
        for x in range(frame.shape[1]):
            if inside[y, x] or outside[y, x]:
                continue
            guess = _sharpen(mask[y, x])
            v, u = min(y // 2, front.shape[0] - 1), min(x // 2, front.shape[1] - 1)
            fv, fu = min(v // 2, front_far.shape[0] - 1), min(u // 2, front_far.shape[1] - 1)
            in_front = front[v, u, 3] + 0.01 * front_far[fv, fu, 3]
            at_back = behind[v, u, 3] + 0.01 * behind_far[fv, fu, 3]
            known = seen[v, u]
            if in_front <= 1e-7 or (at_back <= 1e-7 and known <= 0.5):
                out[y, x] = guess
                continue
            length, along, lit, own = 1e-3, 0.0, 0.0, 1e-3
            for c in range(3):
                F[c] = (front[v, u, c] + 0.01 * front_far[fv, fu, c]) / (in_front + 1e-9)
                B[c] = (behind[v, u, c] + 0.01 * behind_far[fv, fu, c]) / (at_back + 1e-9)
                B[c] += known * (plate[v, u, c] - B[c])
                length += (F[c] - B[c]) ** 2
                along += (frame[y, x, c] - B[c]) * (F[c] - B[c])
                lit += frame[y, x, c] * F[c]
                own += F[c] * F[c]
            alpha, light = min(max(along / length, 0.0), 1.0), min(max(lit / own, shade[0]), shade[1])
            off_line, off_shade = 0.0, 0.0
            for c in range(3):
                off_line += (frame[y, x, c] - B[c] - alpha * (F[c] - B[c])) ** 2
                off_shade += (frame[y, x, c] - light * F[c]) ** 2
            off_line, off_shade = np.sqrt(off_line), np.sqrt(off_shade)
            trust = length / (length + (4 * noise) ** 2) * np.exp(-((off_line / (3 * noise)) ** 2))
            if alpha < 1:
                trust *= min(max((off_shade - off_line) / noise, 0.0), 1.0)
            out[y, x] = guess + trust * (min(max((alpha - rim) / (1 - 2 * rim), 0.0), 1.0) - guess)


def background_plate(frames: np.ndarray, mattes: np.ndarray) -> np.ndarray:
    """The empty scene (H,W,3) uint8 behind a person, from frames (T,H,W,3) and mattes (T,H,W), both uint8.

    Median over the frames in which a pixel and its surroundings are background; where the person always
    stood the plate is continued smoothly from its known surroundings, without a ghost of the person.
    """
    pick = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), PLATE_FRAMES)).astype(int))
    plate, known = np.zeros(frames.shape[1:], np.float32), np.zeros(frames.shape[1:3], bool)
    # Well clear of the person first; a speaker who hardly moves never frees the rest of the rim, where close by is better than a guess.
    for margin, threshold in ((_CLEAR, _BACKGROUND), (_CLOSE, _EMPTY)):
        free = np.stack([_clear_of_person(mattes[i], margin, threshold) for i in pick])
        count = free.sum(0)
        new = _often_enough(count, len(pick)) & ~known
        for row in np.flatnonzero(new.any(1)):  # a row at a time keeps the masked float copy small
            at = np.flatnonzero(new[row])
            values, seen = frames[pick, row][:, at].astype(np.float32), free[:, row][:, at, None]
            plate[row, at] = np.nanmedian(np.where(seen, values, np.nan), axis=0)
        known |= new
    return np.clip(np.round(fill_smoothly(plate, known)), 0, 255).astype(np.uint8)


def seen_background(mattes: np.ndarray) -> np.ndarray:
    """Where (H,W) bool the background was seen in enough of the mattes (T,H,W) uint8 for a plate; elsewhere a plate is a guess."""
    return np.logical_or.reduce([_often_enough(np.sum([_clear_of_person(m, *kind) for m in mattes], axis=0), len(mattes))
                                 for kind in ((_CLEAR, _BACKGROUND), (_CLOSE, _EMPTY))])


def _often_enough(count: np.ndarray, frames: int) -> np.ndarray:
    """Where a pixel was free in enough of so many frames; one or two frames may be the network's mistake."""
    return count >= max(2, 0.03 * frames) if frames > 2 else count > 0


def _clear_of_person(matte: np.ndarray, margin: float, threshold: float) -> np.ndarray:
    """Where (H,W) bool neither the pixel nor anything within `margin` of the width has a matte of `threshold` or more."""
    import cv2

    reach = max(1, round(margin * matte.shape[1]))
    return cv2.dilate(matte, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) < 255 * threshold


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
