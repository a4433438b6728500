"""Frames to a file of the kind its name says: mp4, ProRes 4444 with alpha, or a numbered sequence of PNG or EXR pictures.

`open_output` gives a context manager whose `write` takes (H,W,3) or (H,W,4) float32 in [0,1]: display-coded (sRGB) RGB, not
premultiplied, and alpha. What reaches the disk:

| name | content | alpha |
|---|---|---|
| `x.mp4` | H.264, 8 bit 4:2:0, AAC sound | none |
| `x.mov` | ProRes 4444, 10 bit 4:4:4, PCM sound | straight |
| `x/%05d.png`, or a folder | 8 bit sRGB pictures, the first is number 1 | straight |
| `x/%05d.exr` | 32 bit float, linear light of Rec. 709 primaries, ZIP | premultiplied, as OpenEXR wants it |

All or nothing: on an error an earlier file or sequence stays as it was.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from render.encode import SYNTHETIC, VideoWriter, xmp_packet
from render.exr import write_exr
from render.files import InputError, StageError, write_failure
from render.light import linear
from render.sound import AUDIO_RATE, scaling

_NUMBER = re.compile(r"%0?(\d?)d")
KINDS = {".mp4": "mp4", ".mov": "mov", ".png": "png", ".exr": "exr"}


def output_kind(path: str | os.PathLike[str]) -> str:
    """'mp4', 'mov', 'png' or 'exr' by the name; a folder (or a name without an ending) is a PNG sequence.

    Raises InputError for other endings, for a sequence whose name has no number, and for a video name that has one.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return "png"
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"the output must end in .mp4, .mov, .png or .exr, or be a folder for PNG pictures, not {path.name!r}")
    numbers = len(_NUMBER.findall(path.name))
    if kind in ("png", "exr") and numbers != 1:
        raise InputError(f"a sequence of pictures needs one number in its name, for example {path.stem.replace('%', '')}/%05d{path.suffix}")
    return kind


def has_alpha(path: str | os.PathLike[str]) -> bool:
    """Whether an output of that name can be transparent."""
    return output_kind(path) != "mp4"


def open_output(path: str | os.PathLike[str], width: int, height: int, fps: float, audio: Any = None, synthetic: bool = False, numbers: bool = False,
                times: np.ndarray | None = None) -> Any:
    """A writer for `path` (see the module text), not yet entered. audio: as of `VideoWriter`; sequences have none.

    numbers: EXR frames (H,W,1 to 4) are no colours but numbers, written as they are. times (T,): when each frame of a video is shown, s, where
    it is not at a constant rate; pictures carry no times.

    Raises InputError for a name that says no kind.
    """
    kind = output_kind(path)
    if kind in ("png", "exr"):
        return SequenceWriter(path, width, height, fps, synthetic, numbers)
    return (Mp4Writer if kind == "mp4" else ProResWriter)(path, width, height, fps, audio=audio, synthetic=synthetic, times=times)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(H,W,C) float in [0,1] → uint8, rounded; values outside are clipped, NaN is black."""
    return (np.nan_to_num(np.clip(image, 0, 1)) * 255 + 0.5).astype(np.uint8)


class Mp4Writer:
    """`VideoWriter` for float frames."""

    def __init__(self, path: Any, width: int, height: int, fps: float, audio: Any = None, synthetic: bool = False, times: np.ndarray | None = None) -> None:
        from render import video

        self.inner = video.VideoWriter(path, width, height, fps, audio=audio, synthetic=synthetic, times=times)

    def __enter__(self) -> "Mp4Writer":
        self.inner.__enter__()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame (H,W,3) float32 in [0,1]."""
        self.inner.write(to_uint8(frame))

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)


