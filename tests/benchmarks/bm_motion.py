"""Speech to motion, asked against measured: speeds; lips of a subject that other voices drive; silence, noise and music; realism of the sampled head motion.

Run: python tests/benchmarks/bm_motion.py [--subject SUBJECT [--run default]] [--footage FOLDER]

Speeds need nothing, the rest a trained subject. With FOLDER (wav/jfk.wav, wav/Claire_neutral.wav, obama/obama.mp4) these voices drive it and closures
are counted on the Track's mesh: closed = lip gap below 15 % of the clip's 95th percentile, within ±2 frames of a bilabial of the forced alignment.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Callable

import numpy as np

from recon.model import MorphableModel
from recon.subject import Subject
from recon.track import Track
from thnerf import audio, encoders
from thnerf.encoders import load_encoder
from thnerf.lipnet import LipNet
from thnerf.pose import Layout, PoseModel

SECONDS, FPS = 60, 25
TEXTS = {
    "wav/jfk.wav": "and so my fellow americans ask not what your country can do for you ask what you can do for your country",
    # as pocketsphinx hears it with its language model, since the transcript is not at hand: some words are wrong, and `thnerf.bilabials` hears with that model, too
    "wav/Claire_neutral.wav": "she usually has to push the garage door closed two our tickets at the church watching on magic shell "
                              "we well as with lucy about a cop car in her new media will car",
    "obama/obama.mp4": "you about the battle we're waging against an oil spill that is assaulting our shores and our citizens on april twentieth an explosion "
                       "ripped through b p deepwater horizon drilling rig about forty miles off the coast of louisiana eleven workers lost their lives seventeen others",
}


def clock(work) -> float:
    """Seconds of the second of two calls."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def speeds() -> None:
    """Print one line a stage."""
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.normal(size=SECONDS * audio.RATE)).astype(np.float32)
    frames = SECONDS * FPS
    features = audio.hear(samples, FPS, frames).features
    net = LipNet(audio.BANDS, 10)
    states = np.cumsum(rng.normal(size=(1200, 30)), 0) / 30
    model = PoseModel(FPS, Layout(6, tuple(f"eye{i}" for i in range(14))), states.astype(np.float32), np.array([[0, 1200]]), np.ones(1200, np.float32),
                      np.zeros((14, 0)), np.array([4.0, 2.0]), states.min(0), states.max(0))
    work = {"log-mel (asked: 20)": lambda: load_encoder("logmel").encode(samples), "one lip network": lambda: net.predict(features, frames),
            "head motion": lambda: model.sample(np.ones(frames), 0)}
    if importlib.util.find_spec("pocketsphinx") is not None:
        from thnerf.bilabials import bilabial_probability
        from thnerf.phantom.speech import speak

        spoken, rate, _ = speak(" ".join(TEXTS.values()))  # in noise there are no words to look for
        spoken = np.resize(audio.resample(spoken, rate), len(samples))
        phones = load_encoder("phones")

        def anew(*calls) -> Callable[[], None]:
            """Does `calls` without what the encoder remembers of the sound."""
            return lambda: [encoders._phone_scores.cache_clear(), *(call() for call in calls)]

        hear, close = lambda: phones.encode(spoken), lambda: bilabial_probability(spoken, FPS, frames)
        work |= {"phones": anew(hear), "bilabials": anew(close), "phones, bilabials (asked: 8)": anew(hear, close)}
    for name, call in work.items():
        seconds = clock(call)
        print(f"{name:28s} {seconds * 1000:8.1f} ms for {SECONDS} s of speech: {SECONDS / seconds:8.1f} times real time")


def lip_gap(track: Track, model: MorphableModel) -> tuple[np.ndarray, float]:
    """Inner-lip gap (T,) mm of the Track's mesh, and that of its neutral face."""
    height = lambda vertices: model.points(vertices, "mediapipe478")[..., [13, 14], 1]  # noqa: E731
    own = height(model.vertices(track.shape, np.zeros(len(model.expression_names))))
    lips = own + np.tensordot(track.expression, height(model.expression_basis), 1)
    return lips[:, 0] - lips[:, 1], float(own[0] - own[1])


def closures(gap: np.ndarray, phones: list[tuple[str, float, float]], fps: float) -> np.ndarray:
    """Bilabials that are closed, bilabials, other speech frames that are closed, other speech frames."""
    closed, near, speech = gap < 0.15 * np.percentile(gap, 95), np.zeros(len(gap), bool), np.zeros(len(gap), bool)
    met = count = 0
    for phone, a, b in phones:
        first, last = int(a * fps), int(np.ceil(b * fps - 1e-9))
        speech[first:last] |= phone != "SIL"
        if phone in "PBM" and first < len(gap):
            window = slice(max(0, first - 2), last + 2)
            near[window] = True
            met, count = met + closed[window].any(), count + 1
    other = speech & ~near
    return np.array([met, count, (closed & other).sum(), other.sum()])


