"""Speech → motion without a subject: a Track of the default head from the shipped prior, and a plain picture of any Track's mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recon.model import MorphableModel, apply_gaze, load_model
from recon.track import Track
from render.camera import Camera
from render.files import InputError, check_number
from render.progress import progress
from render.rotations import axis_angle_to_matrix, from_head_angles
from thnerf import audio

PREVIEW = 384
"""Width and height of a preview, px."""
_CURVES = 200.0  # Hz
_LIGHT = np.array([-0.35, -0.55, -0.76])  # from the camera's upper left; OpenCV axes
_SKIN, _BACK = np.array([0.80, 0.66, 0.58]), 0.16
_PAINT = {"teeth_upper": (0.92, 0.90, 0.84), "teeth_lower": (0.92, 0.90, 0.84), "tongue": (0.72, 0.33, 0.33), "eye_left": (0.93, 0.93, 0.92), "eye_right": (0.93, 0.93, 0.92)}
_IRIS = (0.20, 0.28, 0.34)


def animate(sound: np.ndarray | str | Path, rate: int = audio.RATE, *, seed: int = 0, fps: float = 25.0, liveliness: float = 1.0) -> Track:
    """The default head saying `sound` (mono samples at `rate`, or a file): a Track of max(1, round(duration · fps)) frames.

    Lips from the sound alone, in the prior's neutral style; head pose, shoulders, gaze, brows and blinks sampled with `seed` as the phantom
    moves (`thnerf.phantom.motion`): smooth random curves, which neither loop nor drift. liveliness: factor on head, shoulders and brows.
    Raises InputError for unusable sound, a frame rate outside 1 to 240 and a liveliness outside 0 to 3.
    """
    from thnerf.motion import checked_samples
    from thnerf.phantom.motion import REACH, accompany, loudness, phantom_camera, place_head

    check_number("--fps", fps, 1, 240)
    check_number("--liveliness", liveliness, 0, 3)
    samples, model = checked_samples(sound, rate), load_model()
    frames = max(1, round(len(samples) / audio.RATE * fps))
    expression, rest = _lips(samples, fps, frames, model)
    count = int(np.ceil(frames / fps * _CURVES)) + 1
    middle, time = (np.arange(frames) + 0.5) / fps, np.arange(count) / _CURVES
    quiet = np.interp(time, middle, rest)
    curves = {"mouthPucker": np.interp(time, middle, expression[:, model.index("mouthPucker")])}
    loud = loudness(samples, audio.RATE, count) * (1 - quiet)
    angles, shift, gaze, torso = accompany(curves, _pauses(quiet), loud, seed, tuple(r * max(liveliness, 1e-6) if liveliness < 1 else r for r in REACH))
    curves.pop("mouthPucker")
    at = np.minimum(np.round(np.arange(frames) / fps * _CURVES).astype(int), count - 1)
    for name, curve in curves.items():
        if name in model.expression_names:
            factor = liveliness if name.startswith(("brow", "eyeWide")) else 1.0
            expression[:, model.index(name)] = np.clip(expression[:, model.index(name)] + factor * curve[at], 0, 1)
    rotation, shape = from_head_angles(angles[at] * max(liveliness, 1.0)), np.zeros(len(model.shape_basis))
    camera = phantom_camera(512, frames)
    return Track(
        fps=fps, model_id=model.model_id, camera=camera, shape=shape, expression=expression, rotation=rotation,
        translation=place_head(model, shape, camera, rotation) + liveliness * shift[at], gaze=np.repeat(gaze[at][:, None], 2, 1),
        torso=liveliness * torso[at], valid=np.ones(frames, bool), expression_names=model.expression_names,
        meta={"origin": "speech", "seed": int(seed), "pose": "audio"})


def _lips(samples: np.ndarray, fps: float, frames: int, model: MorphableModel) -> tuple[np.ndarray, np.ndarray]:
    """Expression (frames, E) of the prior, and how much the mouth rests (frames,)."""
    from thnerf.bilabials import heard_bilabials
    from thnerf.speech_prior import load_prior, speaking

    prior = load_prior()
    base = 25.0  # what the network was trained at
    count = int(np.ceil(frames * base / fps)) + 1
    heard = audio.hear(samples, base, count)
    said = prior.listen(heard.features, count)
    rest = np.maximum(heard.rest, 1 - speaking(said.voice, base))
    closed = said.closed_with(heard_bilabials(samples, base, count))
    expression = prior.expression(said.weights, closed, rest, model.expression_names)
    if fps == base:
        return expression[:frames], rest[:frames]
    place, grid = (np.arange(frames) + 0.5) / fps * base - 0.5, np.arange(count)
    mix = lambda column: np.interp(place, grid, column)  # noqa: E731
    return np.stack([mix(c) for c in expression.T], 1).astype(np.float32), mix(rest)


def _pauses(quiet: np.ndarray) -> list[tuple[str, float, float]]:
    """Stretches at 200 Hz in which nobody speaks, as the phantom reads them."""
    mask = quiet > 0.5
    edges = np.r_[0, np.flatnonzero(np.diff(mask)) + 1, len(mask)]
    return [("_" if mask[a] else "a", a / _CURVES, b / _CURVES) for a, b in zip(edges, edges[1:])]


def render_preview(track: Track, out: str | Path, sound: Any = None, size: int = PREVIEW) -> dict[str, Any]:
    """The track's mesh, evenly coloured and shaded, as a video with `sound` (a file, or (samples, rate)); returns {preview, frames}.

    The camera is the track's, scaled to size × size px. Raises InputError for a track of another face model than the default.
    """
    from render.encode import VideoWriter
    from render.raster import interpolate, rasterise, vertex_normals

    model = load_model()
    if track.model_id != model.model_id:
        raise InputError(f"a preview shows the default face model {model.model_id}, not {track.model_id}")
    colours = _colours(model)
    light = _LIGHT / np.linalg.norm(_LIGHT)
    camera = track.camera.resized(2 * size, 2 * size)  # halved below: the rasteriser does not smooth edges
    turns = axis_angle_to_matrix(track.rotation)
    with VideoWriter(out, size, size, track.fps, audio=sound, synthetic=True) as writer:
        for i in progress(range(len(track)), "preview"):
            local = apply_gaze(model, model.vertices(track.shape, track.expression[i]), track.shape, track.gaze[i])
            world = local @ turns[i].T + track.translation[i]
            normals = vertex_normals(world, model.faces)
            bright = 0.35 + 0.65 * np.clip(normals @ light, 0, 1) + 0.06 * np.clip(-normals[:, 2], 0, 1)
            seen = rasterise(world, model.faces, camera, i, cull_back=False)
            picture = interpolate(seen, model.faces, colours * bright[:, None].astype(np.float32), _BACK)
            picture = picture.reshape(size, 2, size, 2, 3).mean((1, 3))
            writer.write((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return {"preview": str(out), "frames": len(track)}


def _colours(model: MorphableModel) -> np.ndarray:
    """(V,3) float32 sRGB: skin, teeth, tongue, white eyes with an iris."""
    colours = np.tile(_SKIN, (len(model.mean), 1))
    for name, paint in _PAINT.items():
        if name in model.regions:
            colours[model.regions[name]] = paint
    for side, centre in enumerate(model.eye_centres if model.eye_centres is not None else ()):
        mask = model.regions[("eye_left", "eye_right")[side]]
        offset = model.mean[mask] - centre
        ahead = offset[:, 2] / np.maximum(np.linalg.norm(offset, axis=1), 1e-6)
        colours[np.flatnonzero(mask)[ahead > 0.87]] = _IRIS
    return colours.astype(np.float32)
