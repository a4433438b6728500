"""What `thnerf.motion` says a subject's speech with: small networks, learnt from the sound and the fitted mouth of the training footage.

Networks that hear different things err differently, so an ensemble of them is nearer to the footage than any (measured by cross-validation,
docs/speech.md): some hear log-mel energies, some the phones of an acoustic model, some begin from the shipped prior. Nothing but the training frames
of the split is seen or heard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from recon.subject import Subject
from render.files import InputError
from render.progress import progress
from thnerf import audio, mouth
from thnerf.config import MotionConfig
from thnerf.encoders import Encoder, best_encoder, columns_of, load_encoder
from thnerf.motion import FILE, VERSION, Kind, load_networks, save_networks
from thnerf.pose import fit_pose, speech_columns

STATE = "motion-state.safetensors"  # of an unfinished training
FEWEST = 8
"""Training frames below which nothing is learnt at all."""


def train_motion(subject: Subject, run_dir: Path, config: MotionConfig | None = None, seconds: float = 60.0) -> dict[str, Any]:
    """Train on the subject's training frames for at most about `seconds` and write run_dir/motion.safetensors.

    A finished network of the same settings and footage is kept. Returns {validation_correlation (of the lip opening, on
    stretches that the predicting networks did not train on), correlation and gain by mode, steps, seconds, frames, reused}.
    Raises InputError when the subject has no sound or too little speech to learn from.
    """
    from thnerf import lipnet

    config, run_dir, begin = config or MotionConfig(), Path(run_dir), time.perf_counter()
    if config.encoder == "auto":
        config = dataclasses.replace(config, encoder=best_encoder())
    if not subject.has_audio:
        raise InputError(f"{subject.path} has no sound, so its speech-to-motion network cannot be trained; fit footage with sound")
    fingerprint = _fingerprint(subject, config)
    if (run_dir / FILE).exists():
        try:
            old = load_networks(run_dir / FILE)[0]
        except InputError:
            old = {}
        if old.get("fingerprint") == fingerprint:
            return {**old["report"], "reused": True}
    track, train = subject.track, subject.frames("train")
    columns, encoder = speech_columns(track.expression_names), load_encoder(config.encoder)
    ranges, heard, rests = _hear_training(subject, encoder)
    if (found := min(sum(b - a for a, b in ranges), len(train))) < FEWEST:
        raise InputError(f"{subject.path} has {found} training frames with sound and a face, and speech-to-motion needs {FEWEST}; fit a longer clip")
    modes = mouth.fit_modes(track.expression[train][:, columns], *mouth.lip_metric(subject), config.modes)
    z = (track.expression[:, columns] - modes.mean) @ modes.forward / modes.scale
    used = np.zeros(len(track), bool)
    used[train] = True
    stretches = [lipnet.Stretch(h.features, z[a:b].astype(np.float32), used[a:b], h.pause, r) for (a, b), h, r in zip(ranges, heard, rests)]
    kinds = _kinds(config, encoder, np.concatenate([h.features for h in heard]))
    weights = modes.scale / modes.scale.sum()
    opening = modes.opening / max(float(np.std(z[train] @ modes.opening)), 1e-6)
    tensors, said, check, steps = _fit_ensemble(stretches, kinds, weights, opening, config, seconds - (time.perf_counter() - begin), run_dir / STATE, fingerprint)
    truth, paused, rests = (np.concatenate([getattr(s, name)[s.mask > 0] for s in check]) for name in ("targets", "pause", "rests"))
    gain, correlation = mouth.variance_gain(said, truth)
    activity, pause = np.zeros(len(track), np.float32), np.zeros(len(track))
    for (a, b), h in zip(ranges, heard):
        activity[a:b], pause[a:b] = h.activity, h.pause
    neutral = mouth.neutral(z[train], opening, pause[train])
    toward, shut = mouth.shutting(z[train], opening)
    lips, real, closed = said * gain @ opening, truth @ opening, float(neutral @ opening)
    closing = mouth.closing(lips, real, paused, closed)
    patience = mouth.patience(lips, real, closed, rests)
    pose = fit_pose(track, train, activity)
    y = track.expression[train][:, columns]
    report = {
        "validation_correlation": mouth.correlation(said @ opening, truth @ opening), "correlation": correlation.tolist(),
        "gain": gain.tolist(), "closing": closing, "patience": patience,
        "frames": len(train), "modes": len(weights), "members": config.members * len(kinds), "steps": steps, "seconds": time.perf_counter() - begin}
    header = {"version": VERSION, "fingerprint": fingerprint, "report": report, "config": dataclasses.asdict(config),
              "kinds": [[kind.first, kind.last, kind.settings] for kind in kinds],
              "expression_names": track.expression_names, "model_id": track.model_id, "torso": track.torso.shape[1], "fps": track.fps}
    tensors |= {f"pose.{k}": v for k, v in pose.tensors().items()}
    tensors |= {f"kind{i}.{name}": getattr(kind, name) for i, kind in enumerate(kinds) for name in ("mean", "spread")}
    tensors |= {"neutral": neutral, "opening": opening, "toward": toward, "shut": np.array([shut]), "closing": np.array([closing]),
                "gain": gain, "scale": modes.scale, "back": modes.back, "centre": modes.mean,
                "low": y.min(0), "high": y.max(0), "rest": np.median(track.expression[train], 0)}
    save_networks(run_dir / FILE, header, tensors)
    (run_dir / STATE).unlink(missing_ok=True)
    return {**report, "reused": False}


def _kinds(config: MotionConfig, encoder: Encoder, features: np.ndarray) -> list[Kind]:
    """One kind of network for each part of the encoder, and one that begins from the shipped prior where that hears a part of it, too."""
    from thnerf.speech_prior import load_prior

    kinds, size = [], {name: getattr(config, name) for name in ("hidden", "layers", "ahead")}
    for name, where in columns_of(encoder).items():
        mean, spread = features[:, where].mean(0), features[:, where].std(0) + 0.3
        kinds.append(Kind(where.start, where.stop, {**size, "pitched": int(name == "logmel"), "prior": 0}, mean, spread))
    prior = load_prior()
    if config.prior and (where := columns_of(encoder).get(prior.encoder)) is not None:
        size = {name: int(prior.settings[name]) for name in size}
        kinds.append(Kind(where.start, where.stop, {**size, "pitched": int(prior.encoder == "logmel"), "prior": 1}, prior.mean, prior.spread))
    return kinds


def _fit_ensemble(stretches: list[Any], kinds: list[Kind], weights: np.ndarray, opening: np.ndarray, config: MotionConfig, seconds: float, state: Path,
                  fingerprint: str) -> tuple[dict[str, np.ndarray], np.ndarray, list[Any], int]:
    """Train the networks one after another, of each kind in turn → (their tensors, what they said of the frames they had not seen (N, K), the
    stretches of these, steps in all). Those of one member leave out the same stretches, and what they say is averaged, as when they speak.

    Each finished network is kept in `state` (some seconds' work), so that a stopped run of that fingerprint goes on after it.
    """
    from thnerf import lipnet
    from thnerf.speech_prior import load_prior

    header, tensors = _unfinished(state, fingerprint)
    steps, begin, total = header["steps"], time.perf_counter() - header["seconds"], config.members * len(kinds)
    said, unseen = [], []
    with progress(None, "speech to motion", total=100, unit="%") as bar:
        for member in range(config.members):
            fit, check = lipnet.hold_out(stretches, member, config.members, config.hold_out)
            outs = []
            for number, kind in enumerate(kinds, member * len(kinds)):
                advance = lambda done: bar.update(round(100 * (number + done) / total) - bar.n)  # noqa: B023, E731
                hear = lambda parts: [dataclasses.replace(s, features=kind.heard(s.features)) for s in parts]  # noqa: B023, E731
                if number < header["networks"]:
                    net = kind.network(tensors, number, len(weights))
                    outs.append([net.predict(s.features, len(s)) for s in hear(check)])
                    advance(1.0)
                    continue
                part = max(0.5, (seconds - (time.perf_counter() - begin)) / (total - number))
                start = load_prior().net if kind.settings["prior"] else None
                net, out, count = lipnet.fit_member(hear(fit), hear(check), weights, opening, {**dataclasses.asdict(config), **kind.settings},
                                                    config.seed * 1000 + number, part, advance, start)
                steps += count
                outs.append(out)
                tensors |= {f"net{number}.{k}": v.numpy() for k, v in net.state_dict().items()}
                save_networks(state, {"version": VERSION, "fingerprint": fingerprint, "networks": number + 1, "steps": steps, "seconds": time.perf_counter() - begin}, tensors)
            said += [np.mean(out, 0)[s.mask > 0] for *out, s in zip(*outs, check)]
            unseen += check
    return tensors, np.concatenate(said), unseen, steps


def _unfinished(state: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a stopped training has left behind, or a header that says nothing has been done (a damaged state is done again)."""
    if state.exists():
        try:
            header, tensors = load_networks(state)
            if header.get("fingerprint") == fingerprint:
                return header, tensors
        except InputError:
            state.unlink()
    return {"networks": 0, "steps": 0, "seconds": 0.0}, {}


def _hear_training(subject: Subject, encoder: Encoder) -> tuple[list[tuple[int, int]], list[audio.Heard], list[np.ndarray]]:
    """Training frame ranges, cut at clip starts, the sound of each, and its rests (frames, number of mouth.PATIENCE); nothing outside is listened to."""
    track, rate = subject.track, 3 * audio.RATE  # the rate of audio.wav; cut before resampling, whose filter would hear across the cut
    samples = audio.load_audio(subject.audio_path, rate)
    clips = [(c.start, c.stop) for c in track.clips]
    ranges = [(max(a, c), min(b, d)) for a, b in subject.info["split"]["train"] for c, d in clips if min(b, d) - max(a, c) >= 2]
    at = lambda frame: round(frame * rate / track.fps)  # noqa: E731
    found, rests = [], []
    for a, b in ranges:
        sound = audio.resample(samples[at(a) : at(b)], rate)
        found.append(audio.hear(sound, track.fps, b - a, encoder.encode))
        rests.append(np.stack([audio.hear(sound, track.fps, b - a, patience=p).rest for p in mouth.PATIENCE], 1))
    return ranges, found, rests


def _fingerprint(subject: Subject, config: MotionConfig) -> str:
    """Changes with the settings, the split, the sound and the fitted expressions."""
    digest = hashlib.sha256(json.dumps([VERSION, dataclasses.asdict(config), subject.info["split"]], sort_keys=True).encode())
    digest.update(subject.track.expression.tobytes())
    digest.update(subject.audio_path.read_bytes())
    return digest.hexdigest()