def lips(subject: Subject, run_dir: Path, footage: Path) -> None:
    """Closures and silence of the subject that other voices drive."""
    from thnerf.alignment import forced_alignment
    from thnerf.motion import predict_track

    total = np.zeros(4)
    for name, text in TEXTS.items():
        samples = audio.load_audio(footage / name)
        track = predict_track(subject, run_dir, samples)
        found = closures(lip_gap(track, subject.model)[0], forced_alignment(samples, text), track.fps)
        total += found
        print(f"{name:28s} bilabials closed {found[0]:.0f} of {found[1]:.0f}, other speech frames closed {found[2] / found[3]:.3f}")
    print(f"{'all voices':28s} bilabials closed {total[0] / total[1]:.2f} (asked: 0.85), other speech frames closed {total[2] / total[3]:.3f} (asked: at most 0.10)")
    silent, half = np.zeros(round(1.5 * audio.RATE), np.float32), samples[: 5 * audio.RATE]
    track = predict_track(subject, run_dir, np.concatenate([half, silent, half]))
    gap, neutral = lip_gap(track, subject.model)
    rest = slice(round(5.2 * track.fps), round(6.3 * track.fps))
    speech = np.median(np.r_[gap[: 5 * 25], gap[round(6.6 * track.fps) :]]) - neutral
    print(f"silence: gap above neutral {max(0.0, gap[rest].max() - neutral) / speech:.2f} of its speech median (asked: at most 0.10); jawOpen {track.column('jawOpen')[rest].mean():.3f}")
    for name, sound in noises().items():
        moved = lip_gap(predict_track(subject, run_dir, sound), subject.model)[0] - neutral
        print(f"{name + ':':9s}gap above neutral at most {max(0.0, moved.max()) / speech:.2f} of its speech median, standard deviation {moved.std() / speech:.2f}")


def noises(seconds: float = 6.0) -> dict[str, np.ndarray]:
    """Sounds in which nobody speaks, (n,) float32 at audio.RATE each."""
    rng, n = np.random.default_rng(0), round(seconds * audio.RATE)
    time, beat = np.arange(n) / audio.RATE, np.arange(n) % (audio.RATE // 2) / audio.RATE
    chord = lambda parts: sum(np.sin(2 * np.pi * f * k * time) / k for f in (220, 277, 330) for k in range(1, parts + 1)) * np.exp(-4 * beat)  # noqa: E731
    found = {"noise": rng.normal(size=n), "sines": chord(1), "saws": chord(11), "drums": rng.normal(size=n) * np.exp(-40 * beat)}
    return {name: (0.1 * x / x.std()).astype(np.float32) for name, x in found.items()}


def realism(subject: Subject, run_dir: Path) -> None:
    """Head speed and amplitude against the two halves of the footage, and whether five minutes repeat themselves."""
    from scipy.stats import wasserstein_distance

    from thnerf.motion import Speaker

    speaker = Speaker(subject, run_dir)
    train = subject.frames("train")
    pose = speaker.pose.layout.pack(subject.track)[train][:, :6]
    seam = np.isin(train[1:], subject.track.clip_starts) | (np.diff(train) != 1)
    speed = np.where(seam[:, None], np.nan, np.diff(pose, axis=0))
    ratios, repeats = {"speed": [], "amplitude": []}, []
    half = len(pose) // 2
    for seed in range(3):
        activity = speaker.pose.activity[np.arange(300 * FPS) % len(speaker.pose.activity)]
        moved = speaker.pose.sample(activity, seed)[:, :6]
        for k in range(6):
            keep = lambda x: np.abs(x[np.isfinite(x)])  # noqa: E731
            ratios["speed"].append(wasserstein_distance(keep(np.diff(moved[:, k])), keep(speed[:, k])) / wasserstein_distance(keep(speed[:half, k]), keep(speed[half:, k])))
            ratios["amplitude"].append(wasserstein_distance(moved[:, k], pose[:, k]) / wasserstein_distance(pose[:half, k], pose[half:, k]))
            x = moved[:, k] - moved[:, k].mean()
            power = np.fft.irfft(np.abs(np.fft.rfft(x, 2 * len(x))) ** 2)[: len(x)] / (np.arange(len(x), 0, -1))
            repeats.append(np.max(power[5 * FPS : len(x) // 2] / power[0]))
    for name, values in ratios.items():
        print(f"{name} of the head: Wasserstein distance {np.mean(values):.2f} of that between the halves of the footage (asked: at most 1.30)")
    print(f"autocorrelation beyond 5 s over 5 min: at most {max(repeats):.2f} (asked: 0.50)")


def main() -> None:
    """Print what was asked and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", type=Path)
    parser.add_argument("--run", default="default")
    parser.add_argument("--footage", type=Path)
    chosen = parser.parse_args()
    speeds()
    if chosen.subject is not None:
        subject = Subject.open(chosen.subject)
        realism(subject, subject.run(chosen.run))
        if chosen.footage is not None:
            lips(subject, subject.run(chosen.run), chosen.footage)


if __name__ == "__main__":
    main()
