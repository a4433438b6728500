"""From landmarks to a Track: shape and camera shared by all frames, expression, pose and gaze of each.

A batched least-squares problem in two parts. Well-spread keyframes determine identity, focal length and a
constant correction of every landmark (what the detector calls a mouth corner need not be where the model has it).
Then all frames are solved in chunks. Both are done again once `recon.corrector` has looked at the result.

Pose is found under a strong expression prior from points that expressions hardly move; only then are expressions
refitted under a weak one. Otherwise expressions absorb rotation.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, Callable, Iterable, Sequence

import numpy as np

from recon import landmarks as lm
from recon.config import FitConfig
from recon.gaze import LOOKS, find_gaze, looks_of
from recon.lids import blinks_alone
from recon.model import MorphableModel, fitted_part, load_model
from recon.photometric import BATCH, SMALLEST, Poses, Refiner
from recon.problem import ROBUST, STRONG, WEAK, Identity, Problem, expression_prior, jaw_pair, keyframes, make_problem
from recon.quadratic import affine_pose, apply_step, bounded_minimum, picture_gradient, pose_jacobian, project, refine_pose, robust_weights
from recon.response import turned
from recon.silhouette import Outline, Rows
from recon.smooth import fill_gaps, whittaker
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import FRONTAL, axis_angle_to_matrix, from_frontal, matrix_to_axis_angle, relative_to_frontal
from render.threads import one_blas_thread

CHUNK = 128
HELD = 2**30  # bytes of frames that are kept instead of being decoded again: 54 s at 512 and 25 frames/s
FOCAL = 2.6  # prior focal length in picture widths: a head-and-shoulders shot from talking distance
FOCAL_SPREAD = 0.3  # its standard deviation, in log
SHAPE_PRIOR, OFFSET_PRIOR = 1.0, 0.5  # per keyframe
BY_LANDMARKS = ("eyeBlink", "eyeSquint", "eyeWide")  # skin that folds away under a lid has no texture to follow
ROUNDS = 14  # of an identity
LOOKED = 4  # rounds, the last ones, in which the outline is looked at
PASSES = (9, 3)  # of the corrector: of how many frames it looks at one; the second time it looks from nearby
REST = 0.1  # quantile of an expression that may be the shape of the face as well
TAUGHT = ("mouthPucker",)  # of what the corrector was taught; jawOpen hardly has a prior, and smiles that are kept take from the jaw on footage
UNSURE = 1.5  # mm: deviation of a corrected landmark that halves its weight
SOME = 100  # frames that say by how much a detector is off for a person
FAST = ("jaw", "mouth", "eyeBlink", "eyeSquint", "eyeWide")  # little smoothing


def solve(points: np.ndarray, valid: np.ndarray, clip_starts: Sequence[int], fps: float, width: int, height: int,
          model: MorphableModel, config: FitConfig = FitConfig(), diagnostics: dict[str, Any] | None = None, withheld: Sequence[int] = (),
          pictures: Callable[[], Iterable[np.ndarray]] | None = None, mattes: Callable[[], Iterable[np.ndarray]] | None = None) -> Track:
    """Fit the model to landmarks points (T,478|68,2) px of frames with `valid` (T,); torso stays empty (T,0).

    withheld: landmarks that must not influence the fit, so that they can measure it (they still decide which frames are looked at).
    pictures: gives the frames (height,width,3) uint8 RGB that the landmarks were found in, anew at every call. With them and `config.corrector` MediaPipe's landmarks are moved
    to where a network sees them on the default model (`recon.corrector`), and with `config.photometric` poses and expressions are refined by the pixels (`recon.photometric`).
    mattes: gives the person's mattes (height,width) uint8 of the same frames. With them and `config.silhouette` their edge has a say about the shape (`recon.silhouette`).

    `diagnostics`, when given, receives landmark_error_px, landmark_error_iod, focal_px, seconds, projected (T,N,2: where the detector should see the landmarks), iod_px,
    photometric (mean difference of local contrast before and after; None when there was no refinement), correct_seconds and refine_seconds (not part of seconds).
    Raises InputError when no frame is valid or the model has no such landmarks.
    """
    clock = time.perf_counter()
    valid = np.asarray(valid, bool) & np.isfinite(points).all((1, 2))
    if not valid.any():
        raise InputError("no frame shows a face that the detector finds; use footage with one well-lit face, at least a tenth of the picture high")
    whole, (model, columns), correcting = model, fitted_part(model), 0.0
    pictures = pictures and remembered(pictures)
    with one_blas_thread():
        make = lambda points, model, certainty=None: make_problem(points, valid, width, height, model, config, withheld, certainty)  # noqa: E731
        detected = problem = make(points, model)
        outline = lambda: Outline(model, mattes, keyframes(detected, config.keyframes)) if mattes is not None and config.silhouette else None  # noqa: E731
        large = pictures is not None and 100 * problem.unit >= SMALLEST
        corrected = large and config.corrector and points.shape[1] == 478 and model.model_id == load_model().model_id
        identity = solve_identity(problem, config, outline=None if corrected else outline())
        poses = solve_poses(problem, identity)
        if corrected:
            from recon.corrector import correct

            edge = outline()  # mattes are read beside the network's work
            for every in PASSES:
                expected = expected_points(detected, as_detected(detected, problem, identity, poses), poses)
                begun = time.perf_counter()
                found, deviation = correct(model, identity.shape, identity.focal, poses, points, expected, pictures(), clip_starts, every)
                correcting += time.perf_counter() - begun
                problem = make(found, model.without_response(), certainty_of(deviation))
                before, identity = identity, solve_identity(problem, config, start=(identity, poses), outline=edge)
                nearer = np.array([1, 1, identity.focal / before.focal])  # as large in the picture as before
                poses = solve_poses(problem, identity, replace(poses, t=poses.t * nearer))
        track, projected, photometric = _solve_frames(problem, identity, poses, detected, pictures if large and config.photometric else None, points, clip_starts, fps, model, config)
    if len(columns) < len(whole.expression_names):  # what a fit leaves alone stays zero
        expression = np.zeros((len(track), len(whole.expression_names)), np.float32)
        expression[:, columns] = track.expression
        track = track.replace(expression=expression, expression_names=whole.expression_names)
    if diagnostics is not None:
        measured = slice(0, 468) if points.shape[1] == 478 else slice(None)
        error = np.linalg.norm(projected - points, axis=-1)[valid][:, measured]
        iod = lm.interocular(points[valid])
        refined = photometric[2] if photometric else 0.0
        diagnostics.update(landmark_error_px=float(error.mean()), landmark_error_iod=float((error.mean(1) / iod).mean()), focal_px=identity.focal,
                           seconds=time.perf_counter() - clock - refined - correcting, refine_seconds=refined, correct_seconds=correcting, projected=projected, iod_px=float(np.median(iod)),
                           photometric=photometric and photometric[:2])
    return track


def remembered(pictures: Callable[[], Iterable[np.ndarray]]) -> Callable[[], Iterable[np.ndarray]]:
    """The same frames, decoded only once where all of them fit into HELD bytes."""
    kept: list[np.ndarray] = []
    whole: bool | None = None  # None: no pass has ended yet

    def read() -> Iterable[np.ndarray]:
        nonlocal whole
        if whole:
            yield from kept
            return
        kept.clear()
        size = 0
        for picture in pictures():
            size += picture.nbytes
            if whole is None and size <= HELD:
                kept.append(picture)
            else:
                kept.clear()
            yield picture
        whole = size <= HELD

    return read


def certainty_of(deviation: np.ndarray) -> np.ndarray:
    """What corrected landmarks weigh, 0 to 1, by their deviation (…,) mm."""
    return 1 / (1 + (deviation / UNSURE) ** 2)


def fit_expressions(problem: Problem, head: np.ndarray, focal: float, frames: np.ndarray, R: np.ndarray, t: np.ndarray, e: np.ndarray,
                    strength: float, steps: int = 1, given: np.ndarray | None = None) -> np.ndarray:
    """Expressions (T,E) of some frames (T,) in their bounds for given poses; mouthClose never exceeds jawOpen. `given` (T,E): values to keep, NaN = solve."""
    picture, base = problem.picture[frames], problem.base * problem.certainty[frames]
    quadratic, linear = expression_prior(problem, strength)
    pair = jaw_pair(problem.names)
    lower, highest = np.repeat(problem.lower[None], len(e), 0), np.repeat(problem.upper[None], len(e), 0)
    if problem.lower[0] == 0:  # eyeLook comes with the gaze
        highest[:, [i for i, n in enumerate(problem.names) if n.startswith(LOOKS)]] = 0
    if given is not None:
        lower, highest = (np.where(np.isfinite(given), given, bound).astype(np.float32) for bound in (lower, highest))
    response = turned(problem.turn, R)
    for _ in range(steps):
        moved = np.tensordot(e, problem.expressions, 1)
        camera, seen = project(head + moved + response, R, t, focal)
        D = picture_gradient(camera, R, focal) / problem.unit
        residual = (picture - seen) / problem.unit
        weights = base * robust_weights(residual, ROBUST)
        H, g = problem.system.normal(D, weights, residual + np.einsum("tnij,tnj->tni", D, moved))
        upper = highest.copy()
        if pair is not None:
            upper[:, pair[0]] = np.minimum(upper[:, pair[0]], e[:, pair[1]] + 0.1)
        e = bounded_minimum(H + quadratic, g - linear, e.astype(np.float32), lower, upper)
        if pair is not None:
            e[:, pair[0]] = np.minimum(e[:, pair[0]], e[:, pair[1]])
    return e.astype(np.float64)


def solve_identity(problem: Problem, config: FitConfig, rounds: int = ROUNDS, start: tuple[Identity, Poses] | None = None, outline: Outline | None = None) -> Identity:
    """Shape, focal length and landmark corrections from keyframes. start: a solution for about the same landmarks, from which fewer rounds are enough. outline: of the keyframes' mattes, with which frames those are."""
    frames = keyframes(problem, config.keyframes) if outline is None else outline.frames
    picture, certainty = problem.picture[frames], problem.certainty[frames]
    stable = problem.stable * certainty
    offsets = np.zeros_like(problem.head)
    if start is not None:
        identity, poses = start
        shape, focal, R, t, e = identity.shape, identity.focal, poses.R[frames], poses.t[frames], poses.e[frames]
    else:
        focal, shape, e = config.focal or FOCAL * problem.width, np.zeros(len(problem.shapes)), np.zeros((len(frames), len(problem.names)))
        R, t = affine_pose(problem.head, picture, problem.stable, focal)
        R, t = refine_pose(lambda R: problem.place(problem.head, e, R), picture, R, t, focal, stable, 6 * ROBUST * problem.unit, 8)
    for round_ in range(rounds // 2 if start is not None else 0, rounds):
        head = problem.head + np.tensordot(shape, problem.shapes, 1) + offsets
        weights = stable if round_ < rounds // 2 else np.minimum(problem.base, 1) * certainty
        rows = outline.rows(problem, shape, focal, R, t, e) if outline is not None and round_ >= rounds - LOOKED else None
        shape, focal, R, t = _shape_step(problem, head, shape, focal, picture, R, t, e, weights, config.focal == 0, rows)
        head = problem.head + np.tensordot(shape, problem.shapes, 1) + offsets
        if round_ >= 2:
            e = fit_expressions(problem, head, focal, frames, R, t, e, STRONG if round_ < rounds - 4 else WEAK)
        R, t = refine_pose(lambda R: problem.place(head, e, R), picture, R, t, focal, stable, ROBUST * problem.unit, 2)
        if round_ >= rounds - 5:
            offsets = _offset_step(problem, head, offsets, focal, frames, R, t, e)
    return Identity(shape, problem.head + np.tensordot(shape, problem.shapes, 1) + offsets, offsets, float(focal))


def _shape_step(problem: Problem, head: np.ndarray, shape: np.ndarray, focal: float, picture: np.ndarray, R: np.ndarray, t: np.ndarray,
                e: np.ndarray, weights: np.ndarray, solve_focal: bool, outline: Rows | None = None) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """One Gauss–Newton step on shape, log focal length and all poses together (poses eliminated by Schur complement). outline: what it says, beside landmarks."""
    (T, N), S = picture.shape[:2], len(shape)
    camera, seen = project(problem.place(head, e, R), R, t, focal)
    residual = ((picture - seen) / problem.unit).reshape(T, -1)
    w = np.repeat(weights * robust_weights(residual.reshape(T, -1, 2), ROBUST), 2, axis=1)
    A = pose_jacobian(camera, t, focal).reshape(T, -1, 6) / problem.unit
    D = picture_gradient(camera, R, focal) / problem.unit
    single = np.float32  # what is large; poses stay in double precision
    bent = (D.astype(single) @ np.ascontiguousarray(problem.shapes.transpose(1, 2, 0), single)).reshape(T, 2 * N, S)
    G = np.concatenate([bent, (seen / problem.unit).astype(single).reshape(T, 2 * N, 1)], -1)
    if outline is not None:
        residual, w = np.concatenate([residual, outline.residual], 1), np.concatenate([w, outline.weight], 1)
        A, G = np.concatenate([A, outline.pose], 1), np.concatenate([G, outline.shape.astype(single)], 1)
    AW = np.swapaxes(A * w[..., None], 1, 2)
    AA, AG, Ar = AW @ A, (AW.astype(single) @ G).astype(np.float64), AW @ residual[..., None]
    AA = AA * (1 + 1e-9 * np.eye(6))  # by each unknown's own measure: damped depths would hold the focal length
    inverse_AG, inverse_Ar = np.linalg.solve(AA, AG), np.linalg.solve(AA, Ar)
    flat, weighted = G.reshape(-1, S + 1), (G * w.astype(single)[..., None]).reshape(-1, S + 1)
    H = weighted.T @ flat - np.einsum("tpi,tpj->ij", AG, inverse_AG)
    g = weighted.T @ residual.astype(single).ravel() - np.einsum("tpi,tp->i", AG, inverse_Ar[..., 0])
    focal_weight = 5 * T / FOCAL_SPREAD**2 if solve_focal else 1e12 * T
    prior = np.r_[np.full(S, SHAPE_PRIOR * T), focal_weight]
    g -= prior * np.r_[shape, np.log(focal / (FOCAL * problem.width)) if solve_focal else 0.0]
    step = np.linalg.solve(H + np.diag(prior), g)
    pose_step = inverse_Ar[..., 0] - inverse_AG @ step
    R, t = apply_step(R, t, pose_step)
    return np.clip(shape + step[:-1], -4, 4), float(focal * np.exp(np.clip(step[-1], -0.3, 0.3))), R, t


def _offset_step(problem: Problem, head: np.ndarray, offsets: np.ndarray, focal: float, frames: np.ndarray, R: np.ndarray, t: np.ndarray, e: np.ndarray) -> np.ndarray:
    """Constant correction of every landmark (N,3) mm: ridge regression of what remains in some frames, the unseen direction stays."""
    camera, seen = project(problem.place(head, e, R), R, t, focal)
    D = picture_gradient(camera, R, focal) / problem.unit
    residual = (problem.picture[frames] - seen) / problem.unit
    w = problem.corrected * problem.certainty[frames] * robust_weights(residual, ROBUST)
    residual = residual + np.einsum("tnij,nj->tni", D, offsets)
    H = np.einsum("tnia,tnib,tn->nab", D, D, w, optimize=True) + OFFSET_PRIOR * len(R) * np.eye(3)
    g = np.einsum("tnia,tni,tn->na", D, residual, w, optimize=True)
    return np.linalg.solve(H, g[..., None])[..., 0]


def solve_poses(problem: Problem, identity: Identity, start: Poses | None = None) -> Poses:
    """Pose of all valid frames in chunks, with the expressions that it was found under; other frames stay zero. start: those of about the same landmarks."""
    T, E = len(problem.picture), len(problem.names)
    R, t, e = (np.zeros((T, 3, 3)), np.zeros((T, 3)), np.zeros((T, E))) if start is None else (start.R.copy(), start.t.copy(), start.e.copy())
    head, focal, kernel = identity.head, identity.focal, ROBUST * problem.unit

    def work(chunk: np.ndarray) -> None:
        picture, ec, stable = problem.picture[chunk], e[chunk], problem.stable * problem.certainty[chunk]
        Rc, tc = affine_pose(head, picture, problem.stable, focal) if start is None else (R[chunk], t[chunk])
        Rc, tc = refine_pose(lambda R: problem.place(head, ec, R), picture, Rc, tc, focal, stable, 3 * kernel, 3 if start is None else 1)
        for strength in (STRONG, STRONG, WEAK) if start is None else (WEAK,):
            ec = fit_expressions(problem, head, focal, chunk, Rc, tc, ec, strength)
            Rc, tc = refine_pose(lambda R: problem.place(head, ec, R), picture, Rc, tc, focal, stable, kernel, 2)
        R[chunk], t[chunk], e[chunk] = Rc, tc, ec

    _each_chunk(problem, work)
    return Poses(np.flatnonzero(problem.valid), R, t, e)


def _each_chunk(problem: Problem, work: Callable[[np.ndarray], None]) -> None:
    """Do `work` with the indices of CHUNK valid frames at a time, on all cores: chunks do not depend on each other."""
    good = np.flatnonzero(problem.valid)
    chunks = np.split(good, np.arange(CHUNK, len(good), CHUNK))
    if len(chunks) == 1:
        return work(good)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(work, chunks))


