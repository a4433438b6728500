"""Speech → motion of one subject: lips from the sound by a small network, everything else sampled from the subject's own motion.

`train_motion` learns from the training frames of the split only and writes RUN/motion.safetensors; `predict_track` turns any
sound into a Track of the subject. The mouth is predicted in a few principal modes of the training expressions, measured in
mm on the face mesh, so that coefficients that move the lips count and those that fight each other do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, atomic_path
from render.progress import progress
from thnerf import audio
from thnerf.config import MotionConfig
from thnerf.pose import Layout, PoseModel, fit_pose, sampled_columns, source_states, speech_columns

VERSION = 1
FILE = "motion.safetensors"
STATE = "motion-state.safetensors"  # of an unfinished training
_INNER_LIPS = (13, 14)  # MediaPipe landmarks: middle of the upper and of the lower inner lip


@dataclass(frozen=True)
class Modes:
    """Principal modes of the speech coefficients: y = mean + z @ back, z = (y − mean) @ forward.

    forward (E, K), back (K, E), scale (K,) standard deviations in mm, opening (K,) lip gap in mm per unit z / scale.
    """

    mean: np.ndarray
    forward: np.ndarray
    back: np.ndarray
    scale: np.ndarray
    opening: np.ndarray


def fit_modes(expression: np.ndarray, metric: np.ndarray, gap: np.ndarray, count: int) -> Modes:
    """PCA of (N, E) coefficients under the inner product `metric` (E, E); gap (E,) is the lip opening in mm per coefficient."""
    mean = expression.mean(0).astype(np.float64)
    size = len(metric)
    value, vector = np.linalg.eigh(metric + (1e-3 * np.trace(metric) / size + 1e-12) * np.eye(size))
    root, inverse = (vector * np.sqrt(value)) @ vector.T, (vector / np.sqrt(value)) @ vector.T
    _, s, modes = np.linalg.svd((expression - mean) @ root, full_matrices=False)
    scale = s / np.sqrt(len(expression))
    energy = np.cumsum(scale**2) / max((scale**2).sum(), 1e-12)
    k = int(min(count, np.searchsorted(energy, 0.995) + 1, (scale > 1e-6).sum() or 1))
    forward, back = root @ modes[:k].T, modes[:k] @ inverse
    return Modes(mean, forward, back, np.maximum(scale[:k], 1e-6), back @ gap * scale[:k])


def lip_metric(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """How much the speech coefficients move the face, (E, E) in mm² with the lips counting most, and the lip gap, (E,) in mm.

    Falls back to plain coefficients, with jawOpen as the gap, when the subject's face model is not at hand.
    """
    track = subject.track
    columns = speech_columns(track.expression_names)
    names = [track.expression_names[i] for i in columns]
    try:
        model = subject.model
    except InputError:
        model = None
    if model is None or model.expression_names != track.expression_names or "mediapipe478" not in model.landmarks:
        gap = np.array([float(n == "jawOpen") for n in names])
        return np.eye(len(columns)), gap if gap.any() else np.full(len(columns), 1 / len(columns))
    basis = model.expression_basis[columns].astype(np.float64)
    upper, lower = model.points(np.concatenate([model.mean[None], basis]), "mediapipe478")[:, _INNER_LIPS].swapaxes(0, 1)
    mouth = (upper[0] + lower[0]) / 2
    face = model.regions.get("face", np.ones(len(model.mean), bool))
    weight = face * (0.05 + np.exp(-((model.mean - mouth) ** 2).sum(1) / 30.0**2))
    flat = (basis * np.sqrt(weight / weight.sum())[:, None]).reshape(len(columns), -1)
    return flat @ flat.T, (upper - lower)[1:, 1]


def train_motion(subject: Subject, run_dir: Path, config: MotionConfig | None = None, seconds: float = 60.0) -> dict[str, Any]:
    """Train on the subject's training frames for at most about `seconds` and write run_dir/motion.safetensors.

    A finished network of the same settings and footage is kept. Returns {validation_correlation (of the lip opening, on
    stretches that the predicting network did not train on), correlation and gain by mode, steps, seconds, frames, reused}.
    Raises InputError when the subject has no sound or too little speech to learn from.
    """
    from thnerf import lipnet

    config, run_dir, begin = config or MotionConfig(), Path(run_dir), time.perf_counter()
    if not subject.has_audio:
        raise InputError(f"{subject.path} has no sound, so its speech-to-motion network cannot be trained; fit footage with sound")
    fingerprint = _fingerprint(subject, config)
    if (run_dir / FILE).exists():
        try:
            old = _load(run_dir / FILE)[0]
        except InputError:
            old = {}
        if old.get("fingerprint") == fingerprint:
            return {**old["report"], "reused": True}
    track = subject.track
    train = subject.frames("train")
    columns = speech_columns(track.expression_names)
    ranges, heard = _hear_training(subject)
    if sum(b - a for a, b in ranges) < 8 or len(train) < 8:
        raise InputError(f"{subject.path} has too few training frames with sound; fit a clip of at least 10 s")
    modes = fit_modes(track.expression[train][:, columns], *lip_metric(subject), config.modes)
    features = np.concatenate([h.features for h in heard])
    mean, spread = features.mean(0), features.std(0) + 0.3
    z = (track.expression[:, columns] - modes.mean) @ modes.forward / modes.scale
    used = np.zeros(len(track), bool)
    used[train] = True
    stretches = [lipnet.Stretch((h.features - mean) / spread, z[a:b].astype(np.float32), used[a:b], h.pause)
                 for (a, b), h in zip(ranges, heard)]
    weights = modes.scale / modes.scale.sum()
    opening = modes.opening / max(float(np.std(z[train] @ modes.opening)), 1e-6)
    nets, said, truth, paused, steps = _fit_ensemble(stretches, weights, opening, config, seconds - (time.perf_counter() - begin),
                                                     run_dir / STATE, fingerprint)
    gain, correlation = _variance_gain(said, truth)
    activity, pause = np.zeros(len(track), np.float32), np.zeros(len(track))
    for (a, b), h in zip(ranges, heard):
        activity[a:b], pause[a:b] = h.activity, h.pause
    neutral = _neutral(z[train], opening, pause[train])
    closing = _closing(said * gain @ opening, truth @ opening, paused, neutral @ opening)
    pose = fit_pose(track, train, activity)
    y = track.expression[train][:, columns]
    report = {
        "validation_correlation": _correlation(said @ opening, truth @ opening), "correlation": correlation.tolist(),
        "gain": gain.tolist(), "closing": closing,
        "frames": len(train), "modes": len(weights), "members": len(nets), "steps": steps, "seconds": time.perf_counter() - begin}
    header = {"version": VERSION, "fingerprint": fingerprint, "report": report, "config": dataclasses.asdict(config),
              "expression_names": track.expression_names, "model_id": track.model_id, "torso": track.torso.shape[1], "fps": track.fps}
    tensors = {f"pose.{k}": v for k, v in pose.tensors().items()}
    tensors |= {"mean": mean, "spread": spread, "neutral": neutral, "closing": np.array([closing]), "gain": gain, "scale": modes.scale,
                "back": modes.back, "centre": modes.mean,
                "low": y.min(0), "high": y.max(0), "rest": np.median(track.expression[train], 0)}
    for i, net in enumerate(nets):
        tensors |= _weights_of(net, i)
    _save(run_dir / FILE, header, tensors)
    (run_dir / STATE).unlink(missing_ok=True)
    return {**report, "reused": False}


def _fit_ensemble(stretches: list[Any], weights: np.ndarray, opening: np.ndarray, config: MotionConfig,
                  seconds: float, state: Path, fingerprint: str) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray, int]:
    """Train the networks one after another → (networks, what each said of the frames it had not seen (N, K), the truth (N, K),
    the pauses there (N,), steps in all).

    Each finished network is kept in `state` (a quarter of a minute's work), so that a stopped run of that fingerprint goes on after it.
    """
    from thnerf import lipnet

    nets, said, truth, paused = [], [], [], []
    header, tensors = _unfinished(state, fingerprint)
    steps, begin = header["steps"], time.perf_counter() - header["seconds"]
    with progress(None, "speech to motion", total=100, unit="%") as bar:
        for member in range(config.members):
            part = max(0.5, (seconds - (time.perf_counter() - begin)) / (config.members - member))
            fit, check = lipnet.hold_out(stretches, member, config.members, config.hold_out)
            advance = lambda done: bar.update(round(100 * (member + done) / config.members) - bar.n)  # noqa: E731
            if member < header["members"]:
                net = _network(tensors, member, stretches[0].features.shape[1], len(weights), header["config"])
                out = [net.predict(s.features, len(s)) for s in check]
                advance(1.0)
            else:
                seed = config.seed * 1000 + member
                net, out, count = lipnet.fit_member(fit, check, weights, opening, dataclasses.asdict(config), seed, part, advance)
                steps += count
                tensors |= _weights_of(net, member)
                header = {"version": VERSION, "fingerprint": fingerprint, "members": member + 1, "steps": steps,
                          "seconds": time.perf_counter() - begin, "config": dataclasses.asdict(config)}
                _save(state, header, tensors)
            nets.append(net)
            said += [o[s.mask > 0] for o, s in zip(out, check)]
            truth += [s.targets[s.mask > 0] for s in check]
            paused += [s.pause[s.mask > 0] for s in check]
    return nets, np.concatenate(said), np.concatenate(truth), np.concatenate(paused), steps


def _unfinished(state: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a stopped training has left behind, or a header that says nothing has been done (a damaged state is done again)."""
    if state.exists():
        try:
            header, tensors = _load(state)
            if header.get("fingerprint") == fingerprint:
                return header, tensors
        except InputError:
            state.unlink()
    return {"members": 0, "steps": 0, "seconds": 0.0}, {}


def _weights_of(net: Any, member: int) -> dict[str, np.ndarray]:
    """A network's parameters under the names that files have for them."""
    return {f"net{member}.{k}": v.numpy() for k, v in net.state_dict().items()}


def _network(tensors: dict[str, np.ndarray], member: int, bands: int, outputs: int, config: dict[str, Any]) -> Any:
    """The network that `_weights_of` named, ready to predict."""
    import torch

    from thnerf.lipnet import LipNet

    net = LipNet(bands, outputs, config["hidden"], config["layers"], config["dropout"])
    net.load_state_dict({k.split(".", 1)[1]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"net{member}.")})
    return net.eval()


