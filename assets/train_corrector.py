"""Trains the landmark corrector (recon/corrector.py) on phantoms and stores it as assets/landmark_corrector.safetensors.

    python assets/train_corrector.py render --work FOLDER [--first 20000] [--people 600]     # pictures, their truth, and what a fit by landmarks makes of them
    python assets/train_corrector.py train --work FOLDER [--minutes 45]                      # after it; several renders with other --first may run at once

From identity WIDE on, everybody looks aside and up and down as far as REACHES goes, and smiles and puckers widely in most frames.

The shipped weights: 534 people, two hours in all on two cores; then, `--start` with what there was, these and 706 from WIDE on for 48 minutes on one core, both without `Consequence`; then, with it,
459 from WIDE + 10000 on for 58 minutes; then these and 308 from WIDE + 20000 and + 21000 on for 77, with JUDGED: on people held out
0.49 mm (1.66 before it), pucker off by 0.10, smile by 0.06, pitch by 0.6 degrees in a single picture.

Every person speaks and looks around, with a third of the frames at random expressions; the fit sees what the detector sees. Identities begin at 20000: no
phantom that a test, a benchmark or another script of this folder uses is among them. Every twentieth person is held out, and the script prints their errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # runs from a checkout that is not installed

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait
from calibrate_response import OBJECTS, SUBJECTS, VERBS, draw_expression  # noqa: E402

import torch  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402
from torch import nn  # noqa: E402

from recon import landmarks as lm  # noqa: E402
from recon.atlas import Atlas, make_atlas, unroll  # noqa: E402
from recon.config import FitConfig  # noqa: E402
from recon.corrector import BATCH, FILE, GAP, LANDMARKS, LOOKS, Corrector, as_input, load_corrector, seen, typical  # noqa: E402
from recon.landmarks import load_detector, quiet_native_log  # noqa: E402
from recon.model import MorphableModel, load_model  # noqa: E402
from recon.problem import WEAK  # noqa: E402
from recon.problem import prior as prior_of  # noqa: E402
from recon.solve import UNSURE, solve  # noqa: E402
from recon.track import Track  # noqa: E402
from render.files import atomic_path  # noqa: E402
from render.progress import progress  # noqa: E402
from render.rotations import axis_angle_to_matrix, matrix_to_axis_angle  # noqa: E402
from thnerf.phantom.appearance import draw_look  # noqa: E402
from thnerf.phantom.motion import phantom_track  # noqa: E402
from thnerf.phantom.scene import Studio, utterance  # noqa: E402

FRAMES, SIZE = 36, 256  # pictures of a person, their side in px
REACHES = ((40.0, 25.0, 12.0), (30.0, 18.0, 10.0), (15.0, 10.0, 6.0))  # degrees of yaw, pitch and roll
WIDE = 30000  # first identity of those who look aside and smile and pucker widely
SPREADS = (0.5, 1.1)  # standard deviation of shape coefficients
SHARES = ((0.6, 1.2), (-0.2, 0.6))  # of the fit's error that a start keeps: that of a first fit, and what a second one meets
TURN, SHIFT, EXPRESSION, SHAPE = np.deg2rad(1.0), (1.5, 1.5, 8.0), 0.1, 0.25  # noise of a start: rad, mm, coefficients
RATE = 2e-3
MATTERS = 40.0  # weight of what errors do to pose and mouth, beside the likelihood of each landmark by itself
JUDGED = 2.0  # of what they do to jaw, smiles and pucker, beside all of the mouth
UNIT = 0.92  # mm: a hundredth of the interocular distance, in which the solver counts


def render(work: Path, model: MorphableModel, first: int, people: int) -> None:
    """One .npz a person in `work`: pictures (n,SIZE,SIZE,3), the true and the fitted coefficients. Those that exist are kept."""
    with quiet_native_log():
        detector = load_detector("mediapipe")
    for identity in progress(range(first, first + people), "people", unit="person"):
        path = work / f"{identity}.npz"
        if path.exists():
            continue
        random = np.random.default_rng([identity, 2])
        text = " ".join(random.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ("and",), SUBJECTS, VERBS, OBJECTS))
        samples, rate, phonemes = utterance(text, "en-us", 155, 25)
        shape = np.clip(random.normal(0, random.uniform(*SPREADS), len(model.shape_basis)), -2, 2).astype(np.float32)
        track = phantom_track(phonemes, samples, rate, model, shape, seed=identity, size=SIZE, reach=REACHES[0 if identity >= WIDE else identity % len(REACHES)])
        chosen = np.linspace(0, len(track) - 1, FRAMES).astype(int)
        expression = track.expression.copy()
        for i in chosen[::3]:
            expression[i] = draw_expression(model, random)
        if identity >= WIDE:
            for i in chosen:
                for names in (("mouthSmileLeft", "mouthSmileRight"), ("mouthPucker",)):
                    columns = [model.index(name) for name in names]
                    if random.random() < 0.4:
                        expression[i, columns] = np.clip(np.maximum(expression[i, columns], random.uniform(0.2, 0.9)) * random.normal(1, 0.08, len(columns)), 0, 1)
        track = track.replace(expression=expression)
        studio = Studio(model, track, draw_look(identity))
        pictures = np.stack([studio.frame(int(i)) for i in chosen])
        found = detector.detect(pictures)
        if found.valid.sum() < FRAMES // 2:
            continue
        fitted = solve(found.points, found.valid, (0,), 25, SIZE, SIZE, model, FitConfig(photometric=False, pose_smoothing=0, expression_smoothing=0))
        keep = found.valid
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as stream:
                np.savez(stream, pictures=pictures[keep], shape=shape, **_coefficients(track, chosen[keep], "true"), fitted_shape=fitted.shape,
                         **_coefficients(fitted, np.flatnonzero(keep), "fitted"))


def _coefficients(track: Track, frames: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """Pose and expression of some frames of a Track, and its focal length, by name."""
    found = {name: getattr(track, name)[frames] for name in ("rotation", "translation", "expression")}
    return {f"{prefix}_{name}": np.asarray(value, np.float32) for name, value in {**found, "focal": track.camera.K[0, 0]}.items()}


def starts(path: Path) -> Path:
    """What a first fit sees of a person: an .npz beside theirs with faces (2n,…) int8, slopes (2n,L,2,3) and offsets (2n,L,2) mm in the picture."""
    out = path.with_suffix(".starts")
    if out.exists():
        return out
    model, random = load_model(), np.random.default_rng([int(path.stem), 3])
    atlas, rows = _atlas(), []
    marks = lambda shape, e: model.points(model.vertices(shape, e), atlas.scheme)[None, :LANDMARKS].astype(float)  # noqa: E731
    with np.load(path) as data:
        d = {name: data[name] for name in data.files}
    S, true_focal, fitted_focal = len(d["fitted_shape"]), float(d["true_focal"]), float(d["fitted_focal"])
    for i, picture in enumerate(d["pictures"]):
        R, R_fit = (axis_angle_to_matrix(d[f"{k}_rotation"][i : i + 1].astype(float))[0] for k in ("true", "fitted"))
        t, t_fit, e, e_fit = (d[f"{k}_{name}"][i].astype(float) for name in ("translation", "expression") for k in ("true", "fitted"))
        truth = seen(marks(d["shape"], e), R[None], t[None], true_focal)[0]
        for low, high in SHARES:
            share, noise = random.uniform(low, high), random.random()
            turn = share * matrix_to_axis_angle((R_fit @ R.T)[None])[0] + noise * TURN * random.normal(size=3)
            at = t + share * (t_fit - t) + noise * np.array(SHIFT) * random.normal(size=3)
            expression = np.clip(e + share * (e_fit - e) + noise * EXPRESSION * random.normal(size=len(e)) * (random.random(len(e)) < 0.3), 0, 1)
            shape = (1 - share) * d["shape"]
            shape[:S] += share * d["fitted_shape"] + noise * SHAPE * random.normal(size=S)
            focal = float(true_focal * (fitted_focal / true_focal) ** share)
            turned, scale = axis_angle_to_matrix(turn[None]) @ R, at[2] / focal
            px, slopes = seen(marks(shape, expression), turned, at[None], focal)
            rows.append((unroll(atlas, picture, model.vertices(shape, expression), turned[0], at, focal), (slopes[0] * scale).astype(np.float16),
                         ((truth - px)[0] * scale).astype(np.float16)))
    with atomic_path(out) as temporary:
        with open(temporary, "wb") as stream:
            np.savez(stream, **dict(zip(("faces", "slopes", "offsets"), map(np.stack, zip(*rows)))))
    return out


def _alone() -> None:
    """Keep a worker to one thread: several pools of threads wait for each other."""
    import cv2

    cv2.setNumThreads(1)
    threadpool_limits(1)


@lru_cache(maxsize=1)
def _atlas() -> Atlas:
    return make_atlas(load_model())


class Data:
    """Starts of many people in memory, and what each looks like on average under either kind of start."""

    def __init__(self, files: list[Path]) -> None:
        parts, averages, self.person = [], [], []
        for path in files:
            with np.load(path) as data:
                parts.append([data[name] for name in ("faces", "slopes", "offsets")])
            faces = parts[-1][0]
            self.person += [len(averages), len(averages) + 1] * (len(faces) // 2)
            averages += [typical(faces[0::2]), typical(faces[1::2])]
        self.faces, self.slopes, self.offsets = (np.concatenate(p) for p in zip(*parts))
        self.averages, self.person = np.stack(averages), np.array(self.person)

    def batch(self, rows: np.ndarray, random: np.random.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Faces, averages, slopes and offsets of some rows; random: as other people, lights and cameras would show them."""
        faces, average = as_input(self.faces[rows]), as_input(self.averages[self.person[rows]])
        if random is not None:
            faces[:, :LOOKS], average = disturbed(faces[:, :LOOKS], average, random)
        return faces, average, torch.from_numpy(self.slopes[rows]).float(), torch.from_numpy(self.offsets[rows]).float()