def _solve_frames(problem: Problem, identity: Identity, poses: Poses, detected: Problem, pictures: Callable[[], Iterable[np.ndarray]] | None, points: np.ndarray,
                  clip_starts: Sequence[int], fps: float, model: MorphableModel, config: FitConfig) -> tuple[Track, np.ndarray, tuple[float, float] | None]:
    """Gaze, then expressions beside it and the poses; gaps filled, smooth without lag. Returns the track, where a detector would see its landmarks (T,N,2) px
    and what pixels changed.

    detected: the problem of the detector's own landmarks, points (T,N,2): gaze comes from its irises, whatever the rest is fitted to.
    Expressions are fitted under the unsmoothed pose: where the detector shakes the whole face, the pose takes it up, not the lips.
    """
    valid, names, focal = problem.valid, problem.names, identity.focal
    R, t, e = poses.R, poses.t, poses.e
    certainty = np.where(valid, 1.0, 0.05)
    per_second = (fps / 25) ** 4  # the same cut-off in Hz at any frame rate
    smooth = lambda x, strength: whittaker(fill_gaps(x, valid, clip_starts), strength * per_second, clip_starts, certainty)  # noqa: E731

    def settle() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Smooth poses, and the gaze and eyeLook coefficients beside them."""
        relative = relative_to_frontal(matrix_to_axis_angle(np.where(valid[:, None, None], R, FRONTAL)))
        rotation, translation = from_frontal(smooth(relative, config.pose_smoothing)), smooth(t, config.pose_smoothing)
        if points.shape[1] != 478 or model.eye_centres is None:
            return rotation, translation, np.zeros((len(t), 2, 2)), None
        gaze = find_gaze(detected, as_detected(detected, problem, identity, Poses(poses.frames, R, t, e)), rotation, translation, e, points, clip_starts, model, per_second)
        return rotation, translation, gaze, looks_of(names, gaze)

    rotation, translation, gaze, looks = settle()

    def refit(chunk: np.ndarray) -> None:
        e[chunk] = fit_expressions(problem, identity.head, focal, chunk, R[chunk], t[chunk], e[chunk], WEAK, 2, None if looks is None else looks[chunk])

    _each_chunk(problem, refit)
    photometric = None
    if pictures is not None:
        clock = time.perf_counter()
        R, t, e, change = refine(problem, identity, model, pictures, R, t, e, looks, config, detected is not problem)
        photometric = (*change, time.perf_counter() - clock)
        rotation, translation, gaze, looks = settle()
    fast = np.array([n.startswith(FAST) or problem.lower[0] < 0 for n in names])  # a statistical component may move the lips
    e = np.where(fast, smooth(e, config.expression_smoothing), smooth(e, 20 * config.expression_smoothing))
    if looks is not None:
        e = np.where(np.isfinite(looks), looks, e)
    e = np.clip(e, problem.lower, problem.upper)
    e = blinks_alone(e, names, rotation, valid)
    if (pair := jaw_pair(names)) is not None:
        e[:, pair[0]] = np.minimum(e[:, pair[0]], e[:, pair[1]])
    poses = Poses(poses.frames, axis_angle_to_matrix(rotation), translation, e)
    track = Track(fps=fps, model_id=model.model_id, camera=Camera.simple(focal, problem.width, problem.height, len(t)), shape=identity.shape, expression=e,
                  rotation=rotation, translation=translation, gaze=gaze, torso=np.zeros((len(t), 0)), valid=valid,
                  expression_names=names, clip_starts=tuple(clip_starts), meta={"landmarks": lm.SCHEMES[points.shape[1]]})
    return track, expected_points(detected, as_detected(detected, problem, identity, poses), poses), photometric


def as_detected(detected: Problem, problem: Problem, identity: Identity, poses: Poses) -> Identity:
    """The same person as a detector sees them: landmarks with its response, and with the corrections that remain."""
    if detected is problem:
        return identity
    head = detected.head + np.tensordot(identity.shape, detected.shapes, 1)
    frames = poses.frames[np.linspace(0, len(poses.frames) - 1, min(len(poses.frames), SOME)).astype(int)]
    offsets = _offset_step(detected, head, np.zeros_like(head), identity.focal, frames, poses.R[frames], poses.t[frames], poses.e[frames])
    return replace(identity, head=head + offsets, offsets=offsets)


def expected_points(detected: Problem, identity: Identity, poses: Poses) -> np.ndarray:
    """Where the detector would see the landmarks, (T,N,2) px."""
    R = np.where(poses.R.any((1, 2), keepdims=True), poses.R, FRONTAL)  # frames without a face may have no pose yet
    with np.errstate(invalid="ignore", divide="ignore"):
        return project(detected.place(identity.head, poses.e, R), R, poses.t, identity.focal)[1] + np.array([detected.width, detected.height]) / 2


def refine(problem: Problem, identity: Identity, model: MorphableModel, pictures: Callable[[], Iterable[np.ndarray]], R: np.ndarray, t: np.ndarray, e: np.ndarray,
           looks: np.ndarray | None, config: FitConfig, corrected: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
    """Poses and expressions of valid frames by the pixels: keyframes make textures, all frames follow them. looks (T,E): coefficients to keep, NaN = solve; corrected: what the corrector
    was taught is drawn to what e (T,E) has above rest instead of to 0, since textures of all keyframes together understate it.

    Returns R, t, e and the keyframes' mean difference of local contrast before and after.
    """
    lowest, highest = np.repeat(problem.lower[None], len(e), 0), np.repeat(problem.upper[None], len(e), 0)
    if looks is not None:
        lowest, highest = (np.where(np.isfinite(looks), looks, bound).astype(np.float32) for bound in (lowest, highest))
    lids = [i for i, name in enumerate(problem.names) if name.startswith(BY_LANDMARKS)]
    lowest[:, lids] = highest[:, lids] = e[:, lids]
    known = [corrected and name.startswith(TAUGHT) for name in problem.names]
    above_rest = np.maximum(e - np.quantile(e[problem.valid], REST, axis=0), 0)
    refiner = Refiner(problem, identity, model, lowest, highest, np.where(known, above_rest, np.nan))
    frames = keyframes(problem, config.keyframes)
    chosen = {int(i) for i in frames}
    kept = [picture for index, picture in enumerate(pictures()) if index in chosen]
    _, textures, change = refiner.learn(Poses(frames, R[frames], t[frames], e[frames]), kept)
    R, t, e = R.copy(), t.copy(), e.copy()

    def follow(part: np.ndarray, shown: list[np.ndarray]) -> None:
        found = refiner.follow(Poses(part, R[part], t[part], e[part]), shown, textures)
        R[part], t[part], e[part] = found.R, found.t, found.e

    good = ((index, picture) for index, picture in enumerate(pictures()) if index < len(e) and problem.valid[index])
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:  # a few batches at a time, so that memory does not grow with the clip
        jobs: list[Future[None]] = []
        while batch := list(islice(good, BATCH)):
            if len(jobs) > workers:
                jobs.pop(0).result()
            jobs.append(pool.submit(follow, np.array([index for index, _ in batch]), [picture for _, picture in batch]))
        for job in jobs:
            job.result()
    return R, t, e, change