def _hear_training(subject: Subject) -> tuple[list[tuple[int, int]], list[audio.Heard]]:
    """Training frame ranges, cut at clip starts, and the sound of each; nothing outside them is listened to."""
    track = subject.track
    rate = 3 * audio.RATE  # that of audio.wav; cut before resampling, whose filter would hear across the cut
    samples = audio.load_audio(subject.audio_path, rate)
    clips = [(c.start, c.stop) for c in track.clips]
    ranges = [(max(a, c), min(b, d)) for a, b in subject.info["split"]["train"] for c, d in clips if min(b, d) - max(a, c) >= 2]
    at = lambda frame: round(frame * rate / track.fps)  # noqa: E731
    return ranges, [audio.hear(audio.resample(samples[at(a) : at(b)], rate), track.fps, b - a) for a, b in ranges]


def _variance_gain(said: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (K,) that undo regression to the mean, and correlations (K,), on unseen speech; modes that are guessed stay small."""
    correlation = np.array([max(_correlation(a, b), 0.0) for a, b in zip(said.T, truth.T)])
    ratio = truth.std(0) / np.maximum(said.std(0), 1e-6)
    return np.clip(1 + correlation * (ratio - 1), 0.8, 1.6), correlation


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation, 0 where one is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 1 and a.std() > 1e-9 and b.std() > 1e-9 else 0.0


def _neutral(z: np.ndarray, opening: np.ndarray, paused: np.ndarray) -> np.ndarray:
    """The subject's closed mouth (K,): mean of the half of the pauses, or of the 5 % of all frames, in which the lips are closest."""
    gap = z @ opening
    pause = np.flatnonzero(paused > 0.9)
    pool, share = (pause, 0.5) if len(pause) >= 20 else (np.arange(len(z)), 0.05)
    return z[pool[np.argsort(gap[pool])[: max(1, int(share * len(pool)))]]].mean(0)


def _closing(said: np.ndarray, truth: np.ndarray, pause: np.ndarray, neutral: float) -> float:
    """How far (0 to 1) this subject closes the mouth in short pauses, beyond what the network says.

    Least squares on unseen lip openings (in standard deviations), with a prior of 0.25 that weighs as much as some ten frames.
    """
    toward = pause * (neutral - said)
    return float(np.clip((toward @ (truth - said) + 0.25 * 10) / (toward @ toward + 10), 0, 1))


def _fingerprint(subject: Subject, config: MotionConfig) -> str:
    """Changes with the settings, the split, the sound and the fitted expressions."""
    digest = hashlib.sha256(json.dumps([VERSION, dataclasses.asdict(config), subject.info["split"]], sort_keys=True).encode())
    digest.update(subject.track.expression.tobytes())
    digest.update(subject.audio_path.read_bytes())
    return digest.hexdigest()


def _save(path: Path, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    arrays = {k: np.ascontiguousarray(v, np.int32 if np.asarray(v).dtype.kind in "iu" else np.float32) for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, {"thnerf": json.dumps(header)}))


def _load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a trained network. Raises InputError when it is missing, damaged or of another version."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise InputError(f"{path.parent} has no speech-to-motion network; train it with thnerf train on footage with sound")
    try:
        with safe_open(str(path), "np") as stream:
            header = json.loads((stream.metadata() or {})["thnerf"])
            tensors = {k: stream.get_tensor(k) for k in stream.keys()}
        if header["version"] != VERSION:
            raise InputError(f"{path} is of another version of thnerf; run thnerf train again")
        return header, tensors
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); delete it and run thnerf train again") from None


