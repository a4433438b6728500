"""Speech → motion of one subject: lips from the sound by small networks, everything else sampled from the subject's own motion.

A run keeps what `thnerf.motion_training` has learnt in RUN/motion.safetensors; `predict_track` turns any sound into a Track of the subject.
The mouth is predicted in a few principal modes of the training expressions, measured in mm on the face mesh, so that coefficients that
move the lips count and those that fight each other do not.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError, atomic_path
from thnerf import audio
from thnerf.encoders import columns_of, load_encoder
from thnerf.pose import Layout, PoseModel, sampled_columns, source_states, speech_columns

VERSION = 3
FILE = "motion.safetensors"
CHUNK = 512
"""Frames predicted at a time."""


def save_networks(path: Path, header: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """Write header and arrays of networks to a file, atomically; whole numbers as int32, all others as float32. Inverse of `load_networks`."""
    from safetensors.numpy import save

    arrays = {k: np.ascontiguousarray(v, np.int32 if np.asarray(v).dtype.kind in "iu" else np.float32) for k, v in tensors.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, {"thnerf": json.dumps(header)}))


def load_networks(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """A group of networks that hear the same: first to last, their columns of the features; settings: their size (hidden, layers, ahead), whether
    columns shift with the pitch, whether they begin from the prior; mean, spread (width,) that standardise what they hear."""

    first: int
    last: int
    settings: dict[str, int]
    mean: np.ndarray
    spread: np.ndarray

    def heard(self, features: np.ndarray) -> np.ndarray:
        """Features (T, all columns) → what these networks hear (T, width)."""
        return ((features[:, self.first : self.last] - self.mean) / self.spread).astype(np.float32)

    def network(self, tensors: dict[str, np.ndarray], number: int, outputs: int) -> Any:
        """The network of that number among those of a file, ready to predict."""
        import torch

        from thnerf.lipnet import LipNet

        net = LipNet(self.last - self.first, outputs, self.settings["hidden"], self.settings["layers"], 0.0, self.settings["ahead"])
        net.load_state_dict({k.split(".", 1)[1]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith(f"net{number}.")})
        return net.eval()


class Speaker:
    """A loaded run: sound → coefficients and states, at the subject's frame rate.

    fps; encoder, what it hears with; prior, whose closures and voice it follows; left and right, features that a frame's window reaches
    beyond its own four (see `lipnet.LipNet`).
    """

    def __init__(self, subject: Subject, run_dir: Path) -> None:
        from thnerf.speech_prior import load_prior

        header, tensors = load_networks(Path(run_dir) / FILE)
        names = subject.track.expression_names
        track = subject.track
        if (tuple(header["expression_names"]), header["model_id"], header["torso"]) != (names, track.model_id, track.torso.shape[1]):
            raise InputError(f"{Path(run_dir) / FILE} was trained on another fit of this subject; run thnerf train again")
        self.t, self.fps, self.columns, self.upper = tensors, float(header["fps"]), speech_columns(names), sampled_columns(names)
        try:
            layout = Layout(int(header["torso"]), tuple(names[i] for i in self.upper))
            self.pose = PoseModel.from_tensors(layout, {k[5:]: v for k, v in tensors.items() if k.startswith("pose.")})
            kinds = [Kind(*said, tensors[f"kind{i}.mean"], tensors[f"kind{i}.spread"]) for i, said in enumerate(header["kinds"])]
            self.nets = [(kind := kinds[i % len(kinds)], kind.network(tensors, i, len(tensors["scale"]))) for i in range(int(header["report"]["members"]))]
            self.bilabials = bool(header["config"].get("bilabials", False))
            self.encoder, self.prior = load_encoder(header["config"]["encoder"]), load_prior()
            self.patience = float(header["report"]["patience"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{Path(run_dir) / FILE} is damaged ({error}); delete it and run thnerf train again") from None
        nets = [*(net for _, net in self.nets), self.prior.net]
        self.left, self.right = max(n.left for n in nets), max(n.right for n in nets)

    def hear(self, samples: np.ndarray, frames: int) -> audio.Heard:
        """Mono samples (n,) at audio.RATE as the networks need them, for `frames` frames, with bilabials where the run's settings ask for them."""
        from thnerf.bilabials import heard_bilabials

        heard = audio.hear(samples, self.fps, frames, self.encoder.encode, self.patience)
        return heard if not self.bilabials else dataclasses.replace(heard, bilabial=heard_bilabials(samples, self.fps, frames))

    def lips(self, heard: audio.Heard) -> np.ndarray:
        """(T, number of speech coefficients) from the whole sound."""
        from thnerf.speech_prior import Said

        frames = len(heard.rest)
        x = np.pad(heard.features[: 4 * frames + self.right], ((self.left, 0), (0, 0)), mode="edge")
        x = np.pad(x, ((0, max(0, 4 * frames + self.left + self.right - len(x))), (0, 0)), mode="edge")
        parts = [self._window(x[4 * a : 4 * min(a + CHUNK, frames) + self.left + self.right]) for a in range(0, frames, CHUNK)]
        z, odds, voice = (np.concatenate(p) for p in zip(*parts))
        closed = self.bilabials * Said(np.zeros((frames, 0)), odds, voice).closed_with(heard.bilabial)
        return self.mouth(z, closed, np.maximum(heard.rest, 1 - self.voice(voice)), heard.pause)

    def window(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (4 n + left + right, bands) → modes z (n, K), closed lips (n,), voice (n,) of n frames, each from its own window alone.

        Row 0 is feature 4 i − left of the first frame i. However a sound is cut into windows, its frames come out the same.
        """
        from thnerf.speech_prior import Said

        z, odds, voice = self._window(features)
        return z, self.bilabials * Said(np.zeros((len(z), 0)), odds, voice).closed, voice

    def _window(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`window` with the log odds of closed lips in place of how far they are closed."""
        n = (len(features) - self.left - self.right) // 4
        part = lambda net: features[self.left - net.left : self.left + 4 * n + net.right]  # noqa: E731
        hearing = [(kind, net) for kind, net in self.nets if kind.last <= features.shape[1]]
        z = sum(net.window(kind.heard(part(net))) for kind, net in hearing) / len(hearing) * self.t["gain"]
        columns = columns_of(self.encoder).get(self.prior.encoder)
        if columns is None:
            return z, np.full(n, -9.0, np.float32), np.ones(n, np.float32)
        said = self.prior.read(self.prior.net.window((part(self.prior.net)[:, columns] - self.prior.mean) / self.prior.spread))
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
