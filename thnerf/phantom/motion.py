"""Speech → the exact Track of a synthetic talking person: mouth, blinks, brows, gaze, head and shoulders, all seeded."""

from __future__ import annotations

from typing import Sequence

import numpy as np

from recon.model import MorphableModel
from recon.track import Track
from render.camera import Camera
from render.rotations import FRONTAL, axis_angle_to_matrix, from_head_angles
from thnerf.phantom.geometry import FIELD_MM, eye_points, rest_translation
from thnerf.phantom.speech import Phoneme
from thnerf.phantom.visemes import mouth_weights

_RATE = 200.0  # Hz of the internal curves
_NECK_PIVOT = np.array([0.0, -75.0, -35.0])  # mm from the point between the eyes: about where a head turns on its neck
_DISTANCE_MM = 900.0  # of the camera from the eyes
REACH = (12.0, 8.0, 6.0)  # degrees of yaw, pitch and roll within which a talking head moves by itself
_SWEEP_HZ = (0.19, 0.27, 0.13)  # of the turns beyond that


def phantom_camera(size: int, frames: int) -> Camera:
    """The phantom's camera: a portrait lens, `size` px square, fixed for `frames` frames."""
    return Camera.simple(size * _DISTANCE_MM / FIELD_MM, size, size, frames)


def phantom_track(phonemes: Sequence[Phoneme], samples: np.ndarray, rate: int, model: MorphableModel, shape: np.ndarray,
                  seed: int = 0, fps: float = 25, size: int = 256, reach: Sequence[float] = REACH) -> Track:
    """The motion of one utterance, exact and repeatable.

    samples (N,) float32 at `rate` Hz with its phonemes (see `speak`); frame i shows time i / fps and there are
    round(N / rate · fps) frames. shape (S,): the identity. Only ARKit names that the model has are set.
    torso: (T,4) similarity [tx, ty as fractions of the width (+ right, down), log-scale, angle rad clockwise on screen].
    reach: degrees of yaw, pitch and roll that the head keeps within; beyond `REACH` it also looks around, to either side.
    Raises ValueError when the sound is shorter than half a frame.
    """
    frames = int(round(len(samples) / rate * fps))
    if frames < 1:
        raise ValueError("the sound is shorter than one frame")
    count = int(np.ceil(frames / fps * _RATE)) + 1
    loud = loudness(samples, rate, count)
    curves = mouth_weights(phonemes, loud, _RATE)
    angles, shift, gaze, torso = accompany(curves, phonemes, loud, seed, reach)

    at = np.minimum(np.round(np.arange(frames) / fps * _RATE).astype(int), count - 1)
    names = model.expression_names
    expression = np.stack([curves[name][at] if name in curves else np.zeros(frames) for name in names], -1)
    rotation = from_head_angles(angles[at])
    camera = phantom_camera(size, frames)
    return Track(
        fps=fps, model_id=model.model_id, camera=camera, shape=shape, expression=expression, rotation=rotation,
        translation=place_head(model, shape, camera, rotation) + shift[at], gaze=np.repeat(gaze[at][:, None], 2, 1), torso=torso[at],
        valid=np.ones(frames, bool), expression_names=names, meta={"source": "phantom", "seed": int(seed)})


def accompany(curves: dict[str, np.ndarray], phonemes: Sequence[Phoneme], loud: np.ndarray, seed: int,
              reach: Sequence[float] = REACH) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a person does besides moving the lips, at 200 Hz: brows, smile, blinks and lids are added to `curves` (ARKit name → (N,)).

    phonemes: only the pauses '_' count; loud (N,): see `loudness`. Returns head angles (N,3) rad [yaw, pitch, roll], shift (N,3) mm in camera
    axes, gaze (N,2) rad in the head frame, torso (N,4).
    """
    rng = np.random.default_rng([seed, 0x5EED])
    stress = _stresses(phonemes, loud, rng)
    _face(curves, loud, stress, rng)
    angles, shift = _head(len(loud), loud, stress, rng)
    angles = _look_around(angles, reach, np.random.default_rng([seed, 0x100C]))
    gaze = _gaze(angles, rng)
    _blinks(curves, phonemes, len(loud), rng)
    _lids(curves, gaze)
    return angles, shift, gaze, _torso(angles, shift, rng)


def loudness(samples: np.ndarray, rate: int, count: int) -> np.ndarray:
    """Speech level (count,) at 200 Hz: smoothed RMS over its own median while speaking, in [0, 2]."""
    edges = np.minimum((np.arange(count + 1) / _RATE * rate).astype(int), len(samples))
    total = np.concatenate([[0.0], np.cumsum(np.asarray(samples, np.float64) ** 2)])
    power = (total[edges[1:]] - total[edges[:-1]]) / np.maximum(1, edges[1:] - edges[:-1])
    level = np.sqrt(_smooth(power, 0.05))
    speaking = level[level > 0.1 * level.max()] if level.max() > 0 else level
    return np.clip(level / max(float(np.median(speaking)), 1e-6), 0, 2)


def _smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    """Gaussian smoothing along axis 0 with a standard deviation in seconds."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, seconds * _RATE, axis=0, mode="reflect")