class _Speaker:
    """A loaded run: sound → coefficients and states, at the subject's frame rate."""

    def __init__(self, subject: Subject, run_dir: Path) -> None:
        header, tensors = _load(Path(run_dir) / FILE)
        names = subject.track.expression_names
        track = subject.track
        if (tuple(header["expression_names"]), header["model_id"], header["torso"]) != (names, track.model_id, track.torso.shape[1]):
            raise InputError(f"{Path(run_dir) / FILE} was trained on another fit of this subject; run thnerf train again")
        self.t, self.fps, self.columns, self.upper = tensors, float(header["fps"]), speech_columns(names), sampled_columns(names)
        try:
            layout = Layout(int(header["torso"]), tuple(names[i] for i in self.upper))
            self.pose = PoseModel.from_tensors(layout, {k[5:]: v for k, v in tensors.items() if k.startswith("pose.")})
            self.nets = [_network(tensors, i, len(tensors["mean"]), len(tensors["scale"]), header["config"])
                         for i in range(int(header["report"]["members"]))]
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{Path(run_dir) / FILE} is damaged ({error}); delete it and run thnerf train again") from None

    def lips(self, heard: audio.Heard) -> np.ndarray:
        """(T, number of speech coefficients): averaged networks, amplitude restored, closed in pauses, within the training range."""
        t = self.t
        x, frames = (heard.features - t["mean"]) / t["spread"], len(heard.rest)
        z = sum(net.predict(x, frames) for net in self.nets) / len(self.nets) * t["gain"]
        closed = np.maximum(heard.rest, t["closing"] * heard.pause)[:, None]
        z = (1 - closed) * z + closed * t["neutral"]
        room = 0.1 * (t["high"] - t["low"])
        y = t["centre"] + (z * t["scale"]) @ t["back"]
        return np.clip(y, np.where(t["low"] >= 0, np.maximum(t["low"] - room, 0), t["low"] - room), t["high"] + room)

    def states(self, heard: audio.Heard, seed: int) -> np.ndarray:
        """(T, D) sampled states of pose.py, blinks included."""
        return self.pose.with_blinks(self.pose.sample(heard.activity, seed), seed)

    def expression(self, heard: audio.Heard, states: np.ndarray) -> np.ndarray:
        """(T, E) float32: lips from the sound, eyes and brows from the states."""
        out = np.repeat(self.t["rest"][None], len(states), 0)
        out[:, self.columns] = self.lips(heard)
        out[:, self.upper] = self.pose.layout.unpack(states)["upper"]
        return out.astype(np.float32)


