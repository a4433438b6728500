"""Causal tracking: frames in, motion out, one by one, with no look-ahead and no memory that grows.

Who the face is (shape, focal length, landmark corrections) is given by a subject or estimated: the first frames use the
mean face, then the identity is estimated from frames seen so far, spread over what the face did, and estimated again as more come
(REFINED_AT). That happens in a thread; its result is taken over a fixed number of frames later and faded in, so that the output
depends on the frames alone, never on the machine's speed, and nothing jumps. Every frame is solved by itself with the solver of
`fit`, its landmarks corrected in one pass (`recon.corrector`), and then smoothed by the one-euro filter (Casiez et al. 2012), which follows fast motion at once and calms what is still.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, TextIO

import numpy as np

from recon import landmarks as lm
from recon import solve as solver
from recon.config import FitConfig
from recon.corrector import LiveCorrector
from recon.gaze import find_gaze, looks_of
from recon.lines import MotionFrame, write_lines
from recon.model import DEFAULT_MODEL, MorphableModel, fitted_part, load_model
from recon.photometric import SMALLEST, Poses
from recon.problem import Identity, Problem, keyframes, make_problem
from recon.subject import Subject
from render.files import InputError
from render.rotations import FRONTAL, from_frontal, matrix_to_axis_angle, relative_to_frontal
from render.threads import one_blas_thread

REFINED_AT = (10, 30, 75, 150, 300, 600)  # frames with a face at which the identity is estimated (again)
TAKEN_AFTER, FADE = 40, 12  # frames until an estimate is taken over, at most, and over which it is faded in
KEYFRAMES, POOL = 16, 600  # per estimate; frames that are remembered for it
CAMERA_FOCAL = 0.85  # prior focal length of a camera in picture widths: a webcam's 60 degrees
FRAMING = 2.3  # face heights that a talking-head clip shows: the prior focal length of `fit` is for such a picture
FORGET = 0.5  # s without a face after which smoothing starts anew


class OneEuro:
    """The one-euro filter of an array, with a step of its own for each frame."""

    def __init__(self, floor: float | np.ndarray, slope: float | np.ndarray, speed_cutoff: float = 2.0) -> None:
        """floor: cut-off (Hz) of what is still. slope: Hz per unit/s of speed. speed_cutoff: Hz, of the speed's own smoothing."""
        self.floor, self.slope, self.speed_cutoff = floor, slope, speed_cutoff
        self.value: np.ndarray | None = None
        self.speed: np.ndarray | float = 0.0

    def __call__(self, value: np.ndarray, step: float) -> np.ndarray:
        """The next value, `step` s after the last."""
        if self.value is None:
            self.value, self.speed = np.asarray(value, np.float64), np.zeros(np.shape(value))
            return self.value
        gain = lambda cutoff: 1 / (1 + 1 / (2 * np.pi * cutoff * step))  # noqa: E731
        self.speed = self.speed + gain(self.speed_cutoff) * ((value - self.value) / step - self.speed)
        self.value = self.value + gain(self.floor + self.slope * np.abs(self.speed)) * (value - self.value)
        return self.value

    def reset(self) -> None:
        """Forget everything; the next value is taken as it is."""
        self.value = None


@dataclass
class Seen:
    """Landmarks (478,2) px of a frame, as detected, and as corrected with their deviation (478,) mm where they are."""

    points: np.ndarray
    corrected: np.ndarray | None = None
    deviation: np.ndarray | None = None


@dataclass(frozen=True)
class Estimate:
    """Who the face is, as the detector sees it and by corrected landmarks: the same person where they are not corrected."""

    detected: Identity
    corrected: Identity

    def faded(self, other: Estimate, share: float) -> Estimate:
        """Between this one (share 0) and another (1)."""
        blend = lambda a, b: replace(a, **{f.name: (1 - share) * getattr(a, f.name) + share * getattr(b, f.name) for f in fields(a)})  # noqa: E731
        return Estimate(blend(self.detected, other.detected), blend(self.corrected, other.corrected))


