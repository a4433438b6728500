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
from pathlib import Path
from typing import Any

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, atomic_path
from render.progress import progress
from thnerf import audio, mouth
from thnerf.config import MotionConfig
from thnerf.encoders import Encoder, load_encoder
from thnerf.pose import Layout, PoseModel, fit_pose, sampled_columns, source_states, speech_columns

VERSION = 2
FILE = "motion.safetensors"
STATE = "motion-state.safetensors"  # of an unfinished training
CHUNK = 512
"""Frames predicted at a time."""
FEWEST = 8
"""Training frames below which nothing is learnt at all."""
LISTENED = 60.0
"""Seconds of footage whose phones are heard to find out how readily the lips may shut."""


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
    prior = usable_prior(config)
    ranges, heard = _hear_training(subject, load_encoder(config.encoder), LISTENED if config.bilabials else 0.0)
    if (found := min(sum(b - a for a, b in ranges), len(train))) < FEWEST:
        raise InputError(f"{subject.path} has {found} training frames with sound and a face, and speech-to-motion needs {FEWEST}; fit a longer clip")
    modes = mouth.fit_modes(track.expression[train][:, columns], *mouth.lip_metric(subject), config.modes)
    features = np.concatenate([h.features for h in heard])
    mean, spread = (features.mean(0), features.std(0) + 0.3) if prior is None else (prior.mean, prior.spread)
    z = (track.expression[:, columns] - modes.mean) @ modes.forward / modes.scale
    used = np.zeros(len(track), bool)
    used[train] = True
    stretches = [lipnet.Stretch((h.features - mean) / spread, z[a:b].astype(np.float32), used[a:b], h.pause, _shutting(config, h, b - a))
                 for (a, b), h in zip(ranges, heard)]
    weights = modes.scale / modes.scale.sum()
    opening = modes.opening / max(float(np.std(z[train] @ modes.opening)), 1e-6)
    nets, said, truth, paused, closures, steps = _fit_ensemble(stretches, weights, opening, config, prior, seconds - (time.perf_counter() - begin),
                                                     run_dir / STATE, fingerprint)
    gain, correlation = mouth.variance_gain(said, truth)
    activity, pause = np.zeros(len(track), np.float32), np.zeros(len(track))
    for (a, b), h in zip(ranges, heard):
        activity[a:b], pause[a:b] = h.activity, h.pause
    neutral = mouth.neutral(z[train], opening, pause[train])
    toward, shut = mouth.shutting(z[train], opening)
    closing = mouth.closing(said * gain @ opening, truth @ opening, paused, neutral @ opening)
    reluctance = [mouth.reluctance(said[k] * gain @ opening, truth[k] @ opening, shut, closed) for k, closed in _closures(closures)]
    pose = fit_pose(track, train, activity)
    y = track.expression[train][:, columns]
    report = {
        "validation_correlation": mouth.correlation(said @ opening, truth @ opening), "correlation": correlation.tolist(),
        "gain": gain.tolist(), "closing": closing, "reluctance": reluctance,
        "frames": len(train), "modes": len(weights), "members": len(nets), "steps": steps, "seconds": time.perf_counter() - begin}
    header = {"version": VERSION, "fingerprint": fingerprint, "report": report, "config": {**dataclasses.asdict(config), **_shape(config, prior)},
              "expression_names": track.expression_names, "model_id": track.model_id, "torso": track.torso.shape[1], "fps": track.fps}
    tensors = {f"pose.{k}": v for k, v in pose.tensors().items()}
    tensors |= {"mean": mean, "spread": spread, "neutral": neutral, "opening": opening, "toward": toward, "shut": np.array([shut]), "closing": np.array([closing]), "reluctance": np.array(reluctance), "gain": gain, "scale": modes.scale,
                "back": modes.back, "centre": modes.mean,
                "low": y.min(0), "high": y.max(0), "rest": np.median(track.expression[train], 0)}
    for i, net in enumerate(nets):
        tensors |= _weights_of(net, i)
    _save(run_dir / FILE, header, tensors)
    (run_dir / STATE).unlink(missing_ok=True)
    return {**report, "reused": False}