def _samples(sound: np.ndarray | str | Path, rate: int) -> np.ndarray:
    """Samples at audio.RATE from samples at `rate` or a file; warns when all is silent. Raises InputError for bad samples."""
    if isinstance(sound, (str, Path)):
        samples = audio.load_audio(sound)
    else:
        samples = np.asarray(sound, np.float32)
        if samples.ndim != 1 or len(samples) == 0:
            raise InputError("the speech must be mono samples, at least one; give a sound file that is not empty")
        if not np.isfinite(samples).all():
            raise InputError("the speech holds samples that are NaN or infinite; export it again as 16-bit wav")
        samples = audio.resample(samples, rate) if rate != audio.RATE else samples
    if audio.speech_level(audio.log_mel(samples)) <= audio.QUIET:
        warnings.warn("the sound is silent, so the mouth stays closed; check the file if that is not wanted", stacklevel=3)
    return samples


def predict_track(subject: Subject, run_dir: Path, sound: np.ndarray | str | Path, rate: int = audio.RATE, *, seed: int = 0,
                  pose: str | Track = "audio", fps: float | None = None) -> Track:
    """The subject saying `sound` (mono samples at `rate`, or a file): a Track of max(1, round(duration · fps)) frames.

    The lips depend on the sound alone. pose 'audio' samples head motion, shoulders, gaze, brows and blinks with `seed`;
    'source' plays the footage's own, back and forth; 'still' holds the median head; a Track (of the same face model, which
    the caller checks) gives rotation and translation, the shoulders then follow the head. fps: the subject's by default.
    Raises InputError for unusable sound, a run without a speech network, and an unknown pose.
    """
    speaker, samples = _Speaker(subject, run_dir), _samples(sound, rate)
    source, base = subject.track, speaker.fps
    fps = float(fps or base)
    wanted = max(1, round(len(samples) / audio.RATE * fps))
    frames = int(np.ceil((wanted + 1) * base / fps)) + 1
    heard = audio.hear(samples, base, frames)
    states = speaker.states(heard, seed)
    k = slice(10, 10 + speaker.pose.layout.torso)
    if isinstance(pose, Track):
        if len(pose) == 0:
            raise InputError("the pose track has no frames; export it again")
        states[:, :6] = source_states(pose.resample(base), frames)[:, :6]
        states[:, k] = speaker.pose.torso_for(states)
    elif pose == "source":
        states = source_states(source, frames)
    elif pose == "still":
        middle = np.median(speaker.pose.states, 0)
        states[:, :6], states[:, k] = middle[:6], middle[k]
    elif pose != "audio":
        raise InputError(f"pose takes audio, source, still or a Track, not {pose!r}")
    parts = speaker.pose.layout.unpack(states)
    parts.pop("upper")
    camera = Camera(source.camera.K, np.repeat(source.camera.world_to_camera[:1], frames, 0), source.camera.width, source.camera.height)
    track = Track(fps=base, model_id=source.model_id, camera=camera, shape=source.shape, expression=speaker.expression(heard, states),
                  valid=np.ones(frames, bool), expression_names=source.expression_names,
                  meta={"origin": "speech", "seed": int(seed), "pose": pose if isinstance(pose, str) else "track"}, **parts)
    return track.resample(fps)[:wanted]


def predict_expression(subject: Subject, run_dir: Path, samples: np.ndarray, rate: int, frames: int, seed: int = 0) -> np.ndarray:
    """Expression (frames, E) float32 for the sound of `frames` video frames at the subject's fps (evaluation: the pose comes from elsewhere)."""
    speaker = _Speaker(subject, run_dir)
    heard = audio.hear(_samples(samples, rate), speaker.fps, frames)
    return speaker.expression(heard, speaker.states(heard, seed))
