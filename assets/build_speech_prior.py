"""Build speech_prior.safetensors: lips, closures and voice from log-mel, for any speaker; see thnerf/speech_prior.py.

Usage: python assets/build_speech_prior.py FOOTAGE [--utterances 1600] [--steps 5000], FOOTAGE being a folder with grid_multi/*.mpg (never grid_s1,
which judges). About 25 minutes on one core, most of it the voices (Debian's packages in `recorded_voices.PACKAGES` have to be there) and sound effects.

Data: 1600 utterances of `speech_corpus.utterances`, each spoilt twice; the ten clips of grid_multi (CC BY 4.0), as they are and spoilt three
times, aligned to their sentences (which their names spell) by `thnerf.alignment`; forty stretches of noise and music. Mouth shapes of all
of them follow from the phonemes by the phantom's rules, so there is one style.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from thnerf_assets.recorded_voices import ARPABET
from thnerf_assets.speech_corpus import noise, spoil, utterances
from render.progress import progress
from thnerf import audio
from thnerf.alignment import forced_alignment
from thnerf.encoders import LogMel
from thnerf.lipnet import Batches, LipNet, Stretch, assign
from thnerf.phantom.motion import loudness
from thnerf.phantom.speech import Phoneme
from thnerf.phantom.visemes import CHANNELS, VISEMES, bilabial_envelope, mouth_weights, segments
from thnerf.speech_prior import FILE, SIDED, SpeechPrior, save_prior

FPS = 25
HIDDEN, LAYERS, AHEAD = 128, 4, 2
LONGEST = 0.14  # s: an alignment lets the first plosive of a clip begin anywhere in the silence before it
OUT = (*CHANNELS, "mouthClose")
IMPORTANCE = {"jawOpen": 3.0, **dict.fromkeys(("mouthFunnel", "mouthPucker", "mouthClose", "mouthLowerDown", "mouthUpperUp"), 1.5)}
GRID = ({"b": "bin", "l": "lay", "p": "place", "s": "set"}, {"b": "blue", "g": "green", "r": "red", "w": "white"}, {"a": "at", "b": "by", "i": "in", "w": "with"},
        {}, dict(zip("z123456789", "zero one two three four five six seven eight nine".split())), {"a": "again", "n": "now", "p": "please", "s": "soon"})
"""Words of a GRID sentence by the letters of its file name."""


def targets(phonemes: list[Phoneme], clean: np.ndarray) -> np.ndarray:
    """(T, channels + 2 + visemes) at the middle of each frame: weights, closed lips, speech, viseme as one of many."""
    count = len(clean) * FPS // audio.RATE
    length = math.ceil(len(clean) / audio.RATE * 200) + 1
    weights = mouth_weights(phonemes, loudness(clean, audio.RATE, length), 200.0)
    time = (np.arange(count) + 0.5) / FPS
    at = np.minimum(np.round(time * 200).astype(int), length - 1)
    lips = np.stack([weights[name + "Left" if name in SIDED else name][at] for name in OUT], 1)
    parts, viseme = segments(phonemes), np.zeros((count, len(VISEMES)))
    names = list(VISEMES)
    viseme[:, 0] = 1
    for name, a, b in parts:
        viseme[(time >= a) & (time < b)] = np.eye(len(names))[names.index(name)]
    return np.concatenate([lips, bilabial_envelope(parts, time)[:, None], 1 - viseme[:, :1], viseme], 1).astype(np.float32)


def corpus(footage: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of features (4 T + 1, bands) and targets (T, …)."""
    rng, hear = np.random.default_rng(2), LogMel().encode
    found = []

    def add(samples: np.ndarray, truth: np.ndarray) -> None:
        features = hear(samples)[: 4 * len(truth) + 1]
        found.append((np.pad(features, ((0, 4 * len(truth) + 1 - len(features)), (0, 0)), mode="edge"), truth))

    for said in progress(utterances(count, 1), "speech", total=count, unit="utterance"):
        truth = targets(said.phonemes, said.samples)
        for _ in range(2):
            add(spoil(said.samples, rng), truth)
    for clip in sorted((footage / "grid_multi").glob("*.mpg")):
        samples, letters = audio.load_audio(clip), clip.stem[-6:]
        text = " ".join(words.get(letter, letter) for words, letter in zip(GRID, letters))
        truth = targets([(ARPABET[p.lower()], max(a, b - LONGEST) if p in "PBM" else a, b) for p, a, b in forced_alignment(samples, text)], samples)
        for k in range(4):
            add(samples if k == 0 else spoil(samples, rng), truth)
    silent = np.zeros((6 * FPS, len(OUT) + 2 + len(VISEMES)), np.float32)
    silent[:, len(OUT) + 2] = 1
    for _ in range(40):
        length = 6 * audio.RATE
        add((0.1 * noise(rng, length) + 0.03 * rng.random() * noise(rng, length)).astype(np.float32), silent)
    return found


def fit(data: list[tuple[np.ndarray, np.ndarray]], steps: int) -> SpeechPrior:
    """Train the network: squared errors of weights and their velocities, cross-entropies of closures, speech and visemes."""
    heard = np.concatenate([x for x, _ in data[::3]])
    mean, spread = heard.mean(0), heard.std(0) + 0.3
    k = len(OUT)
    scale = np.concatenate([y[:, :k] for _, y in data]).std(0) + 0.02
    stretches = [Stretch((x - mean) / spread, np.concatenate([y[:, :k] / scale, y[:, k:]], 1), np.ones(len(y), bool), np.zeros(len(y))) for x, y in data]
    torch.manual_seed(0)
    net = LipNet(len(mean), k + 2 + len(VISEMES), HIDDEN, LAYERS, 0.1, AHEAD)
    batches, weight = Batches(stretches, net, 64, 0, 0.25), torch.tensor([IMPORTANCE.get(name, 0.5) for name in OUT])
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.02)
    average = [p.detach().clone() for p in net.parameters()]
    for step in progress(range(steps), "prior", unit="step"):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-6
        x, y, mask = batches.draw(16)
        net.train()
        out, m, total = net(x).transpose(1, 2), mask[..., None], mask.sum()
        error = (out[..., :k] - y[..., :k]) * m
        velocity = error[:, 1:] - error[:, :-1]
        loss = (2 * (error.square() * weight).sum() + (velocity.square() * weight).sum()) / weight.sum() / total
        loss = loss + 0.6 * (F.binary_cross_entropy_with_logits(out[..., k : k + 2], y[..., k : k + 2].clamp(0, 1), reduction="none") * m).sum() / total
        loss = loss - 0.3 * ((y[..., k + 2 :] * F.log_softmax(out[..., k + 2 :], -1)).sum(-1) * mask).sum() / total
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        with torch.no_grad():
            for a, p in zip(average, net.parameters()):
                a.lerp_(p, 1 - min(0.995, step / (step + 9)))
    assign(net, average)
    return SpeechPrior(OUT, mean, spread, scale, net.eval(), {"encoder": "logmel", "hidden": HIDDEN, "layers": LAYERS, "ahead": AHEAD})


def main() -> None:
    """Speak, spoil, align, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("--utterances", type=int, default=1600)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / FILE)
    chosen = parser.parse_args()
    save_prior(chosen.out, fit(corpus(chosen.footage, chosen.utterances), chosen.steps))


if __name__ == "__main__":
    main()