def disturbed(x: torch.Tensor, average: torch.Tensor, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B,LOOKS,SIDE,SIDE) of unrolled faces and their person's average that no phantom has: marks of any size, local changes of contrast, blur, channels
    missing, parts covered (domain randomisation, Tobin et al. 2017). Marks are those of the person, in both. What is hidden stays 0."""
    B, shown, known = len(x), x != 0, average != 0
    draw = lambda low, high, *more: torch.from_numpy(random.uniform(low, high, (B, *(more or (1, 1, 1)))).astype(np.float32))  # noqa: E731
    soft = draw(0, 1, 4, 1, 1) * (draw(0, 1, 4, 1, 1) < 0.4)  # video stores colour more coarsely
    x = x + soft * (nn.functional.avg_pool2d(x, 3, 1, 1) - x)
    field = lambda cells, channels: nn.functional.interpolate(torch.randn(B, channels, cells, cells), size=x.shape[2:], mode="bilinear")  # noqa: E731
    gain = torch.exp(0.5 * draw(0, 1) * field(5, 1)) * draw(0.7, 1.3, 4, 1, 1)
    marks = draw(0, 0.6) * field(14, 4) * draw(0, 1, 4, 1, 1) + draw(0, 0.6) * field(37, 4) * draw(0, 1, 4, 1, 1)
    kept = ~((draw(0, 1, 4, 1, 1) < torch.tensor([0.1, 0.25, 0.1, 0.25])[:, None, None]) & (draw(0, 1) < 0.7))
    now = draw(0, 0.4) * field(20, 4) * (draw(0, 1) < 0.5) + draw(0, 0.4) * torch.randn(x.shape)  # shadows and noise of this picture only
    at, half = draw(0, x.shape[2], 2, 1, 1), draw(4, 18, 2, 1, 1) * (draw(0, 1) < 0.3)
    grid = torch.stack(torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij"))[None]
    covered = ((grid - at).abs() < half).all(1, keepdim=True)
    return (x * gain + marks + now) * kept * shown * ~covered, (average * gain + marks) * kept * known * (draw(0, 1) < 0.9)


def likelihood(found: torch.Tensor, deviation: torch.Tensor, slopes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of picture offsets (B,L,2) mm, a Gaussian each; what the picture does not show of a displacement stays small."""
    left = torch.einsum("blij,blj->bli", slopes, found) - offsets
    return (0.5 * (left**2).sum(-1) * torch.exp(-2 * deviation) + 2 * deviation).mean() + 1e-3 * (found**2).mean()


