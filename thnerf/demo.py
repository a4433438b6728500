"""The main job on the built-in subject, with every result checked against its exact ground truth."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from recon.assets import asset
from recon.track import Track
from render.files import atomic_path, write_json
from render.progress import timed
from render.rotations import angle_between
from thnerf.metrics import pearson

_SPEECH_COEFFICIENTS = ("jawOpen", "mouthFunnel", "mouthPucker", "mouthClose", "mouthSmileLeft", "mouthSmileRight",
                        "eyeBlinkLeft", "eyeBlinkRight", "browInnerUp")


def compare_tracks(track: Track, truth: Track) -> dict[str, Any]:
    """Fitted against exact motion of the same frames: median rotation error (deg) and correlation by coefficient.

    Raises ValueError when the tracks are of different face models.
    """
    if track.model_id != truth.model_id:
        raise ValueError(f"cannot compare coefficients of {track.model_id} with {truth.model_id}")
    n = min(len(track), len(truth))
    error = np.degrees(angle_between(track.rotation[:n], truth.rotation[:n]))
    moving = [c for c in _SPEECH_COEFFICIENTS if c in truth.expression_names and truth.column(c)[:n].std() > 1e-3]
    return {
        "rotation_error_deg": float(np.median(error)), "rotation_error_p95_deg": float(np.quantile(error, 0.95)),
        "correlation": {c: pearson(track.column(c)[:n], truth.column(c)[:n]) or 0.0 for c in moving},
    }


def peak_rss_mib() -> float:
    """Peak resident memory of this process so far, MiB (0 where the platform cannot say)."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024.0 * 1024.0 if sys.platform == "darwin" else 1024.0)


def run_demo(out: Path, minutes: float = 3.5) -> dict[str, Any]:
    """Fit, train, evaluate, speak and export the built-in subject under `out`; returns and writes report.json.

    Raises InputError or StageError like the stages it runs.
    """
    from recon.config import FitConfig
    from recon.fit import fit_subject
    from recon.subject import Subject
    from thnerf.config import TrainConfig
    from thnerf.evaluate import evaluate
    from thnerf.export import export_track
    from thnerf.metrics import format_table
    from thnerf.motion import predict_track
    from thnerf.synthesis import render_speech
    from thnerf.trainer import train

    TrainConfig(minutes=minutes).check()
    out = Path(out)
    seconds: dict[str, float] = {}
    with timed(seconds, "fit"):
        fitted = fit_subject([asset("demo/video.mp4")], out / "subject", FitConfig())
    subject = Subject.open(out / "subject")
    fit_report = compare_tracks(subject.track, Track.load(asset("demo/track.npz")))
    with timed(seconds, "train"):
        run = train(subject, TrainConfig(minutes=minutes))
    with timed(seconds, "evaluate"):
        metrics = evaluate(subject)
    print(format_table(metrics), file=sys.stderr)
    unseen, truth = asset("demo/unseen.wav"), Track.load(asset("demo/unseen_track.npz"))
    with timed(seconds, "render"):
        spoken = render_speech(subject, unseen, out / "speech.mp4")
    predicted = predict_track(subject, run, unseen)
    n = min(len(predicted), len(truth))
    with timed(seconds, "export"):
        export_track(predicted, out / "speech_livelink.csv", "livelink")
        export_track(predicted, out / "speech_track.npz", "npz")
    videos = {"overlay": subject.path / "overlay.mp4", "evaluation": run / "evaluation.mp4", "speech": out / "speech.mp4"}
    for name in ("overlay", "evaluation"):
        with atomic_path(out / f"{name}.mp4") as temporary:
            shutil.copyfile(videos[name], temporary)
    report = {
        "seconds": {**seconds, "total": sum(seconds.values())},
        "fit": {**fit_report, **{k: fitted[k] for k in ("landmark_error_iod", "fit_fps") if k in fitted}},
        "metrics": metrics,
        "unseen": {"jawOpen_correlation": pearson(predicted.column("jawOpen")[:n], truth.column("jawOpen")[:n]) or 0.0},
        "render_fps": spoken["fps"], "peak_rss_mib": peak_rss_mib(),
        "videos": {name: str(out / f"{name}.mp4") for name in videos},
    }
    write_json(out / "report.json", report)
    _report_picture(out, subject, predicted, truth)
    return report


def _report_picture(out: Path, subject: Any, predicted: Track, truth: Track) -> None:
    """report.png: six moments of the unseen sentence above its jaw curves, predicted and true."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from render.video import load_video

    frames = load_video(out / "speech.mp4")
    picks = np.linspace(0, len(frames) - 1, 8).astype(int)[1:-1]
    figure = plt.figure(figsize=(12, 4.6), constrained_layout=True)
    grid = figure.add_gridspec(2, 6, height_ratios=[2.2, 1])
    for column, index in enumerate(picks):
        axis = figure.add_subplot(grid[0, column])
        axis.imshow(frames[index])
        axis.set_title(f"{index / predicted.fps:.1f} s", fontsize=9)
        axis.axis("off")
    axis = figure.add_subplot(grid[1, :])
    for track, label, colour in ((truth, "true", "#999999"), (predicted, "predicted from sound", "#d1495b")):
        axis.plot(np.arange(len(track)) / track.fps, track.column("jawOpen"), color=colour, label=label, lw=1.6)
    axis.set(xlabel="s", ylabel="jawOpen", xlim=(0, len(truth) / truth.fps))
    axis.legend(loc="upper right", fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(out / "report.png") as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
