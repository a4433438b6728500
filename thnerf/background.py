"""What stands behind the speaker: the footage's own background, nothing (transparent), a colour, a picture or a video."""

from __future__ import annotations

import re
from itertools import repeat
from pathlib import Path
from typing import Iterator

import numpy as np

from render.files import InputError
from render.outputs import has_alpha

GREEN = "#00B140"
"""Chroma-key green."""
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")


def resolve_background(text: str | Path | None, out: str | Path, width: int, height: int, fps: float) -> tuple[Iterator[np.ndarray] | None, bool]:
    """What `--background` means for an output file: (a picture (H,W,3) float32 in [0,1] for each frame or None, transparent or not).

    None or 'own': the footage's own background in an mp4, and by default transparency where the output can hold it. 'none': transparency. 'green';
    '#RRGGBB'; a picture; a video, which plays at `fps` and begins again where it is too short. Raises InputError
    for transparency in an mp4 and for what is none of these.
    """
    word = str(text).lower() if text is not None else "none" if has_alpha(out) else "own"
    if word == "own":
        return None, False
    if word == "none":
        if not has_alpha(out):
            raise InputError("an mp4 cannot be transparent; name the output .mov, a folder of PNG pictures, or %05d.exr")
        return None, True
    if word == "green" or word.startswith("#"):
        colour = GREEN if word == "green" else word
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
            raise InputError(f"--background takes a colour as #RRGGBB, for example {GREEN}, not {text!r}")
        value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32) / 255
        return repeat(np.broadcast_to(value, (height, width, 3)).copy()), False
    if Path(str(text)).suffix.lower() in VIDEOS:
        return _video(Path(str(text)), width, height, fps), False
    return repeat(load_background(str(text), width, height)), False


def load_background(path: str | Path, width: int, height: int) -> np.ndarray:
    """A picture file scaled to cover width × height and cropped in the middle, (H,W,3) float32 in [0,1].

    EXIF orientation is applied, transparency goes over black. Raises InputError when it is no readable picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"the background {path} does not exist; give green, #RRGGBB, a picture such as room.jpg, or a video")
    try:
        with Image.open(path) as source:
            picture = ImageOps.exif_transpose(source).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise InputError(f"the background {path} is not a readable picture ({reason}); export it again as PNG or JPEG") from None
    opaque = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    opaque.alpha_composite(picture)
    return _fitted(opaque.convert("RGB"), width, height)


def _fitted(picture: object, width: int, height: int) -> np.ndarray:
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS), np.float32) / 255


def _video(path: Path, width: int, height: int, fps: float) -> Iterator[np.ndarray]:
    """The frames of a video, covering width × height, over and over; its first frame is read at once, so that a bad file fails early."""
    from PIL import Image

    from render.video import probe, read_frames

    probe(path)

    def play() -> Iterator[np.ndarray]:
        while True:
            for frame in read_frames(path, fps):
                yield _fitted(Image.fromarray(frame), width, height)

    return play()