class Consequence:
    """What errors of landmarks do to the pose and the mouth of a fit: one linear step of the solver with its weights and priors, pose and expressions together."""

    def __init__(self) -> None:
        model, atlas = load_model(), _atlas()
        self.names = tuple(n for n in model.expression_names if n.startswith(("mouth", "jaw")))
        marks = model.points(model.mean, atlas.scheme)[:LANDMARKS].astype(np.float64)
        arm = marks - marks.mean(0)
        turns = [np.cross(axis, arm) for axis in np.eye(3)]
        shifts = [np.repeat(axis[None], LANDMARKS, 0) for axis in np.eye(3)]
        moves = model.points(model.expression_basis, atlas.scheme)[[model.index(n) for n in self.names], :LANDMARKS]
        self.columns = torch.from_numpy(np.concatenate([np.stack(turns) * np.deg2rad(1), np.stack(shifts), moves]).astype(np.float32))  # (K,L,3): a degree, a mm, a weight of 1
        prior = np.diag([1e-3] * 6 + [0.0] * len(self.names))
        prior[6:, 6:] = prior_of(self.names, WEAK, True)[0]
        self.prior = torch.from_numpy(prior.astype(np.float32))
        base = np.ones(LANDMARKS, np.float32)
        base[list(lm.FACE_OVAL)] = 0.2
        base[list(lm.OUTER_LIP)], base[list(lm.INNER_LIP)] = 3, 8
        self.base = torch.from_numpy(base)
        self.judged = [6 + self.names.index(n) for n in ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthPucker")]

    def __call__(self, found: torch.Tensor, deviation: torch.Tensor, slopes: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Errors (B,K) of pose (degrees, mm) and mouth coefficients."""
        left = (torch.einsum("blij,blj->bli", slopes, found) - offsets) / UNIT
        D = torch.einsum("blij,klj->blik", slopes, self.columns) / UNIT
        certain = 1 / (1 + ((torch.exp(2 * deviation.detach()) + GAP**2).sqrt() / UNSURE) ** 2)
        weighted = D * (self.base * certain)[..., None, None]
        H = torch.einsum("blik,blij->bkj", weighted, D) + self.prior
        return torch.linalg.solve(H, torch.einsum("blik,bli->bk", weighted, left)[..., None])[..., 0]


def train(work: Path, minutes: float, out: Path, start: Path | None) -> None:
    """Fit the network to everybody in `work` but every twentieth person; start: weights to go on from."""
    people = sorted(work.glob("*.npz"))
    with ProcessPoolExecutor(initializer=_alone) as pool:
        files = list(progress(pool.map(starts, people), "unrolling", total=len(people), unit="person"))
    held = Data([f for f in files if int(f.stem) % 20 == 0])
    data = Data([f for f in files if int(f.stem) % 20])
    torch.manual_seed(start is not None)
    random = np.random.default_rng(int(start is not None))
    network = (load_corrector(start, fold=False)[0].train() if start else Corrector(torch.from_numpy(_atlas().landmarks[:LANDMARKS]))).to(memory_format=torch.channels_last)
    print(f"{len(data.faces)} faces of {len(files)} people; {sum(p.numel() for p in network.parameters())} parameters", flush=True)
    rate = RATE / 2 if start else RATE
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    begun, step, order, recent, consequence = time.monotonic(), 0, np.empty(0, int), [], Consequence()
    while (spent := (time.monotonic() - begun) / 60 / minutes) < 1:
        if len(order) < BATCH:
            order = random.permutation(len(data.faces))
        rows, order = order[:BATCH], order[BATCH:]
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * spent))
        faces, average, slopes, offsets = data.batch(rows, random)
        with torch.autocast("cpu", torch.bfloat16):
            found, deviation = network(faces, average)
        wrong = consequence(found.float(), deviation.float(), slopes, offsets)
        loss = likelihood(found.float(), deviation.float(), slopes, offsets) + MATTERS * (wrong[:, 6:].square().mean() + JUDGED * wrong[:, consequence.judged].square().mean() + (0.1 * wrong[:, :3]).square().mean())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        recent.append(float(loss.detach()))
        step += 1
        if step % 500 == 0:
            print(f"{spent:5.1%} step {step}: {np.mean(recent[-500:]):.3f}; held out {judge(network, held, consequence)}", flush=True)
            save(network, out)
    save(network, out)
    print(f"{step} steps; held out {judge(network, held, consequence)}")


def judge(network: Corrector, held: Data, consequence: Consequence) -> str:
    """Landmark errors of people never seen, before and after, mm in the picture, and what those after do to a fit."""
    network.eval()
    before, after, wrong = [], [], []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(held.faces)), max(1, len(held.faces) // BATCH)):
            faces, average, slopes, offsets = held.batch(rows)
            found, deviation = network(faces, average)
            wrong.append(consequence(found, deviation, slopes, offsets))
            before.append(offsets.norm(dim=-1))
            after.append((torch.einsum("blij,blj->bli", slopes, found) - offsets).norm(dim=-1))
    network.train()
    before, after, lips = torch.cat(before), torch.cat(after), list(lm.INNER_LIP)
    turn, *mouth = (torch.cat(wrong).square().mean(0).sqrt()[i].tolist() for i in (slice(0, 3), *consequence.judged))
    return (f"{before.median():.3f} -> {after.median():.3f} mm, inner lips {before[:, lips].median():.3f} -> {after[:, lips].median():.3f}; pitch, yaw, roll "
            + " ".join(f"{x:.2f}" for x in turn) + " deg; jawOpen, smiles, pucker " + " ".join(f"{x:.3f}" for x in mouth))


def save(network: Corrector, path: Path) -> None:
    """Weights as 16-bit floats, atomically."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({name: value.half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}, str(temporary))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("render", "train"))
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures")
    parser.add_argument("--first", type=int, default=20000)
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--out", type=Path, default=HERE / FILE)
    parser.add_argument("--start", type=Path, help="go on from these weights, at half the learning rate")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage == "render":
        render(args.work, load_model(), args.first, args.people)
    else:
        train(args.work, args.minutes, args.out, args.start)


if __name__ == "__main__":
    main()
