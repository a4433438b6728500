"""Sequences that the fitter is measured on, made once and kept in a folder: phantoms with exact Tracks, and real clips.

Every sequence went through the real detector. A phantom's video is kept beside its landmarks, so that one can look at it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable, Sequence

import numpy as np

from recon.assets import asset
from recon.fit import choose_crop
from recon.landmarks import Landmarks, load_detector, quiet_native_log
from recon.matte import Matter
from recon.model import load_model
from recon.track import Track
from render.progress import progress
from render.camera import Camera  # noqa: E402
from render.rotations import from_head_angles
from render.video import VideoWriter, crop_square, probe, read_frames
from thnerf.phantom import motion, scene
from thnerf.phantom.appearance import draw_look

SIZE, FPS = 256, 25
REACH = (40.0, 25.0, 12.0)  # degrees of yaw, pitch and roll
STILL, BLINKS = 60, (66, 84, 102, 120)  # frames without any motion, then one blink at each of these
BLINK = (0.45, 0.95, 1.0, 0.85, 0.5, 0.2)  # eyeBlink of its six frames
JITTER_FRAMES = 132
NOISE, CRF = 2.5, 23  # of the still head: deviation of the sensor noise in 8-bit steps, H.264 quality
TEXTS = (
    "Blue shoes move through two rooms, and Bob bought five apples.", "We keep the pool open until half past two.",
    "Mother paid for four warm coats before the storm.", "You may use my phone while I boil the water.",
    "Few people knew how the huge bridge moved.", "Papa wrote a poem about the purple moon.",
    "Who put the cheese beside the old piano?", "The wolf jumped over a very wide brook.",
    "Show me the photo of your new boat, please.", "Big waves broke above the empty beach.")


@dataclass(frozen=True)
class Footage:
    """Landmarks of one sequence: points (T,478,2) px of a width×height picture, valid (T,), first frames of its clips; the truth of phantoms.

    reference: of real clips, curves of MediaPipe's own blend shapes by running mode and name, each (T,). pictures: reads the frames (height,width,3) uint8. mattes: reads (height,width) uint8, made as `fit` makes them.
    """

    name: str
    points: np.ndarray
    valid: np.ndarray
    width: int
    height: int
    starts: tuple[int, ...] = (0,)
    truth: Track | None = None
    reference: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    pictures: Callable[[], Iterable[np.ndarray]] | None = None
    mattes: Callable[[], Iterable[np.ndarray]] | None = None


def wide_phantom(folder: Path, identity: int, widths: float = 0.0) -> Footage:
    """A talking phantom that looks around, with blinks, a smile and a pucker. widths: focal length in picture widths, with the head as large in the picture; 0 is the phantoms' own, 2.5."""

    def make() -> Track:
        model = load_model()
        samples, rate, phonemes = scene.utterance(TEXTS[identity % len(TEXTS)], "en-us", 135, FPS)
        track = motion.phantom_track(phonemes, samples, rate, model, scene.identity_shape(model, 100 + identity), seed=identity, fps=FPS, size=SIZE, reach=REACH)
        rng, T = np.random.default_rng(identity), len(track)
        expression = track.expression.copy()
        for names, at in ((("mouthSmileLeft", "mouthSmileRight"), rng.uniform(0.15, 0.4)), (("mouthPucker",), rng.uniform(0.6, 0.85))):
            bump = np.maximum(0, np.cos(np.clip((np.arange(T) - at * T) / FPS / 1.1, -0.5, 0.5) * np.pi)) ** 1.5
            for name in names:
                column = model.index(name)
                expression[:, column] = np.maximum(expression[:, column], rng.uniform(0.55, 0.8) * bump)
        track = track.replace(expression=expression)
        if widths:
            nearer = [1, 1, widths * SIZE / track.camera.K[0, 0]]
            track = track.replace(camera=Camera.simple(widths * SIZE, SIZE, SIZE, T), translation=track.translation * nearer)
        return track

    return _phantom(folder, f"wide_{identity}" + (f"_f{widths}" if widths else ""), identity, make)


def still_phantom(folder: Path, identity: int) -> Footage:
    """A head that does not move at all but for a few blinks, seen by a noisy sensor and compressed."""

    def make() -> Track:
        model, shape = load_model(), scene.identity_shape(load_model(), 100 + identity)
        camera = motion.phantom_camera(SIZE, JITTER_FRAMES)
        rotation = np.repeat(from_head_angles(np.deg2rad([[8.0, -4.0, 2.0]])), JITTER_FRAMES, 0)
        expression = np.zeros((JITTER_FRAMES, len(model.expression_names)), np.float32)
        for start in BLINKS:
            for side in ("Left", "Right"):
                expression[start : start + len(BLINK), model.index("eyeBlink" + side)] = BLINK
        return Track(FPS, model.model_id, camera, shape, expression, rotation, motion.place_head(model, shape, camera, rotation), np.zeros((JITTER_FRAMES, 2, 2)),
                     np.zeros((JITTER_FRAMES, 4)), np.ones(JITTER_FRAMES, bool), model.expression_names)

    return _phantom(folder, f"still_{identity}", identity, make, NOISE, CRF)


