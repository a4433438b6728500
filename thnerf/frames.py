"""Many frames in little memory: compressed in RAM, decoded when a step of training asks for their pixels."""

from __future__ import annotations

from typing import Sequence

import numpy as np

QUALITY = 97
"""JPEG quality of compressed pictures, without subsampling of colour: about 45 dB, far above what a render reaches."""
PNG_LEVEL = 1


class CompressedFrames:
    """Frames (N,H,W,3) as JPEG or (N,H,W) as PNG without loss, uint8; indexed like the array that they stand for, as far as training does.

    `frames[i]` is a frame, `frames[i] = frame` stores one, and `frames[i, v, u]` with equally long index arrays are pixels. Whatever order is asked
    for, the values are the same, so batches do not depend on how the frames are held.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(n) for n in shape)
        self._data: list[np.ndarray | None] = [None] * self.shape[0]

    def __len__(self) -> int:
        """How many frames there are."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that the compressed frames take."""
        return sum(0 if d is None else d.nbytes for d in self._data)

    def __setitem__(self, index: int, frame: np.ndarray) -> None:
        """Store one frame."""
        import cv2

        if len(self.shape) == 4:
            options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            self._data[index] = cv2.imencode(".jpg", frame[..., ::-1], options)[1]
        else:
            self._data[index] = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])[1]

    def __getitem__(self, key: int | tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """A frame, or pixels of several (see the class). Raises IndexError for a frame that was not stored."""
        if not isinstance(key, tuple):
            return self._decoded(int(key))
        index, v, u = (np.asarray(part) for part in key)
        out = np.empty((len(index), *self.shape[3:]), np.uint8)
        for i in np.unique(index):
            mine = index == i
            out[mine] = self._decoded(int(i))[v[mine], u[mine]]
        return out

    def _decoded(self, index: int) -> np.ndarray:
        import cv2

        data = self._data[index]
        if data is None:
            raise IndexError(f"frame {index} was not stored")
        if len(self.shape) == 4:
            return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def frame_memory(count: int, height: int, width: int, limit_mib: int) -> tuple[np.ndarray | CompressedFrames, np.ndarray | CompressedFrames]:
    """Room for pictures (count,height,width,3) and mattes (count,height,width): plain uint8 arrays where both fit into `limit_mib`, else compressed."""
    shapes = (count, height, width, 3), (count, height, width)
    if 4 * count * height * width <= limit_mib << 20:
        return np.empty(shapes[0], np.uint8), np.empty(shapes[1], np.uint8)
    return CompressedFrames(shapes[0]), CompressedFrames(shapes[1])
