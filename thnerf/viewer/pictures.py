"""Pictures of one frame in every view, the footage by frame number, and the sound for the browser."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from recon.model import MorphableModel
from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError

VIEWS = ("footage", "mesh on footage", "field", "side by side", "mesh in 3D", "field in 3D")
LARGEST_3D = 512
"""Rows of a 3D picture of the mesh."""
MARGIN = np.array([24, 26, 30], np.uint8)


class Footage:
    """Frames of a subject's video by number, (H,W,3) uint8: in order they stream, elsewhere it seeks; the last `KEEP` stay in memory."""

    KEEP = 48
    AHEAD = 12  # frames that are cheaper to decode than to seek over

    def __init__(self, subject: Subject) -> None:
        self._path, self._fps, self._count = subject.video_path, subject.track.fps, len(subject.track)
        self._stream: Iterator[np.ndarray] | None = None
        self._next = 0
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def frame(self, index: int) -> np.ndarray:
        """One frame; the last there is where the video is shorter. Raises IndexError outside the track."""
        from render.video import read_frames_from

        if not 0 <= index < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        if index in self._kept:
            return self._kept[index]
        if self._stream is None or not 0 <= index - self._next <= self.AHEAD:
            self._stream, self._next = read_frames_from(self._path, self._fps, index), index
        picture = None
        for picture in self._stream:
            self._kept[self._next] = picture
            self._next += 1
            if self._next > index:
                break
        else:
            self._stream = None
            picture = picture if picture is not None else next(reversed(self._kept.values()), None)
            if picture is None:
                raise IndexError(f"the video ends before frame {index}")
        while len(self._kept) > self.KEEP:
            self._kept.popitem(last=False)
        return picture


class Pictures:
    """Draws a one-frame Track in every view. Not thread-safe: numba's and OpenMP's threads belong to one caller at a time.

    renderer: `thnerf.renderer.HeadRenderer`, or None for a subject that is fitted but not trained: it then has no field views.
    """

    def __init__(self, subject: Subject, renderer: Any = None) -> None:
        self.subject, self.model, self.renderer = subject, subject.model, renderer
        self.footage = Footage(subject)
        self._colours: np.ndarray | None = None
        self._person: tuple[bytes, MorphableModel] | None = None
        self._whole, self._carved = (renderer.avatar.volume if renderer is not None else None), None

    def views(self, track: Track) -> tuple[str, ...]:
        """The views that a track has: those with footage only for one that has the footage's frames."""
        alike = len(track) == len(self.footage) and track.fps == self.subject.track.fps
        wanted = {"footage": alike, "mesh on footage": alike, "field": self.renderer is not None, "side by side": alike and self.renderer is not None,
                  "mesh in 3D": True, "field in 3D": self.renderer is not None}
        return tuple(view for view in VIEWS if wanted[view])

    def draw(self, view: str, part: Track, index: int, camera: Camera | None = None) -> np.ndarray:
        """A picture (H,W,3) uint8. part: the one frame to draw. index: its number in the footage. camera: of the 3D views, one frame.

        Raises InputError for a view that is not there.
        """
        if view == "footage":
            return self.footage.frame(index)
        if view == "mesh on footage":
            return self._mesh(part, self.footage.frame(index))
        if view == "side by side":
            return np.hstack([self.footage.frame(index), self.draw("mesh on footage", part, index), self.draw("field", part, index)])
        if view == "mesh in 3D" and camera is not None:
            return self._coloured(part, camera)
        if view in ("field", "field in 3D") and self.renderer is not None:
            return self._field(part, camera if view == "field in 3D" else None)
        raise InputError(f"there is no view {view!r}; choose one of {', '.join(VIEWS)}")

    def _posed(self, part: Track) -> np.ndarray:
        """`posed_vertices` with the identity added up once: it is most of the work."""
        from recon.overlay import posed_vertices

        model = self.model
        if model.joints is not None:  # their place depends on the identity
            return posed_vertices(model, part, 0)
        if self._person is None or self._person[0] != part.shape.tobytes():
            head = model.vertices(part.shape, np.zeros(len(model.expression_basis), np.float32))
            eyes = None if model.eye_centres is None else model.eyes(part.shape)
            self._person = part.shape.tobytes(), replace(model, mean=head, shape_basis=model.shape_basis[:0], eye_centres=eyes)
        return posed_vertices(self._person[1], part.replace(shape=np.zeros(0)), 0)

    def _mesh(self, part: Track, picture: np.ndarray) -> np.ndarray:
        from recon.overlay import draw_mesh

        return draw_mesh(picture, self._posed(part), self.model, part, 0)

    def _field(self, part: Track, camera: Camera | None) -> np.ndarray:
        from render.outputs import to_uint8

        if camera is not None:
            if self._carved is None:
                from thnerf.views import carved

                self._carved = carved(self.renderer.avatar, self.subject)
            part = part.replace(camera=camera)
        self.renderer.use_volume(self._whole if camera is None else self._carved)
        return to_uint8(self.renderer.frame(part, 0))

    def _coloured(self, part: Track, camera: Camera) -> np.ndarray:
        """The fitted mesh in the footage's colours, lit from the camera."""
        from render.raster import interpolate, rasterise, vertex_normals

        if self._colours is None:
            from thnerf.mesh import fit_mesh

            self._colours = fit_mesh(self.subject).colours.astype(np.float32)
        vertices = self._posed(part)
        pose = camera.world_to_camera[0]
        seen = rasterise(vertices, self.model.faces, camera)
        facing = np.abs(vertex_normals(vertices, self.model.faces) @ pose[2, :3])
        out = interpolate(seen, self.model.faces, self._colours * (0.55 + 0.45 * facing)[:, None]) * 255
        return np.where(seen.mask[..., None], np.clip(out, 0, 255), MARGIN).astype(np.uint8)