class LiveTracker:
    """Tracks one face. `push` takes the landmarks of a frame and returns its motion; deterministic for a given sequence of frames."""

    def __init__(self, width: int, height: int, model: MorphableModel, shape: np.ndarray | None = None, focal: float = 0.0, camera: bool = False, corrector: bool = True) -> None:
        """width, height: px of the pictures. shape (S,): the identity where it is known. focal: px, 0 estimates it. camera: expect a webcam's lens.
        corrector: move landmarks to where `recon.corrector` sees them, with the default model and where `push` is given pictures."""
        self.whole = model
        self.model, self.columns = fitted_part(model)
        self.known = None if shape is None else np.asarray(shape, np.float64)
        self.width, self.height, self.camera = width, height, camera
        self.config = FitConfig(keyframes=KEYFRAMES, focal=focal, shape_components=60 if shape is None else len(shape))
        self.corrector = LiveCorrector(self.model) if corrector and model.model_id == load_model().model_id else None
        self.seen: list[Seen] = []
        self.poses: Poses | None = None
        self.openings: deque[float] = deque(maxlen=100)
        self.count, self.time, self.missed = 0, None, None
        self.pending: tuple[int, Future] | None = None
        self.old: Estimate | None = None
        self.new: Estimate | None = None
        self.taken = 0
        self.problems: tuple[Problem, Problem] | None = None  # of landmarks as detected and as corrected
        self.worker = ThreadPoolExecutor(1)
        fast = np.array([n.startswith(solver.FAST) or "jawOpen" not in self.model.expression_names for n in self.model.expression_names])
        self.filters = {"rotation": OneEuro(1.2, 25.0), "translation": OneEuro(np.array([1.2, 1.2, 0.6]), 0.08), "gaze": OneEuro(2.0, 20.0),
                        "expression": OneEuro(np.where(fast, 4.0, 1.0), np.where(fast, 12.0, 4.0))}
        zero = dict.fromkeys(self.whole.expression_names, 0.0)
        self.last = MotionFrame(0.0, zero, matrix_to_axis_angle(FRONTAL), np.zeros(3), np.zeros((2, 2)), False)

    def push(self, points: np.ndarray | None, when: float, picture: np.ndarray | None = None) -> MotionFrame:
        """Motion of the frame at `when` s. points (478,2) px; None or values that are not finite: no face, the last motion is held.

        picture (height,width,3) uint8: what they were found in, of every frame with a face or of none."""
        if points is None or not np.isfinite(points).all():
            self.missed, self.poses = when if self.missed is None else self.missed, None
            self.last = replace(self.last, time=when, valid=False)
            return self.last
        if self.missed is not None and when - self.missed > FORGET:
            for smooth in self.filters.values():
                smooth.reset()
        self.missed = None
        step = max(when - self.time, 1e-3) if self.time is not None else 0.04
        self.time, self.count = when, self.count + 1
        if self.count == 1 and (picture is None or lm.interocular(points[None])[0] < SMALLEST):
            self.corrector = None
        seen = Seen(np.asarray(points, np.float64))
        self._learn(seen)
        self.last = self._solve(seen, picture, when, step)
        return self.last

    def close(self) -> None:
        """End the thread; an estimate in progress is given up."""
        self.worker.shutdown(wait=False, cancel_futures=True)

    def _learn(self, seen: Seen) -> None:
        """Remember a frame, start estimates of the identity when they are due, take them over when their time has come."""
        if self.count in REFINED_AT:  # from the frames before: those are corrected
            wait = min(TAKEN_AFTER, self.count * 3 // 2)  # before the next one starts
            self.pending = (self.count + wait, self.worker.submit(self._estimate, list(self.seen)))
        if self.count == 1:
            self.problems, self.old = self._estimate([seen], 0)
            self.new, self.taken = self.old, -FADE
        if self.pending is not None and self.count >= self.pending[0]:
            problems, estimate = self.pending[1].result()
            self.old, self.new, self.taken, self.problems, self.pending = self._identity(), estimate, self.count, problems, None
        if len(self.seen) < POOL:
            self.seen.append(seen)

    def _problem(self, points: np.ndarray, model: MorphableModel, deviation: np.ndarray | None = None) -> Problem:
        """The solver's problem of landmarks (K,478,2) px."""
        certainty = None if deviation is None else solver.certainty_of(deviation)
        problem = make_problem(points, np.ones(len(points), bool), self.width, self.height, model, self.config, certainty=certainty)
        problem.expressions = np.ascontiguousarray(problem.expressions)  # one frame at a time, copies would be what costs most
        if self.known is not None:  # the known head becomes the mean, with nothing left to estimate but focal length and landmark corrections
            S = min(len(self.known), len(problem.shapes))
            problem.head, problem.shapes = problem.head + np.tensordot(self.known[:S], problem.shapes[:S], 1), problem.shapes[:0]
        face = float(np.median(np.ptp(points[..., 1], axis=1)))
        problem.width = CAMERA_FOCAL * self.width / solver.FOCAL if self.camera else min(FRAMING * face, self.width, self.height)
        return problem

    def _estimate(self, seen: list[Seen], rounds: int = solver.ROUNDS) -> tuple[tuple[Problem, Problem], Estimate]:
        """Problems and identity from landmarks of frames; rounds 0: of the mean face."""
        points, exact = np.stack([s.points for s in seen]), self.model.without_response()
        problem = self._problem(points, self.model)
        if self.corrector is None:
            identity = solver.solve_identity(problem, self.config, rounds)
            return (problem, problem), Estimate(identity, identity)
        if rounds == 0:
            fine = self._problem(points, exact)
            return (problem, fine), Estimate(solver.solve_identity(problem, self.config, rounds), solver.solve_identity(fine, self.config, rounds))
        chosen = keyframes(problem, KEYFRAMES)
        few, fine = self._problem(points[chosen], self.model), self._problem(np.stack([seen[i].corrected for i in chosen]), exact, np.stack([seen[i].deviation for i in chosen]))
        identity = solver.solve_identity(few, self.config)
        poses = solver.solve_poses(few, identity)
        known = solver.solve_identity(fine, self.config, start=(identity, poses))
        return (problem, fine), Estimate(solver.as_detected(few, fine, known, solver.solve_poses(fine, known, poses)), known)

    def _identity(self) -> Estimate:
        """The identity of this frame, between the last estimate and the one before."""
        share = min(1.0, (self.count - self.taken + 1) / FADE)
        return self.new if share >= 1 else self.old.faded(self.new, share)

    def _shape(self, identity: Identity) -> np.ndarray:
        """Coefficients of the whole shape."""
        return identity.shape if self.known is None else self.known

    def _solve(self, seen: Seen, picture: np.ndarray | None, when: float, step: float) -> MotionFrame:
        """One frame: pose, gaze, expressions beside both, each smoothed."""
        estimate, points = self._identity(), seen.points
        detected = problem = self._one(self.problems[0], points)
        identity = estimate.detected
        poses = solver.solve_poses(problem, identity, None if self.corrector is None else self.poses)  # good enough to look from; by itself it would keep what the frame before got wrong
        if self.corrector is not None:
            if picture is None:
                raise ValueError("push was given pictures before; give it one with every face, or with none")
            expected = solver.expected_points(detected, identity, poses)[0]
            seen.corrected, seen.deviation = self.corrector(picture, self._shape(identity), identity.focal, poses, points, expected)
            problem, identity = self._one(self.problems[1], seen.corrected, seen.deviation), estimate.corrected
            poses = solver.solve_poses(problem, identity, poses)
        self.poses = poses
        R, t, e = poses.R, poses.t, poses.e
        rotation = from_frontal(self.filters["rotation"](relative_to_frontal(matrix_to_axis_angle(R[0])), step))
        translation = self.filters["translation"](t[0], step)
        gaze, looks = self.last.gaze, None
        if self.model.eye_centres is not None:
            opening = float(lm.eye_opening(points).min())
            self.openings.append(opening)
            if opening > 0.6 * np.median(self.openings):  # closed eyes keep looking where they did
                whole = replace(estimate.detected, shape=self._shape(estimate.detected))
                raw = find_gaze(detected, whole, rotation[None], translation[None], e, points[None], (0,), self.model, 1.0)[0]
                gaze = self.filters["gaze"](raw, step)
            looks = looks_of(problem.names, gaze[None])
        e = solver.fit_expressions(problem, identity.head, identity.focal, np.zeros(1, int), R, t, e, solver.WEAK, 2, looks)
        smooth = self.filters["expression"](e[0], step)
        smooth = np.clip(smooth if looks is None else np.where(np.isfinite(looks[0]), looks[0], smooth), problem.lower, problem.upper)
        if (pair := solver.jaw_pair(problem.names)) is not None:
            smooth[pair[0]] = min(smooth[pair[0]], smooth[pair[1]])
        expression = np.zeros(len(self.whole.expression_names))
        expression[self.columns] = smooth
        return MotionFrame(when, dict(zip(self.whole.expression_names, expression.tolist())), rotation, translation, gaze)

    def _one(self, problem: Problem, points: np.ndarray, deviation: np.ndarray | None = None) -> Problem:
        """The same problem with one frame's landmarks (478,2) px and deviations (478,) mm."""
        problem = copy.copy(problem)
        problem.picture, problem.valid = points[None] - np.array([self.width / 2, self.height / 2]), np.ones(1, bool)
        problem.certainty = np.ones((1, len(points))) if deviation is None else solver.certainty_of(deviation[None])
        return problem


class FaceChooser:
    """One person in a stream: the face nearest to the last one, or the largest after a while without it."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.centre: np.ndarray | None = None
        self.lost = 0

    def __call__(self, faces: np.ndarray) -> np.ndarray | None:
        """faces (F,478,2) px of a frame → (478,2), or None where the person is not seen."""
        sizes = np.ptp(faces, axis=1).max(-1) if len(faces) else np.zeros(0)
        if self.centre is not None and self.lost <= 25:
            away = np.linalg.norm(faces.mean(1) - self.centre, axis=-1) if len(faces) else np.zeros(0)
            near = np.flatnonzero(away < 0.6 * sizes)
            best = int(near[away[near].argmin()]) if len(near) else -1
        else:
            best = int(sizes.argmax()) if len(faces) else -1
        if best < 0:
            self.lost += 1
            return None
        self.centre, self.lost = faces[best].mean(0), 0
        return faces[best]


def camera_frames(index: int) -> Iterator[tuple[float, np.ndarray]]:
    """(s since the first, frame (H,W,3) uint8 RGB) from a camera, until it stops. Raises InputError when there is no such camera."""
    import cv2

    with lm.quiet_native_log():
        camera = cv2.VideoCapture(index)
    try:
        if not camera.isOpened():
            raise InputError(f"camera {index} cannot be opened; check that it is connected and free, try another number, or give a video")
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        start = None
        while True:
            found, picture = camera.read()
            now = time.perf_counter()
            if not found:
                if start is None:
                    raise InputError(f"camera {index} opens but gives no picture; check that no other program uses it")
                return
            start = now if start is None else start
            yield now - start, np.ascontiguousarray(picture[..., ::-1])
    finally:
        camera.release()


def track_frames(frames: Iterable[tuple[float, np.ndarray]], model: MorphableModel, shape: np.ndarray | None = None, focal: float = 0.0,
                 camera: bool = False, clock: list[float] | None = None, corrector: bool = True) -> Iterator[MotionFrame]:
    """Causal motion of timed frames (s, (H,W,3) uint8 RGB). `clock` receives the seconds that each frame took, detection included. The rest: see `LiveTracker`."""
    detector, choose, tracker = lm.MediaPipeDetector(), FaceChooser(), None
    try:
        for when, frame in frames:
            begun = time.perf_counter()
            height, width = frame.shape[:2]
            if tracker is None:
                tracker = LiveTracker(width, height, model, shape, focal, camera, corrector)
            motion = tracker.push(choose(detector.candidates(frame)), when, frame)
            if clock is not None:
                clock.append(time.perf_counter() - begun)
            yield motion
    finally:
        if tracker is not None:
            tracker.close()


def track_live(source: str, stream: TextIO, focal: float = 0.0, subject: Path | None = None, model: str = DEFAULT_MODEL,
               also: Callable[[MotionFrame], None] | None = None, corrector: bool = True) -> dict[str, Any]:
    """``thnerf track``: motion of a camera (its number) or a video as JSON lines on `stream`, until it ends or Ctrl-C.

    also: called with each frame that has a face, before its line is written. corrector: as in `LiveTracker`. Returns {frames, valid_frames, seconds, ms_per_frame, ms_p95}. Raises InputError for a bad source, subject, model or focal length.
    """
    FitConfig(focal=focal)  # refuses a length that cannot be, before a camera is opened
    from render.video import timed_frames

    clock: list[float] = []
    valid, last = 0, 0.0

    def counted(frames: Iterable[MotionFrame]) -> Iterator[MotionFrame]:
        nonlocal valid, last
        for frame in frames:
            valid, last = valid + frame.valid, frame.time
            if also is not None and frame.valid:
                also(frame)
            yield frame

    with suppress(KeyboardInterrupt), one_blas_thread():  # Ctrl-C is the way to end it
        known = Subject.open(subject) if subject is not None else None
        face_model = known.model if known is not None else load_model(model)
        number = int(source) if source.strip().lstrip("-").isdigit() else None
        with closing(camera_frames(number) if number is not None else timed_frames(source)) as frames:
            write_lines(counted(track_frames(frames, face_model, None if known is None else known.track.shape, focal, number is not None, clock, corrector)), stream)
    spent = np.array(clock) * 1000 if clock else np.zeros(1)
    if os.environ.get("THNERF_QUIET") != "1":
        print(f"track: {len(clock)} frames, {valid} with a face; {np.median(spent):.0f} ms a frame, 95 % within {np.percentile(spent, 95):.0f} ms", file=sys.stderr)
    return {"frames": len(clock), "valid_frames": valid, "seconds": last, "ms_per_frame": float(np.median(spent)), "ms_p95": float(np.percentile(spent, 95))}
