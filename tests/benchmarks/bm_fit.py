"""How well and how fast the fitter tracks: phantoms with exact truth, a still head, real clips, and an Adam fit beside it.

Run: python tests/benchmarks/bm_fit.py --cache FOLDER            (all parts, ten identities)
     python tests/benchmarks/bm_fit.py --cache FOLDER --parts accuracy --quick     (three identities; seconds once they are cached)

FOLDER keeps rendered clips and their landmarks, so that a change of the solver is measured without rendering again.
Real clips come from THNERF_FOOTAGE or ../shared/data and are left out where there are none. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import thnerf  # noqa: E402, F401 - before torch: it sets how idle OpenMP threads wait

import numpy as np  # noqa: E402
from bench import Row, footage, least, most, table  # noqa: E402
from fit_sequences import BLINKS, STILL, Footage, real_clips, real_footage, still_phantom, wide_phantom  # noqa: E402

from recon import landmarks as lm  # noqa: E402
from recon.assets import asset  # noqa: E402
from recon.config import FitConfig  # noqa: E402
from recon.live import track_frames  # noqa: E402
from recon.model import load_model  # noqa: E402
from recon.overlay import posed_vertices  # noqa: E402
from recon.solve import solve  # noqa: E402
from recon.surface import similarity  # noqa: E402
from recon.track import Track  # noqa: E402
from render.rotations import angle_between, axis_angle_to_matrix, head_angles, matrix_to_axis_angle  # noqa: E402
from render.threads import one_blas_thread  # noqa: E402
from render.video import read_frames  # noqa: E402

FOLLOWED = {"jawOpen": ("jawOpen",), "blinks": ("eyeBlinkLeft", "eyeBlinkRight"), "smile": ("mouthSmileLeft", "mouthSmileRight"), "pucker": ("mouthPucker",)}
WITHHELD = lm.INNER_LIP[1::2]
FOCAL = ((0, 1.4), (5, 1.4), (3, 1.8), (8, 4.5))  # identities, and focal lengths in picture widths
default = FitConfig()  # as the command line says
FACING = 15  # degrees of yaw: the reference calls the mouths of heads that turn farther shut


def fit(clip: Footage, config: FitConfig | None = None, withheld: tuple[int, ...] = (),
        exact: bool = False) -> tuple[Track, dict[str, Any]]:
    """Fit one sequence; exact: its landmarks do not come from a detector and leave the pixels nothing to add."""
    report: dict[str, Any] = {}
    model = load_model().without_response() if exact else load_model()
    pictures, mattes = (None, None) if exact else (clip.pictures, clip.mattes)
    return solve(clip.points, clip.valid, clip.starts, 25, clip.width, clip.height, model, config or default, report, withheld, pictures, mattes), report


def other_lenses(cache: Path) -> list[Row]:
    """Phantoms seen from nearer and farther than the prior expects, without being told."""
    turned, focal, curves = [], [], []
    for number, widths in FOCAL:
        clip = wide_phantom(cache, number, widths)
        found, report = fit(clip)
        turned.append(np.degrees(angle_between(found.rotation, clip.truth.rotation))[clip.valid])
        focal.append(f"{report['focal_px'] / clip.width:.2f} for {widths}")
        curves.append([t.column("jawOpen")[clip.valid] for t in (found, clip.truth)])
    angle = np.concatenate(turned)
    return [Row("other focal lengths: rotation error, median (deg)", "", np.median(angle), None, f"95th percentile {np.percentile(angle, 95):.2f}; focal lengths in widths " + ", ".join(focal)),
            Row("other focal lengths: correlation of jawOpen", "", correlation(*map(np.concatenate, zip(*curves))), None)]


def laid_over(source: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Scale, and source (N,3) moved onto target by the best similarity."""
    scale, R, t = similarity(source, target)
    return scale, scale * source @ R.T + t


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, over what is finite in both; NaN when one is constant."""
    good = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[good], b[good])[0, 1]) if good.any() and np.ptp(a[good]) > 0 and np.ptp(b[good]) > 0 else float("nan")


def with_exact_landmarks(clip: Footage) -> Footage:
    """The same phantom with the landmarks of its truth in place of the detector's: what is left is the solver's own error."""
    model, truth = load_model(), clip.truth
    world = np.stack([model.points(posed_vertices(model, truth, i), "mediapipe478") for i in range(len(truth))])
    return replace(clip, points=truth.camera.project(world).astype(np.float32), valid=np.ones(len(truth), bool))


def accuracy(cache: Path, identities: int, exact_landmarks: bool = False) -> list[Row]:
    """Wide phantoms against their truth."""
    model = load_model()
    face = model.regions["face"]
    neutral = lambda shape: model.vertices(shape, np.zeros(len(model.expression_names)))[face].astype(np.float64)  # noqa: E731
    turned, given, focal, lateral, depth, wobble, identity, average, curves, angles, found_all, missing, gaze = ([] for _ in range(13))
    for number in range(identities):
        clip = wide_phantom(cache, number)
        clip = with_exact_landmarks(clip) if exact_landmarks else clip
        truth, use = clip.truth, clip.valid
        angles.append(np.degrees(head_angles(truth.rotation)))
        missing.append(1 - use.mean())
        found, report = fit(clip, exact=exact_landmarks)
        turned.append(np.degrees(angle_between(found.rotation, truth.rotation))[use])
        focal.append(report["focal_px"] / truth.camera.K[0, 0] - 1)
        gaze.append(np.degrees(np.linalg.norm(found.gaze - truth.gaze, axis=-1).mean(1))[use])
        exact, mean = neutral(truth.shape), neutral(np.zeros(1))
        error = lambda vertices: np.linalg.norm(laid_over(vertices, exact)[1] - exact, axis=1).mean()  # noqa: B023, E731
        identity.append(error(neutral(found.shape)))
        average.append(error(mean))
        curves.append({name: tuple(np.mean([t.column(n)[use] for n in names], 0) for t in (found, truth)) for name, names in FOLLOWED.items()})
        found_all.append([(t.expression[use] >= 0.99) for t in (found, truth)])
        told, _ = fit(clip, replace(default, focal=float(truth.camera.K[0, 0])), exact=exact_landmarks)
        given.append(np.degrees(angle_between(told.rotation, truth.rotation))[use])
        scale, _ = laid_over(neutral(told.shape), exact)
        place = lambda track: neutral(track.shape).mean(0) @ axis_angle_to_matrix(track.rotation).swapaxes(1, 2) + track.translation  # noqa: E731
        here, there = place(told)[use], place(truth)[use]
        off = scale * here - there
        lateral.append(np.linalg.norm(off[:, :2], axis=1) / there[:, 2] * 100)
        depth.append(np.abs(off[:, 2]) / there[:, 2] * 100)
        wobble.append(np.abs((here * there).sum() / (here**2).sum() * here[:, 2] - there[:, 2]) / there[:, 2] * 100)
    turned, given, lateral, depth, wobble, angles = map(np.concatenate, (turned, given, lateral, depth, wobble, angles))
    high, true_high = (np.concatenate([pair[i] for pair in found_all]).mean(0) * 100 for i in (0, 1))
    excess = high - true_high
    worst = int(excess.argmax())
    reached = f"yaw {angles[:, 0].min():.0f}..{angles[:, 0].max():.0f}, pitch {angles[:, 1].min():.0f}..{angles[:, 1].max():.0f}"
    rows = [
        most("rotation error, median (deg)", 0.8, np.median(turned), f"{len(turned)} frames, {reached}; {np.mean(missing):.1%} without a face"),
        most("rotation error, 95th percentile (deg)", 2, np.percentile(turned, 95), f"by identity {np.min(worst_by(turned, found_all)):.2f} to {np.max(worst_by(turned, found_all)):.2f}"),
        Row("rotation error with the focal length given, median", "", float(np.median(given)), None, f"95th percentile {np.percentile(given, 95):.2f}"),
        Row("focal length error, median of |log| (%)", "", float(np.median(np.abs(focal)) * 100), None, f"{min(focal):+.1%} to {max(focal):+.1%}"),
        most("lateral position, median (% of depth)", 1, np.median(lateral), f"95th percentile {np.percentile(lateral, 95):.2f}"),
        most("depth, median (%)", 1, np.median(depth), f"95th percentile {np.percentile(depth, 95):.2f}; scale from the identity"),
        Row("depth with the path's own scale, median (%)", "", float(np.median(wobble)), None, f"95th percentile {np.percentile(wobble, 95):.2f}")]
    for name in FOLLOWED:
        single = [correlation(*c[name]) for c in curves]
        pooled = correlation(*(np.concatenate([c[name][i] for c in curves]) for i in (0, 1)))
        rows.append(least(f"correlation of {name}", 0.95, pooled, f"by identity median {np.nanmedian(single):.3f}, worst {np.nanmin(single):.3f}"))
    rows.append(Row("gaze error, median (deg)", "", np.median(np.concatenate(gaze)), None, f"95th percentile {np.percentile(np.concatenate(gaze), 95):.1f}"))
    rows += [
        most("frames at the upper bound beyond the truth's, worst coefficient (%)", 2, excess[worst], f"{model.expression_names[worst]}; then "
             + ", ".join(f"{model.expression_names[i]} {excess[i]:.1f}" for i in np.argsort(-excess)[1:4])),
        most("identity, mean vertex error of the face (mm)", 1.5, np.mean(identity), f"{min(identity):.2f} to {max(identity):.2f}"),
        most("identity against the mean face (ratio)", 0.5, np.mean(identity) / np.mean(average), f"the mean face is {np.mean(average):.2f} mm off")]
    return [replace(row, what="exact landmarks: " + row.what) for row in rows] if exact_landmarks else rows


def worst_by(values: np.ndarray, parts: list[Any]) -> list[float]:
    """95th percentile of `values` in each of the parts that they were joined from."""
    ends = np.cumsum([len(p[0]) for p in parts])
    return [float(np.percentile(v, 95)) for v in np.split(values, ends[:-1])]


def jitter(cache: Path, identities: int) -> list[Row]:
    """A still head in noise and compression, and its blinks."""
    shake, raw, steps, raw_steps, kept, unsmoothed = ([] for _ in range(6))
    for number in range(identities):
        clip = still_phantom(cache, number)
        single = FitConfig(pose_smoothing=0, expression_smoothing=0, corrector=False, photometric=False)
        for config, rms, step, amplitude in ((default, shake, steps, kept), (single, raw, raw_steps, unsmoothed)):
            track, _ = fit(clip, config)
            still = track.rotation[:STILL]
            U, _, Vt = np.linalg.svd(axis_angle_to_matrix(still).mean(0))
            centre = matrix_to_axis_angle(U @ Vt)[None]
            rms.append(np.degrees(root_mean_square(angle_between(still, np.repeat(centre, STILL, 0)))))
            step.append(np.degrees(root_mean_square(angle_between(still[1:], still[:-1]))))
            lid = np.mean([track.column("eyeBlinkLeft"), track.column("eyeBlinkRight")], 0)
            rest = np.median(lid[:STILL])
            amplitude += [lid[s : s + 6].max() - rest for s in BLINKS]
    a, b, c, d = map(root_mean_square, (shake, raw, steps, raw_steps))
    return [most("still head: pose jitter (deg RMS)", 0.05, a, f"{identities} identities; about the mean of {STILL} frames"),
            most("still head: jitter against per-frame fitting (ratio)", 0.5, a / b, f"each frame's landmarks alone {b:.3f} deg"),
            Row("still head: from frame to frame (deg RMS)", "", c, None, f"per frame {d:.3f}, ratio {c / d:.2f}"),
            least("six-frame blink: amplitude kept (%)", 90, 100 * np.mean(kept), f"worst {100 * min(kept):.0f}; fitted per frame {100 * np.mean(unsmoothed):.0f}")]


def root_mean_square(values: Any) -> float:
    """Of all values."""
    return float(np.sqrt(np.mean(np.square(values))))


def landmark_errors(clip: Footage, report: dict[str, Any], rows: Any = slice(0, 468)) -> np.ndarray:
    """Distances (frames, landmarks) of projected from detected points in interocular distances, in %."""
    seen = clip.points[clip.valid]
    return 100 * np.linalg.norm(report["projected"][clip.valid] - seen, axis=-1)[:, rows] / lm.interocular(seen)[:, None]


def real(cache: Path, data: Path | None) -> list[Row]:
    """Real clips: landmarks, saturation, and a second opinion."""
    rows: list[Row] = []
    for name, files in (real_clips(data) if data else {}).items():
        clip = real_footage(cache, name, files)
        track, report = fit(clip)
        error, hidden = landmark_errors(clip, report), landmark_errors(clip, fit(clip, withheld=WITHHELD)[1], list(WITHHELD))
        high = (track.expression[clip.valid] >= 0.99).mean(0) * 100
        rows += [most(f"{name}: landmark error, median (% iod)", 1.2, np.median(error), f"mean {error.mean():.2f}; {clip.valid.sum()} frames"),
                 most(f"{name}: withheld inner-lip points, median (% iod)", 2, np.median(hidden), f"mean {hidden.mean():.2f}"),
                 most(f"{name}: frames at the upper bound, worst coefficient (%)", 5, high.max(), f"{track.expression_names[int(high.argmax())]}; {(high > 5).sum()} above")]
        for what, columns in (("jawOpen", ("jawOpen",)), ("blinks", ("eyeBlinkLeft", "eyeBlinkRight"))):
            image, video = (np.mean([clip.reference[mode][c] for c in columns], 0) for mode in ("image", "video"))
            ours = np.mean([track.column(c) for c in columns], 0)
            facing = np.abs(head_angles(track.rotation)[:, 0]) < np.deg2rad(FACING)
            rows.append(least(f"{name}: {what} against the reference's", 0.8, correlation(ours, image),
                              f"reference, IMAGE against VIDEO {correlation(image, video):.3f}; within {FACING} deg of facing the camera ({facing.mean():.0%}) "
                              f"{correlation(ours[facing], image[facing]):.3f}"))
    return rows


def speed(cache: Path, data: Path | None) -> list[Row]:
    """Solve of a 50 s clip, and the whole fit of one where there is footage."""
    clips = real_clips(data) if data else {}
    if "macron" in clips:
        clip = real_footage(cache, "macron", clips["macron"])
    else:
        parts = [wide_phantom(cache, n) for n in range(3)]
        clip = Footage("phantoms", np.concatenate([p.points for p in parts] * 4), np.concatenate([p.valid for p in parts] * 4), parts[0].width, parts[0].height)
    found = [fit(clip, replace(default, photometric=False))[1] for _ in range(2)]
    seconds = min(f["seconds"] for f in found)
    rows = [least("solve (frames/s)", 250, len(clip.valid) / seconds, f"{len(clip.valid)} frames in {seconds:.2f} s, best of 2")]
    if clip.pictures:
        rows.append(Row("correction of landmarks (ms a frame)", "", 1000 * min(f["correct_seconds"] for f in found) / len(clip.valid), None, "with decoding of the source, twice"))
        more = fit(clip)[1]["refine_seconds"]
        rows.append(Row("refinement by the pixels (ms a frame)", "", 1000 * more / len(clip.valid), None, f"{more:.2f} s"))
    if "macron" in clips:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "thnerf.cli", "fit", str(clips["macron"][0]), "--out", folder + "/subject"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
                           env={**os.environ, "THNERF_QUIET": "1"})
            rows.append(most("fit of a 50 s clip, end to end (s)", 60, time.perf_counter() - begun, "with the start of Python"))
    return rows


def live(data: Path | None, frames: int = 300) -> list[Row]:
    """Live tracking of a 512² picture: time a frame with detection, and what it says against the offline track of the same frames."""
    import cv2

    clip = data / "macron/macron.mp4" if data else None
    source = clip if clip and clip.exists() else asset("demo") / "video.mp4"
    pictures = [cv2.resize(f, (512, 512)) if f.shape[0] != 512 else f for f in itertools.islice(read_frames(source, 25), frames)]
    clock: list[float] = []
    with one_blas_thread():
        said = list(track_frames(((i / 25, f) for i, f in enumerate(pictures)), load_model(), clock=clock))
    found = lm.load_detector("mediapipe").detect(pictures)
    track, _ = fit(Footage("live", found.points, found.valid, 512, 512, pictures=lambda: pictures))
    settled = slice(100, None)
    turned = np.degrees(angle_between(np.array([f.rotation for f in said]), track.rotation))[settled]
    jaw, lid = ((np.array([f.expression[n] for f in said])[settled], track.column(n)[settled]) for n in ("jawOpen", "eyeBlinkLeft"))
    spent = 1000 * np.array(clock)[5:]  # not the first, which compile and load
    return [most("live at 512x512: time a frame, median (ms)", 40, np.median(spent), f"95 % within {np.percentile(spent, 95):.0f}, worst {spent.max():.0f}; detection included"),
            Row("live against offline: rotation, median (deg)", "", float(np.median(turned)), None, f"95th percentile {np.percentile(turned, 95):.2f}; jawOpen correlates by {correlation(*jaw):.3f}, "
                "eyeBlinkLeft differs by " + f"{root_mean_square(lid[0] - lid[1]):.3f} RMS")]


def adam(cache: Path, budget: float) -> list[Row]:
    """The baseline on one phantom: time until it is as good as ours, in landmarks and in pose."""
    from fit_adam import AdamFit

    clip = wide_phantom(cache, 0)
    focal = float(clip.truth.camera.K[0, 0])
    config = FitConfig(focal=focal, corrector=False, photometric=False)  # the baseline has landmarks only
    fit(clip, config)  # once before, so that no import is timed
    begun = time.perf_counter()
    ours, report = fit(clip, config)
    seconds, use = time.perf_counter() - begun, clip.valid
    aim = float(landmark_errors(clip, report).mean()) / 100
    turn = float(np.degrees(np.median(angle_between(ours.rotation, clip.truth.rotation)[use])))
    curve = AdamFit(clip.points[use], np.array([clip.width, clip.height]) / 2, focal, load_model()).run(budget)
    best = min(e for _, e in curve)
    reached = next((s for s, e in curve if e <= aim), None)
    near = next(s for s, e in curve if e <= 1.05 * best)
    note = f"ours {100 * aim:.2f} % iod in {seconds:.2f} s (rotation {turn:.2f} deg); Adam's best {100 * best:.2f} % in {budget:g} s"
    return [Row("Adam: time to our landmark error, against our time (ratio)" if reached else "Adam: does not reach our landmark error; time spent, against ours", "",
                (reached or curve[-1][0]) / seconds, None, note),
            Row("Adam: time to within 5 % of its own best, against our time", "", near / seconds, None, f"{near:.1f} s")]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("bm_fit"), help="folder for rendered clips and landmarks")
    parser.add_argument("--parts", nargs="+", default=["accuracy", "focal", "jitter", "real", "speed", "live", "adam"], choices=["accuracy", "exact", "focal", "jitter", "real", "speed", "live", "adam"],
                        help="exact: accuracy with the truth's landmarks in place of the detector's")
    parser.add_argument("--identities", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three identities")
    parser.add_argument("--adam-seconds", type=float, default=60.0, help="budget of the baseline")
    parser.add_argument("--no-corrector", action="store_true", help="the detector's landmarks as they are")
    parser.add_argument("--no-photometric", action="store_true", help="landmarks alone")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    args = parser.parse_args()
    global default
    default = FitConfig(corrector=not args.no_corrector, photometric=not args.no_photometric)
    identities = 3 if args.quick else args.identities
    data = footage()
    work: dict[str, Callable[[], list[Row]]] = {
        "accuracy": lambda: accuracy(args.cache, identities), "exact": lambda: accuracy(args.cache, identities, True), "focal": lambda: other_lenses(args.cache), "jitter": lambda: jitter(args.cache, min(3, identities)), "real": lambda: real(args.cache, data),
        "speed": lambda: speed(args.cache, data), "live": lambda: live(data), "adam": lambda: adam(args.cache, args.adam_seconds)}
    rows = [row for part in args.parts for row in work[part]()]
    table(rows)
    if args.json:
        args.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
