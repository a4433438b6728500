"""Measures how MediaPipe's landmarks deviate from where they are embedded, and stores that response in assets/face_model.npz.

    python assets/calibrate_response.py [--people 160] [--views 1500]     # about ten minutes; after calibrate_landmarks.py

Two kinds of pictures with exact truth: phantoms that speak and look around (a third of their frames with random expressions), and the
plain renders of calibrate_landmarks.py, each of another person. What remains between detection and embedding is regressed, landmark by landmark,
on yaw, pitch, shape and expression (ridge, robustly reweighted); see recon/response.py for what the numbers mean.
Every fifth phantom is held out: for those the script prints what the pose is worth before and after. Their identities begin at 9000:
no phantom that a test or a benchmark uses is among them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # runs from a checkout that is not installed

from calibrate_landmarks import render_view  # noqa: E402

from recon.landmarks import load_detector  # noqa: E402
from recon.model import MorphableModel, load_model, save_model  # noqa: E402
from recon.quadratic import picture_gradient, project, refine_pose  # noqa: E402
from recon.response import Response, turned  # noqa: E402
from render.progress import progress  # noqa: E402
from render.rotations import axis_angle_to_matrix, head_angles, matrix_to_axis_angle  # noqa: E402
from thnerf.phantom.appearance import draw_look  # noqa: E402
from thnerf.phantom.motion import phantom_track  # noqa: E402
from thnerf.phantom.scene import Studio, identity_shape, utterance  # noqa: E402

SHAPES = 40  # identity coefficients with a response: those that show
FIRST = 9000  # identity of the first phantom
FRAMES, REACH = 12, (40.0, 25.0, 12.0)  # of each phantom; degrees of yaw, pitch and roll
SUBJECTS = ("my mother", "the old boat", "a yellow moth", "our favourite judge", "his whole family", "the first wave", "a cheap pub", "the moon above")
VERBS = ("might have bought", "loves to move", "could show us", "will never forgive", "was pushing away", "shall prove", "must choose", "wants to measure")
OBJECTS = ("five ripe plums", "the blue umbrella", "every good thought", "a shallow pool", "the warm pavement", "some fresh fish", "your new shoes", "all the world")
PAIRED = {"mouthSmile": 0.8, "mouthFrown": 0.6, "mouthLowerDown": 0.7, "mouthUpperUp": 0.6, "mouthStretch": 0.6, "mouthPress": 0.6, "mouthDimple": 0.6,
          "browDown": 0.7, "browOuterUp": 0.7, "eyeSquint": 0.6, "eyeWide": 0.6, "cheekSquint": 0.6, "noseSneer": 0.6}  # strongest values drawn
SINGLE = {"mouthPucker": 0.9, "mouthFunnel": 0.8, "browInnerUp": 0.8, "jawLeft": 0.4, "jawRight": 0.4, "jawForward": 0.5, "mouthLeft": 0.5, "mouthRight": 0.5,
          "mouthRollLower": 0.7, "mouthRollUpper": 0.7, "mouthShrugLower": 0.6, "mouthShrugUpper": 0.6, "cheekPuff": 0.5}
OFFSET, ANGLE, COEFFICIENT = 3.0, 0.3, 10.0  # ridge, in squared mm of residual per squared unit
KERNEL, PHANTOM_WEIGHT = 4.0, 3.0  # mm of the robust kernel


@dataclasses.dataclass
class Samples:
    """n pictures: detected (n,N,2) px about the principal point, pose (n,3,3), (n,3) mm, focal (n,) px, shape, expression, person (n,) (-1: unique)."""

    detected: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    focal: np.ndarray
    shape: np.ndarray
    expression: np.ndarray
    person: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Samples:
        return Samples(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @property
    def angles(self) -> np.ndarray:
        """Yaw and pitch (n,2), rad."""
        return head_angles(matrix_to_axis_angle(self.rotation))[:, :2]

    @property
    def features(self) -> np.ndarray:
        """What the response is linear in, (n, 3 + E + SHAPES)."""
        return np.concatenate([np.ones((len(self.focal), 1)), self.angles, self.expression, self.shape[:, :SHAPES]], 1)

    def heads(self, model: MorphableModel) -> np.ndarray:
        """Embedded landmarks (n,N,3) mm in the head frame."""
        part = lambda arrays: np.asarray(model.points(arrays, "mediapipe478"), np.float64)  # noqa: E731
        return part(model.mean) + np.tensordot(self.shape, part(model.shape_basis), 1) + np.tensordot(self.expression, part(model.expression_basis), 1)


def draw_expression(model: MorphableModel, random: np.random.Generator) -> np.ndarray:
    """Any mixture of expressions, lips closed over an open jaw included: (E,) in [0,1]."""
    e = np.zeros(len(model.expression_names), np.float32)
    jaw = model.index("jawOpen")
    e[jaw] = random.uniform(0, 0.9 if random.random() < 0.2 else 0.5) * (random.random() < 0.8)
    if random.random() < 0.3:
        e[[model.index("eyeBlinkLeft"), model.index("eyeBlinkRight")]] = random.uniform(0.2, 1)
    for stem, top in PAIRED.items():
        if random.random() < 0.3:
            value = random.uniform(0, top)
            for side in ("Left", "Right"):
                e[model.index(stem + side)] = np.clip(value * random.normal(1, 0.3), 0, 1)
    for name, top in SINGLE.items():
        if random.random() < 0.3:
            e[model.index(name)] = random.uniform(0, top)
    if random.random() < 0.35:
        e[model.index("mouthClose")] = e[jaw] * random.uniform(0, 1)
    return e


def phantoms(model: MorphableModel, count: int, rows: list[tuple]) -> None:
    """Append FRAMES frames of each of `count` phantoms to `rows` (see `collect`)."""
    for identity in progress(range(FIRST, FIRST + count), "phantoms", unit="person"):
        random = np.random.default_rng([identity, 1])
        text = " ".join(random.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ("and",), SUBJECTS, VERBS, OBJECTS))
        samples, rate, phonemes = utterance(text, "en-us", 155, 25)
        track = phantom_track(phonemes, samples, rate, model, identity_shape(model, identity), seed=identity, reach=REACH)
        chosen = np.linspace(0, len(track) - 1, FRAMES).astype(int)
        expression = track.expression.copy()
        for i in chosen[::3]:
            expression[i] = draw_expression(model, random)
        track = track.replace(expression=expression)
        studio, R = Studio(model, track, draw_look(identity)), axis_angle_to_matrix(track.rotation)
        for i in chosen:
            rows.append((studio.frame(int(i)), R[i], track.translation[i], track.camera.K[0, 0], track.shape, expression[i], identity))


def collect(model: MorphableModel, people: int, views: int) -> Samples:
    """Render and detect; pictures without a face are left out."""
    random, detector, rows = np.random.default_rng(5), load_detector("mediapipe"), []
    for _ in progress(range(views), "renders", unit="render"):
        v = render_view(model, random, draw_expression(model, random))
        rows.append((v.picture, v.rotation, v.translation, v.camera.K[0, 0], v.shape, v.expression, -1))
    phantoms(model, people, rows)
    found = detector.detect([row[0] for row in progress(rows, "detecting", unit="picture")])
    rows = [(points - np.array(row[0].shape[:2]) / 2, *row[1:]) for row, points, valid in zip(rows, found.points, found.valid) if valid]
    return Samples(*(np.array(column, np.float64) for column in zip(*rows)))


def regress(model: MorphableModel, data: Samples, rounds: int = 2) -> Response:
    """Ridge regression of the displacement of every landmark in the head frame on `Samples.features`; phantoms look more like people and count more."""
    heads, F = data.heads(model), data.features
    camera, seen = project(heads, data.rotation, data.translation, 1.0)
    scale = 1 / data.translation[:, 2]  # picture units of one mm at the head
    seen, picture = seen / scale[:, None, None], data.detected / (data.focal * scale)[:, None, None]
    B = picture_gradient(camera, data.rotation, 1.0) / scale[:, None, None, None]
    count, E = F.shape[1], data.expression.shape[1]
    prior = np.repeat(np.where(data.person >= 0, PHANTOM_WEIGHT, 1.0), 2)
    ridge = np.diag(np.tile(np.r_[OFFSET, ANGLE, ANGLE, np.full(count - 3, COEFFICIENT)], 3))
    found = np.zeros((heads.shape[1], 3, count))
    for j in progress(range(heads.shape[1]), "regressing", unit="landmark"):
        A = (B[:, j, :, :, None] * F[:, None, None, :]).reshape(2 * len(F), 3 * count)
        y, w = (picture - seen)[:, j].ravel(), prior
        for _ in range(rounds):
            x = np.linalg.solve((A * w[:, None]).T @ A + ridge, (A * w[:, None]).T @ y)
            left = ((y - A @ x).reshape(-1, 2) ** 2).sum(1) / KERNEL**2
            w = prior * np.repeat((1 + left) ** -2, 2)
        found[j] = x.reshape(3, count)
    parts = np.moveaxis(found, -1, 0).astype(np.float32)
    return Response(parts[0], parts[1:3], parts[3 + E :], parts[3 : 3 + E])


def report(model: MorphableModel, data: Samples, response: Response) -> None:
    """Pose from the detections of held-out people whose shape and expression are known, without and with the response."""
    heads = data.heads(model)
    shifted = heads + response.offset + np.tensordot(data.expression, response.expression, 1) + np.tensordot(data.shape[:, :SHAPES], response.shape, 1)
    weights = np.r_[np.ones(468), np.zeros(10)]
    for name, place in (("without", lambda R: heads), ("with", lambda R: shifted + turned(response.angles, R))):
        error, truth = [], np.degrees(data.angles)
        focal = float(data.focal[0])
        R, _ = refine_pose(place, data.detected, data.rotation, data.translation, focal, weights, 0.03 * focal, 10)
        error = np.degrees(head_angles(matrix_to_axis_angle(R))[:, :2]) - truth
        slopes = [1 + np.polyfit(truth[:, i], error[:, i], 1)[0] for i in (0, 1)]
        print(f"{name:8} response: slope of yaw {slopes[0]:.2f}, pitch {slopes[1]:.2f}; bias {error.mean(0).round(2)} deg, deviation {error.std(0).round(2)} deg")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=160)
    parser.add_argument("--views", type=int, default=1500)
    parser.add_argument("--model", type=Path, default=HERE / "face_model.npz")
    args = parser.parse_args()
    model = load_model(args.model)
    data = collect(model, args.people, args.views)
    held = (data.person >= 0) & (data.person % 5 == 0)
    report(model, data[held], regress(model, data[~held]))
    response = regress(model, data)  # all, for the file
    scheme = dataclasses.replace(model.landmarks["mediapipe478"], response=response)
    save_model(args.model, dataclasses.replace(model, landmarks={**model.landmarks, "mediapipe478": scheme}), step=0.004)


if __name__ == "__main__":
    main()
