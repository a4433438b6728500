"""Is aligning a Track to its field tracking, or the field's error painted over?

Run: python tests/benchmarks/bm_align.py SUBJECT [RUN] [--truth TRACK.npz]

Held-out frames are aligned from the Track of the fit by every other block of pixels alone, and scored on the blocks between. With --truth (of the demo:
assets/demo/track.npz) the distance of the Track from the truth is given before and after, for held-out frames and as many before them. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from thnerf.align import Aligner, align, spacing
from thnerf.avatar import Avatar
from thnerf.dataset import landmark_boxes, load_background
from thnerf.evaluate import frames_at
from thnerf.renderer import HeadRenderer

BLOCK = 12  # px
WATCHED = ("browInnerUp", "mouthPucker", "mouthFunnel", "mouthClose", "mouthSmileLeft", "jawOpen", "eyeBlinkLeft")


class Blind(Aligner):
    """Sees only blocks of one colour of a chequerboard. colour: 0 or 1; None: all."""

    colour: int | None = None

    def solve(self, index: int, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        every = spacing(box)
        rows, columns = np.mgrid[box[1] : box[3] : every, box[0] : box[2] : every] // BLOCK
        self.shown = ((rows + columns) % 2 == self.colour).ravel() if self.colour is not None else True
        return super().solve(index, picture, box)

    def _heads(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        pictures, own = super()._heads(*arguments)
        return pictures, own & self.shown


def blocks(subject: Subject, avatar: Avatar, background: np.ndarray) -> dict[str, list[float]]:
    """PSNR of face and mouth, in the blocks of either colour, of held-out frames aligned by these blocks, by the others, by all, or not at all."""
    track, (start, end) = subject.track, subject.info["split"]["test"][0]
    index = np.arange(start, end, 2)
    truth, (faces, mouths, _) = list(frames_at(subject.video_path, index)), landmark_boxes(track, subject.model, index)
    renderer, blind = HeadRenderer(avatar, background), Blind(avatar, track, subject.frames("train"), background)
    rows, columns = np.mgrid[0 : track.camera.height, 0 : track.camera.width] // BLOCK
    found: dict[str, list[np.ndarray]] = {}
    for colour in (0, 1):
        scored = (rows + columns) % 2 == colour
        for name, seen in (("as fitted", -1), ("aligned by the blocks scored", colour), ("aligned by the others", 1 - colour), ("aligned by all", None)):
            deltas = np.zeros((len(track), len(blind.deviation) + len(blind.torso_deviation)))
            blind.colour = seen
            for i, picture, box in zip(index, truth, faces):
                if seen != -1:
                    deltas[i] = blind.solve(int(i), picture, box)
            moved, scores = blind.corrected(deltas), []
            for i, picture, *boxes in zip(index, truth, faces, mouths):
                square = np.square(renderer.frame(moved, int(i)) - picture / 255).mean(-1)
                scores.append([-10 * np.log10(square[y0:y1, x0:x1][scored[y0:y1, x0:x1]].mean()) for x0, y0, x1, y1 in boxes])
            found.setdefault(name, []).append(np.mean(scores, 0))
    return {name: np.mean(values, 0).round(2).tolist() for name, values in found.items()}


def against(truth: Track, subject: Subject, avatar: Avatar, background: np.ndarray) -> dict[str, dict[str, Any]]:
    """Spread about the mean error of rotation (deg) and position (mm), and correlations of coefficients, before and after."""
    start, end = subject.info["split"]["test"][0]
    index = np.arange(max(0, 2 * start - end), end)
    part = subject.track.replace(valid=subject.track.valid & np.isin(np.arange(len(subject.track)), index))
    found = align(avatar, part, subject.model, subject.frames("train"), background, lambda wanted: frames_at(subject.video_path, wanted))
    out = {}
    for name, track in (("as fitted", subject.track), ("aligned", found)):
        error = matrix_to_axis_angle(axis_angle_to_matrix(track.rotation[index]) @ np.swapaxes(axis_angle_to_matrix(truth.rotation[index]), 1, 2))
        out[name] = {"rotation_deg": float(np.degrees(np.sqrt(np.square(error - error.mean(0)).sum(1).mean()))),
                     "position_mm": (track.translation[index] - truth.translation[index]).std(0).round(3).tolist(),
                     **{c: float(np.corrcoef(track.column(c)[index], truth.column(c)[index])[0, 1]) for c in WATCHED}}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject")
    parser.add_argument("run", nargs="?", default="default")
    parser.add_argument("--truth")
    arguments = parser.parse_args()
    subject = Subject.open(arguments.subject)
    avatar, camera = Avatar.load(subject.run(arguments.run) / "field.safetensors"), subject.track.camera
    background = load_background(subject, camera.width, camera.height)
    result: dict[str, Any] = {"blocks": blocks(subject, avatar, background)}
    for name, (face, mouth) in result["blocks"].items():
        print(f"{name:30s} face {face:.2f} dB, mouth {mouth:.2f} dB")
    if arguments.truth:
        result["truth"] = against(Track.load(arguments.truth), subject, avatar, background)
        for name, row in result["truth"].items():
            print(f"{name:30s} " + ", ".join(f"{k} {np.round(v, 3)}" for k, v in row.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