def _phantom(folder: Path, name: str, identity: int, make: Callable[[], Track], noise: float = 0.0, crf: float = 12) -> Footage:
    """A phantom's track, rendered, filmed and detected, or what an earlier call left of it."""
    folder = folder / name
    if not (folder / "landmarks.npz").exists():
        track = make()
        track.save(folder / "track.npz")
        rng, studio, seen = np.random.default_rng(identity), scene.Studio(load_model(), track, draw_look(100 + identity)), {}
        with VideoWriter(folder / "video.mp4", SIZE, SIZE, FPS, crf=crf, synthetic=True) as video:
            for index in progress(range(len(track)), name):
                key = (track.expression[index].tobytes(), track.rotation[index].tobytes()) if noise else index
                frame = seen[key] if key in seen else studio.frame(index)
                if noise:
                    seen[key] = frame
                    frame = np.clip(frame + rng.normal(0, noise, frame.shape), 0, 255).astype(np.uint8)
                video.write(frame)
        _keep(folder / "landmarks.npz", _detect(read_frames(folder / "video.mp4")))
    with np.load(folder / "landmarks.npz") as data:
        pictures = lambda: read_frames(folder / "video.mp4")  # noqa: E731
        return Footage(name, data["points"], data["valid"], SIZE, SIZE, truth=Track.load(folder / "track.npz"), pictures=pictures, mattes=_mattes(folder / "matte.mp4", pictures))


def _mattes(path: Path, pictures: Callable[[], Iterable[np.ndarray]], starts: Sequence[int] = (0,)) -> Callable[[], Iterable[np.ndarray]]:
    """Reads the mattes of pictures, made by an earlier call or now."""
    if not path.exists():
        with VideoWriter(path, SIZE, SIZE, FPS, crf=12, grey=True) as video:
            for matte in Matter().stream(progress(pictures(), path.parent.name), starts):
                video.write(matte)
    return lambda: read_frames(path, grey=True)


def _detect(frames: Iterable[np.ndarray]) -> Landmarks:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_detector("mediapipe").detect(frames)


def _keep(path: Path, found: Landmarks, **more: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, points=found.points, valid=found.valid, **more)


def real_clips(data: Path) -> dict[str, list[Path]]:
    """The clips of each real subject below the footage folder; those that are absent are left out."""
    clips = {"obama": [data / "obama/obama.mp4"], "macron": [data / "macron/macron.mp4"],
             "grid_s1": sorted((data / "grid_s1/mpg").glob("*.mpg"))[:20], "wojtek": [data / "silent/wojtek.mp4"]}
    return {name: files for name, files in clips.items() if files and all(f.exists() for f in files)}


def real_footage(folder: Path, name: str, clips: Sequence[Path]) -> Footage:
    """Landmarks of real clips in the crop that fit would take, with the blend shapes of the detector's own network in both modes."""
    path = folder / f"real_{name}" / "landmarks.npz"
    if not path.exists() or "crop" not in np.load(path).files:
        info, points, valid, starts, curves = probe(clips[0]), [], [], [], {mode: [] for mode in ("image", "video")}
        for clip in progress(clips, name, unit="clip"):
            starts.append(sum(map(len, valid)))
            found = _detect(read_frames(clip, FPS))
            points.append(found.points)
            valid.append(found.valid)
            for mode in curves:
                curves[mode].append(_blend_shapes(read_frames(clip, FPS), mode))
        points, valid = np.concatenate(points), np.concatenate(valid)
        x, y, side = choose_crop(points, valid, info.width, info.height, 2.3)
        stacked = {f"{mode}/{key}": np.concatenate([c[key] for c in parts]) for mode, parts in curves.items() for key in parts[0]}
        _keep(path, Landmarks(((points - [x, y]) * SIZE / side).astype(np.float32), valid, valid.astype(int)), starts=np.array(starts), crop=np.array([x, y, side]), **stacked)
    with np.load(path) as data:
        reference = {mode: {n.split("/")[1]: data[n] for n in data.files if n.startswith(mode + "/")} for mode in ("image", "video")}
        crop = data["crop"].tolist()
        pictures = lambda: (crop_square(frame, *crop, SIZE) for clip in clips for frame in read_frames(clip, FPS))  # noqa: E731
        starts = tuple(data["starts"].tolist())
        return Footage(name, data["points"], data["valid"], SIZE, SIZE, starts, reference=reference, pictures=pictures, mattes=_mattes(folder / f"real_{name}" / "matte.mp4", pictures, starts))


def _blend_shapes(frames: Iterable[np.ndarray], mode: str) -> dict[str, np.ndarray]:
    """jawOpen and blinks (T,) as MediaPipe's own network sees them, NaN without a face. mode: 'image' or 'video'."""
    with quiet_native_log():
        import mediapipe
        from mediapipe.tasks.python import vision
        from mediapipe.tasks.python.core.base_options import BaseOptions

        running = getattr(vision.RunningMode, mode.upper())
        network = vision.FaceLandmarker.create_from_options(vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=asset("face_landmarker.task").read_bytes()), running_mode=running, output_face_blendshapes=True))
    names, rows = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight"), []
    for index, frame in enumerate(frames):
        image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(frame))
        found = network.detect(image) if mode == "image" else network.detect_for_video(image, int(index * 1000 / FPS))
        scores = {c.category_name: c.score for c in found.face_blendshapes[0]} if found.face_blendshapes else {}
        rows.append([scores.get(n, np.nan) for n in names])
    network.close()
    return dict(zip(names, np.array(rows).T))