def usable_prior(config: MotionConfig) -> Any:
    """The shipped prior where the settings ask for it and it hears with the same encoder, else None."""
    from thnerf.speech_prior import load_prior

    return prior if config.prior and (prior := load_prior()).encoder == config.encoder else None


def _fit_ensemble(stretches: list[Any], weights: np.ndarray, opening: np.ndarray, config: MotionConfig, prior: Any,
                  seconds: float, state: Path, fingerprint: str) -> tuple[list[Any], np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Train the networks one after another → (networks, what each said of the frames it had not seen (N, K), the truth (N, K),
    the pauses (N,) and what tells closures there (N, 2), steps in all).

    Each finished network is kept in `state` (a quarter of a minute's work), so that a stopped run of that fingerprint goes on after it.
    """
    from thnerf import lipnet

    nets, said, truth, paused, closures = [], [], [], [], []
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
                settings = {**dataclasses.asdict(config), **_shape(config, prior)}
                net, out, count = lipnet.fit_member(fit, check, weights, opening, settings, seed, part, advance, None if prior is None else prior.net)
                steps += count
                tensors |= _weights_of(net, member)
                header = {"version": VERSION, "fingerprint": fingerprint, "members": member + 1, "steps": steps,
                          "seconds": time.perf_counter() - begin, "config": settings}
                _save(state, header, tensors)
            nets.append(net)
            said += [o[s.mask > 0] for o, s in zip(out, check)]
            truth += [s.targets[s.mask > 0] for s in check]
            paused += [s.pause[s.mask > 0] for s in check]
            closures += [s.shutting[s.mask > 0] for s in check]
    return nets, np.concatenate(said), np.concatenate(truth), np.concatenate(paused), np.concatenate(closures), steps


def _shutting(config: MotionConfig, heard: audio.Heard, frames: int) -> np.ndarray:
    """(frames, 2) float32: log odds of closed lips by the prior, and the probability of a bilabial, NaN where phones were not heard."""
    from thnerf.speech_prior import load_prior

    prior = load_prior()
    out = np.full((frames, 2), np.nan, np.float32)
    out[:, 0] = prior.listen(heard.features, frames).odds if config.bilabials and prior.encoder == config.encoder else -9.0
    if heard.bilabial is not None:
        out[:, 1] = heard.bilabial
    return out


def _closures(found: np.ndarray) -> list[tuple[np.ndarray, Any]]:
    """What `_shutting` (N, 2) makes of closures, by the prior alone and with the phones: frames (N,) bool, and a function from reluctance to how far their lips shut."""
    from thnerf.speech_prior import Said

    everywhere = np.ones(len(found), bool)
    known = np.isfinite(found[:, 1]) if np.isfinite(found[:, 1]).any() else everywhere
    said = lambda k: Said(np.zeros((k.sum(), 0)), found[k, 0], found[k, 0])  # noqa: E731
    phones = None if known is everywhere else found[known, 1]
    return [(everywhere, lambda step: said(everywhere).closed_with(None, step)), (known, lambda step: said(known).closed_with(phones, step))]


def _shape(config: MotionConfig, prior: Any) -> dict[str, int]:
    """Size of the networks: the prior's where they start from it."""
    source = dataclasses.asdict(config) if prior is None else prior.settings
    return {name: int(source[name]) for name in ("hidden", "layers", "ahead")}


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

    net = LipNet(bands, outputs, config["hidden"], config["layers"], config["dropout"], config["ahead"])
    net.load_state_dict({k.split(".", 1)[1]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"net{member}.")})
    return net.eval()


def _hear_training(subject: Subject, encoder: Encoder, listened: float = 0.0) -> tuple[list[tuple[int, int]], list[audio.Heard]]:
    """Training frame ranges, cut at clip starts, and the sound of each; nothing outside them is listened to. listened: s whose bilabials are heard, too."""
    from thnerf.bilabials import heard_bilabials

    track = subject.track
    rate = 3 * audio.RATE  # that of audio.wav; cut before resampling, whose filter would hear across the cut
    samples = audio.load_audio(subject.audio_path, rate)
    clips = [(c.start, c.stop) for c in track.clips]
    ranges = [(max(a, c), min(b, d)) for a, b in subject.info["split"]["train"] for c, d in clips if min(b, d) - max(a, c) >= 2]
    at = lambda frame: round(frame * rate / track.fps)  # noqa: E731
    found = []
    for a, b in ranges:
        sound = audio.resample(samples[at(a) : at(b)], rate)
        heard, frames = audio.hear(sound, track.fps, b - a, encoder.encode), min(b - a, round(listened * track.fps))
        if frames > 0:
            probability = heard_bilabials(sound[: round(frames / track.fps * audio.RATE)], track.fps, frames)
            listened -= frames / track.fps
            if probability is not None:
                heard = dataclasses.replace(heard, bilabial=np.pad(probability, (0, b - a - frames), constant_values=np.nan))
        found.append(heard)
    return ranges, found


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


class Speaker:
    """A loaded run: sound → coefficients and states, at the subject's frame rate.

    fps; encoder, what it hears with; prior, whose closures and voice it follows; left and right, features that a frame's window reaches
    beyond its own four (see `lipnet.LipNet`).
    """

    def __init__(self, subject: Subject, run_dir: Path) -> None:
        from thnerf.speech_prior import load_prior

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
            self.bilabials = bool(header["config"].get("bilabials", False))
            self.reluctance = np.asarray(tensors.get("reluctance", np.zeros(2)), float)  # of closures by the prior alone, and with the phones
            self.encoder, self.prior = load_encoder(header["config"]["encoder"]), load_prior()
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{Path(run_dir) / FILE} is damaged ({error}); delete it and run thnerf train again") from None
        nets = [*self.nets, self.prior.net]
        self.left, self.right = max(n.left for n in nets), max(n.right for n in nets)

    def hear(self, samples: np.ndarray, frames: int) -> audio.Heard:
        """Mono samples (n,) at audio.RATE as the networks need them, for `frames` frames, with bilabials where the run's settings ask for them."""
        from thnerf.bilabials import heard_bilabials

        heard = audio.hear(samples, self.fps, frames, self.encoder.encode)
        return heard if not self.bilabials else dataclasses.replace(heard, bilabial=heard_bilabials(samples, self.fps, frames))

    def lips(self, heard: audio.Heard) -> np.ndarray:
        """(T, number of speech coefficients) from the whole sound."""
        from thnerf.speech_prior import Said

        frames = len(heard.rest)
        x = np.pad(heard.features[: 4 * frames + self.right], ((self.left, 0), (0, 0)), mode="edge")
        x = np.pad(x, ((0, max(0, 4 * frames + self.left + self.right - len(x))), (0, 0)), mode="edge")
        parts = [self._window(x[4 * a : 4 * min(a + CHUNK, frames) + self.left + self.right]) for a in range(0, frames, CHUNK)]
        z, odds, voice = (np.concatenate(p) for p in zip(*parts))
        closed = self.bilabials * Said(np.zeros((frames, 0)), odds, voice).closed_with(heard.bilabial, self.reluctance[int(heard.bilabial is not None)])
        return self.mouth(z, closed, np.maximum(heard.rest, 1 - self.voice(voice)), heard.pause)

    def window(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (4 n + left + right, bands) → modes z (n, K), closed lips (n,), voice (n,) of n frames, each from its own window alone.

        Row 0 is feature 4 i − left of the first frame i. However a sound is cut into windows, its frames come out the same.
        """
        from thnerf.speech_prior import Said

        z, odds, voice = self._window(features)
        return z, self.bilabials * Said(np.zeros((len(z), 0)), odds, voice).closed_with(None, self.reluctance[0]), voice

    def _window(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`window` with the log odds of closed lips in place of how far they are closed."""
        n = (len(features) - self.left - self.right) // 4
        inner = lambda net: features[self.left - net.left : self.left + 4 * n + net.right]  # noqa: E731
        part = lambda x, net: x[self.left - net.left : self.left + 4 * n + net.right]  # noqa: E731
        x = (features - self.t["mean"]) / self.t["spread"]
        z = sum(net.window(part(x, net)) for net in self.nets) / len(self.nets) * self.t["gain"]
        if self.prior.encoder != self.encoder.name:
            return z, np.full(n, -9.0, np.float32), np.ones(n, np.float32)
        said = self.prior.read(self.prior.net.window((part(features, self.prior.net) - self.prior.mean) / self.prior.spread))
        return z, said.odds, said.voice

    def voice(self, probability: np.ndarray) -> np.ndarray:
        """Probability of speech (T,) → how much of it moves the mouth (T,): see `thnerf.speech_prior.speaking`."""
        from thnerf.speech_prior import speaking

        return speaking(probability, self.fps)

    def mouth(self, z: np.ndarray, closed: np.ndarray, rest: np.ndarray, pause: np.ndarray) -> np.ndarray:
        """Modes (T, K) → coefficients: lips shut for /p b m/, the subject's own closed mouth at rest, within its training range."""
        t = self.t
        gap = np.maximum(z @ t["opening"] - t["shut"], 0)
        z = z - (closed * gap)[:, None] * t["toward"]
        still = np.maximum(rest, t["closing"] * pause)[:, None]
        z = (1 - still) * z + still * t["neutral"]
        room = 0.1 * (t["high"] - t["low"])
        y = t["centre"] + (z * t["scale"]) @ t["back"]
        return np.clip(y, np.where(t["low"] >= 0, np.maximum(t["low"] - room, 0), t["low"] - room), t["high"] + room)

    def states(self, heard: audio.Heard, seed: int, liveliness: float = 1.0) -> np.ndarray:
        """(T, D) sampled states of pose.py, blinks included."""
        return self.pose.with_blinks(self.pose.sample(heard.activity, seed, liveliness), seed)

    def expression(self, heard: audio.Heard, states: np.ndarray) -> np.ndarray:
        """(T, E) float32: lips from the sound, eyes and brows from the states."""
        out = np.repeat(self.t["rest"][None], len(states), 0)
        out[:, self.columns] = self.lips(heard)
        out[:, self.upper] = self.pose.layout.unpack(states)["upper"]
        return out.astype(np.float32)


def checked_samples(sound: np.ndarray | str | Path, rate: int) -> np.ndarray:
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
                  pose: str | Track = "audio", fps: float | None = None, liveliness: float = 1.0) -> Track:
    """The subject saying `sound` (mono samples at `rate`, or a file): a Track of max(1, round(duration · fps)) frames.

    The lips depend on the sound alone. pose 'audio' samples head motion, shoulders, gaze, brows and blinks with `seed`;
    'source' plays the footage's own, back and forth; 'still' holds the median head; a Track (of the same face model, which
    the caller checks) gives rotation and translation, the shoulders then follow the head. fps: the subject's by default. liveliness: see
    `PoseModel.sample`.
    Raises InputError for unusable sound, a run without a speech network, and an unknown pose.
    """
    speaker, samples = Speaker(subject, run_dir), checked_samples(sound, rate)
    source, base = subject.track, speaker.fps
    fps = float(fps or base)
    wanted = max(1, round(len(samples) / audio.RATE * fps))
    frames = int(np.ceil((wanted + 1) * base / fps)) + 1
    heard = speaker.hear(samples, frames)
    states = speaker.states(heard, seed, liveliness)
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
    speaker = Speaker(subject, run_dir)
    heard = speaker.hear(checked_samples(samples, rate), frames)
    return speaker.expression(heard, speaker.states(heard, seed))