def _noise(rng: np.random.Generator, count: int, seconds: float, deviation: float | Sequence[float]) -> np.ndarray:
    """Smooth random curves (count,) or (count,C): correlation time in seconds, given standard deviations; they never loop."""
    deviation = np.asarray(deviation, np.float64)
    pad = int(4 * seconds * _RATE)
    white = rng.standard_normal((count + 2 * pad,) + deviation.shape)
    smooth = _smooth(white, seconds)[pad : pad + count]
    return smooth * deviation * np.sqrt(2 * np.sqrt(np.pi) * seconds * _RATE)


def _bump(count: int, centre: float, rise: float, fall: float) -> np.ndarray:
    """A unit bump (count,) at `centre` s: raised cosine up over `rise` s and down over `fall` s."""
    t = np.arange(count) / _RATE - centre
    x = np.where(t < 0, -t / rise, t / fall)
    return np.where(x < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(x, 1)), 0.0)


def _stresses(phonemes: Sequence[Phoneme], loud: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Times (s) and weights of the stressed syllables: loudness peaks at least 0.35 s apart, some left out at random."""
    slow = _smooth(loud, 0.06)
    inner = (slow[1:-1] > slow[:-2]) & (slow[1:-1] >= slow[2:]) & (slow[1:-1] > 0.9)
    found: list[tuple[float, float]] = []
    for index in np.nonzero(inner)[0] + 1:
        time = index / _RATE
        if (not found or time - found[-1][0] > 0.35) and rng.random() < 0.7:
            found.append((time, float(np.clip(slow[index], 0.8, 1.5))))
    return found


def _face(curves: dict[str, np.ndarray], loud: np.ndarray, stress: list[tuple[float, float]], rng: np.random.Generator) -> None:
    """Brows on emphasis, a slowly changing smile that grows in pauses, slight asymmetry. Adds to `curves`."""
    count = len(loud)
    raise_brow, frown = np.zeros(count), np.zeros(count)
    for time, weight in stress:
        draw = rng.random()
        if draw < 0.30:
            raise_brow += (0.25 + 0.35 * rng.random()) * weight * _bump(count, time - 0.05, 0.22, 0.45)
        elif draw < 0.40:
            frown += (0.2 + 0.2 * rng.random()) * weight * _bump(count, time, 0.25, 0.5)
    raise_brow = np.clip(raise_brow + np.maximum(0, _noise(rng, count, 0.9, 0.06)), 0, 0.75)
    frown = np.clip(frown, 0, 0.45)
    silence = 1 - np.clip(_smooth(loud, 0.15) * 1.5, 0, 1)
    smile = np.clip(0.06 + _noise(rng, count, 1.2, 0.045) + 0.10 * silence, 0, 0.28)
    lean = 1 + _noise(rng, count, 2.0, 0.08)
    for side, factor in (("Left", lean), ("Right", 2 - lean)):
        curves["mouthSmile" + side] = np.clip(curves.get("mouthSmile" + side, 0) + smile * factor * (1 - 0.5 * curves["mouthPucker"]), 0, 1)
        curves["cheekSquint" + side] = np.clip(0.5 * curves["mouthSmile" + side], 0, 1)
        curves["browOuterUp" + side] = np.clip(0.8 * raise_brow * factor, 0, 1)
        curves["browDown" + side] = np.clip(frown * factor, 0, 1)
        curves["eyeWide" + side] = 0.25 * raise_brow
        curves["eyeSquint" + side] = np.clip(0.35 * curves["mouthSmile" + side] + 0.3 * frown, 0, 1)
    curves["browInnerUp"] = raise_brow
    curves["jawLeft"] = np.clip(_noise(rng, count, 0.4, 0.02), 0, 0.08)


def _head(count: int, loud: np.ndarray, stress: list[tuple[float, float]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Head angles (count,3) rad [yaw, pitch, roll] and a shift (count,3) mm in camera axes.

    Slow sway, livelier while speaking, with nods on the stressed syllables; softly limited to ±12°, ±8°, ±6°.
    """
    degrees = _noise(rng, count, 1.1, (4.2, 1.6, 1.3)) + _noise(rng, count, 0.35, (0.9, 0.6, 0.5)) * (0.5 + 0.5 * _smooth(loud, 0.3))[:, None]
    for time, weight in stress:
        size, turn, tilt = weight * rng.uniform(0.8, 2.6), rng.normal(0, 1.0), rng.normal(0, 0.6)
        degrees += _bump(count, time + 0.02, 0.20, 0.34)[:, None] * (turn, -size, tilt)
    limit = np.array([12.0, 8.0, 6.0])
    angles = np.deg2rad(limit * np.tanh(degrees / limit))
    return angles, _noise(rng, count, 1.3, (3.0, 1.5, 4.0)) + _noise(rng, count, 0.4, (0.5, 0.4, 0.5))


def _look_around(angles: np.ndarray, reach: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Head angles (count,3) rad that keep within ±`reach` degrees: smaller ones damp the motion, larger ones add slow turns."""
    reach, own = np.asarray(reach, np.float64), np.asarray(REACH)
    phase = rng.uniform(0, 2 * np.pi, 3)
    time = np.arange(len(angles))[:, None] / _RATE
    wide = np.where(reach > own, reach, 0) * np.sin(2 * np.pi * np.array(_SWEEP_HZ) * time + phase)
    degrees = np.rad2deg(angles) * np.minimum(1, reach / own) + wide
    limited = degrees / (1 + (np.abs(degrees) / np.maximum(reach, 1e-9)) ** 8) ** 0.125  # nearly linear until close to the limit
    return np.where(reach > own, np.deg2rad(limited), angles * np.minimum(1, reach / own))


def _gaze(angles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaze (count,2) rad [yaw, pitch] in the head frame: the eyes hold the camera while the head moves, with small saccades."""
    count = len(angles)
    target, time = np.zeros((count, 2)), 0.0
    while time < count / _RATE:
        step = rng.gamma(3.0, 0.35) + 0.15
        aside = rng.random() < 0.35
        fixation = np.deg2rad(rng.normal(0, (5.0, 2.5) if aside else (1.0, 0.7)))
        target[int(time * _RATE) : int((time + step) * _RATE)] = fixation
        time += step
    saccades = _smooth(target, 0.012)
    return np.clip(saccades - 0.9 * angles[:, :2], -0.35, 0.35)


def _blinks(curves: dict[str, np.ndarray], phonemes: Sequence[Phoneme], count: int, rng: np.random.Generator) -> None:
    """Blinks every few seconds and at some pauses: 80 ms down, held 45 ms, 165 ms up. Adds to `curves`."""
    duration = count / _RATE
    times, time = [], rng.uniform(0.6, 1.8)
    while time < duration - 0.2:
        times.append(time)
        time += 1.2 + rng.gamma(2.2, 0.8)
    times += [start + 0.08 for symbol, start, end in phonemes if symbol == "_" and end - start > 0.25 and rng.random() < 0.4]
    lid = np.zeros(count)
    last = -1.0
    for time in sorted(times):
        if time - last > 0.6 and 0.1 < time < duration - 0.3:
            lid = np.maximum(lid, np.maximum(_bump(count, time, 0.08, 0.01), _bump(count, time + 0.045, 0.01, 0.165)))
            lid[int(time * _RATE) : int((time + 0.045) * _RATE) + 1] = 1.0
            last = time
    curves["eyeBlinkLeft"], curves["eyeBlinkRight"] = lid, 0.98 * lid
    for side in ("Left", "Right"):
        curves["eyeWide" + side] = curves["eyeWide" + side] * (1 - lid)
        curves["cheekSquint" + side] = np.clip(curves["cheekSquint" + side] + 0.08 * lid, 0, 1)


def _lids(curves: dict[str, np.ndarray], gaze: np.ndarray) -> None:
    """The lids follow the gaze (eyeLook* move lids only). Adds to `curves`."""
    yaw, pitch = gaze.T / np.deg2rad(30)
    for side, outward in (("Left", 1), ("Right", -1)):
        curves["eyeLookUp" + side], curves["eyeLookDown" + side] = np.clip(pitch, 0, 1), np.clip(-pitch, 0, 1)
        curves["eyeLookOut" + side], curves["eyeLookIn" + side] = np.clip(outward * yaw, 0, 1), np.clip(-outward * yaw, 0, 1)


def _torso(angles: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Torso similarity (count,4): breathing and sway of its own, with a small delayed share of the head's slow motion."""
    count = len(angles)
    slow = np.roll(_smooth(np.concatenate([angles, shift], -1), 0.8), int(0.2 * _RATE), axis=0)
    slow[: int(0.2 * _RATE)] = slow[int(0.2 * _RATE)] if count > int(0.2 * _RATE) else slow[-1]
    phase = 2 * np.pi * np.cumsum(0.27 + _noise(rng, count, 2.0, 0.02)) / _RATE + rng.uniform(0, 2 * np.pi)
    breath = np.sin(phase)
    own = _noise(rng, count, 1.6, (0.007, 0.0025, 0.004, np.deg2rad(0.7)))
    follow = np.stack([0.25 * slow[:, 3], 0.15 * slow[:, 4], -0.1 * slow[:, 5] / 2, 0 * slow[:, 0]], -1) / FIELD_MM
    return own + follow + breath[:, None] * (0.0, -0.0035, 0.002, 0.0)


def place_head(model: MorphableModel, shape: np.ndarray, camera: Camera, rotation: np.ndarray) -> np.ndarray:
    """Translation (T,3) mm for rotations (T,3), so that the head turns about its neck, at rest where `rest_translation` puts it."""
    eyes = eye_points(model, shape).mean(0)
    pivot = eyes + _NECK_PIVOT
    return rest_translation(camera, eyes) + FRONTAL @ pivot - axis_angle_to_matrix(rotation) @ pivot