def fit_into(picture: np.ndarray, aspect: float) -> tuple[np.ndarray, tuple[int, int]]:
    """A picture with margins so that width / height = aspect (within a px); returns it and where (x, y) the picture begins."""
    height, width = picture.shape[:2]
    w, h = (max(width, round(height * aspect)), height) if aspect * height >= width else (width, max(height, round(width / aspect)))
    out = np.empty((h, w, 3), np.uint8)
    out[:] = MARGIN
    x, y = (w - width) // 2, (h - height) // 2
    out[y : y + height, x : x + width] = picture
    return out, (x, y)


def orbit_camera(rotation: np.ndarray, position: np.ndarray, fov: float, aspect: float, height: int) -> Camera:
    """Camera of one frame from a browser's view: rotation (3,3) camera → world with OpenCV axes, position (3,) m, vertical fov rad; world as of a Track."""
    height = max(32, int(height))
    width = int(np.clip(round(height * aspect), 32, 4 * height))
    focal = height / 2 / np.tan(np.clip(fov, 0.05, 2.6) / 2)
    pose = np.eye(4)
    pose[:3, :3] = np.asarray(rotation).T
    pose[:3, 3] = -pose[:3, :3] @ np.asarray(position, np.float64) * 1000
    return Camera(np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]), pose[None], width, height)


def sound_url(path: str | Path | None, duration: float) -> str:
    """A sound as a `data:` URL of mono mp3, `duration` s long at most; '' without one. Raises InputError when it cannot be read."""
    import av

    from thnerf.audio import load_audio

    if path is None:
        return ""
    rate, buffer = 24_000, io.BytesIO()
    samples = np.clip(load_audio(path, rate)[: int(duration * rate) + 1], -1, 1)
    with av.open(buffer, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout="mono")
        stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        converted = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=1152).resample(frame)
        for block in [*converted, None]:
            container.mux(stream.encode(block))
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def wxyz_matrix(wxyz: np.ndarray) -> np.ndarray:
    """Unit quaternion (4,) w x y z → rotation (3,3)."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                     [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                     [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])