class ProResWriter(VideoWriter):
    """ProRes 4444 with alpha (10 bit 4:4:4:4, BT.709) and 16-bit PCM sound in a QuickTime movie. Frames (H,W,3|4) float32 in [0,1], straight alpha."""

    def __init__(self, path: Any, width: int, height: int, fps: float, audio: Any = None, synthetic: bool = False, times: np.ndarray | None = None) -> None:
        super().__init__(path, width + width % 2, height + height % 2, fps, audio=audio, synthetic=synthetic, times=times)  # sizes of 4:4:4 may be odd
        self.width, self.height = width, height

    def _begin(self, av: Any, temporary: Path) -> None:
        self._temporary = temporary
        self._container = av.open(str(temporary), "w", format="mov", options={"movflags": "+faststart+use_metadata_tags"})
        self._video = self._container.add_stream("prores_ks", rate=self.fps)
        self._video.width, self._video.height, self._video.pix_fmt = self.width, self.height, "yuva444p10le"
        self._video.options = {"profile": "4444", "alpha_bits": "16", "vendor": "apl0", "qscale": "4"}
        context = self._video.codec_context
        context.time_base = self._tick
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        self._aac = None
        if self._sound is not None:
            self._aac = self._container.add_stream("pcm_s16le", rate=AUDIO_RATE, layout="mono")
        if self.synthetic:
            self._container.metadata.update({"DigitalSourceType": SYNTHETIC, "comment": f"DigitalSourceType={SYNTHETIC}"})

    def write(self, frame: np.ndarray) -> None:
        """Append one frame. Raises ValueError for another shape."""
        import av

        if frame.shape[:2] != (self.height, self.width) or frame.shape[2] not in (3, 4):
            raise ValueError(f"expected a frame of {self.width}x{self.height} px with 3 or 4 channels, got {frame.shape}")
        deep = np.full((self.height, self.width, 4), 65535, np.uint16)
        deep[..., : frame.shape[2]] = np.nan_to_num(np.clip(frame, 0, 1)) * 65535 + 0.5
        picture = av.VideoFrame.from_ndarray(deep, format="rgba64le")
        picture = picture.reformat(format="yuva444p10le", dst_colorspace=1, src_color_range=2, dst_color_range=1, threads=1, interpolation=scaling())
        picture.pts, picture.time_base = self._stamp(), self._tick
        self._send(self._video, picture)
        self.frames += 1
        self._feed_sound(final=False)

    def _sound_frame(self, block: np.ndarray) -> Any:
        import av

        return av.AudioFrame.from_ndarray((block[None] * 32767).round().astype(np.int16), format="s16", layout="mono")


class SequenceWriter:
    """A numbered sequence of RGB or RGBA pictures; `path` is a pattern such as x/%05d.png, or a folder (PNG).

    The pictures gather in a hidden folder beside their place and move when the block ends without an error; numbers of an earlier
    sequence of that name are removed then. Raises StageError when the disk is full.
    """

    def __init__(self, path: Any, width: int, height: int, fps: float, synthetic: bool = False, numbers: bool = False) -> None:
        self.kind = output_kind(path)
        path = Path(path)
        self.folder, self.pattern = (path.parent, path.name) if path.suffix and not path.is_dir() else (path, "%05d.png")
        self.path, self.width, self.height, self.fps, self.synthetic, self.numbers, self.frames = path, width, height, fps, synthetic, numbers, 0

    def __enter__(self) -> "SequenceWriter":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hidden = Path(tempfile.mkdtemp(prefix=".frames.", dir=self.folder))
        except OSError as error:
            raise write_failure(self.path, error) from error
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame (H,W,3|4) float32. Raises ValueError for another shape."""
        if frame.shape[:2] != (self.height, self.width) or frame.shape[2] not in ((1, 2, 3, 4) if self.numbers and self.kind == "exr" else (3, 4)):
            raise ValueError(f"expected a frame of {self.width}x{self.height} px with 3 or 4 channels, got {frame.shape}")
        self.frames += 1
        path = self._hidden / (self.pattern % self.frames)
        try:
            if self.kind == "exr":
                write_exr(path, frame if self.numbers else premultiplied(frame), {"DigitalSourceType": SYNTHETIC} if self.synthetic else {}, self.fps)
            else:
                self._png(path, frame)
        except OSError as error:
            raise write_failure(self.path, error) from error

    def _png(self, path: Path, frame: np.ndarray) -> None:
        from PIL import Image, PngImagePlugin

        notes = PngImagePlugin.PngInfo()
        if self.synthetic:
            notes.add_itxt("XML:com.adobe.xmp", xmp_packet())
        Image.fromarray(to_uint8(frame)).save(path, pnginfo=notes, compress_level=4)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                if not self.frames:
                    raise StageError(f"no frame was written to {self.path}")
                self._publish()
        except OSError as failure:
            raise write_failure(self.path, failure) from failure
        finally:
            shutil.rmtree(self._hidden, ignore_errors=True)

    def _publish(self) -> None:
        before, after = _NUMBER.split(self.pattern)[0], _NUMBER.split(self.pattern)[-1]
        earlier = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        new = {p.name for p in self._hidden.iterdir()}
        for name in sorted(new):
            os.replace(self._hidden / name, self.folder / name)
        for path in self.folder.iterdir():
            if path.name not in new and earlier.fullmatch(path.name) and path.is_file():
                path.unlink()


def premultiplied(frame: np.ndarray) -> np.ndarray:
    """Display-coded straight (H,W,3|4) → linear light, premultiplied by alpha, float32."""
    out = np.array(frame, np.float32)
    out[..., :3] = linear(out[..., :3])
    if out.shape[2] == 4:
        out[..., :3] *= out[..., 3:]
    return out
