"""Held-out metrics of a run: metrics.json, a chart and a side-by-side video, in one pass over the held-out frames.

Six settings, measured alike on 8-bit pictures (nothing pasted from the ground truth):

- `truth`: the held-out frames against themselves.
- `reconstruct`: rendered from their track, as the run has aligned it to its field (`thnerf.align`; held-out frames give their pose and coefficients, nothing else).
- `unaligned`: rendered from their track as `thnerf fit` left it; null where the run has aligned nothing.
- `audio`: expression predicted from their sound alone; head pose, gaze and torso from the track.
- `frozen_mouth`: `reconstruct` with every jaw, mouth and tongue coefficient at its median over the training frames.
- `shuffled`: real frames of another stretch in place of a render, which is chance level. Of one clip: a training
  stretch of the same length from the middle of the training frames; of several: each held-out clip against the next held-out one
  (the last training clip where only one is held out), its last frame held where it is shorter.

Frames are processed in blocks, so memory does not grow with the length of the footage.
"""

from __future__ import annotations

from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from recon.landmarks import Detector, ibug68, load_detector
from recon.subject import Subject
from recon.track import Track, concatenate
from render.files import InputError, atomic_path, write_json
from render.progress import progress
from thnerf.metrics import FACE_MARGIN, KEYS, SETTINGS, Measurement, landmark_box
from thnerf.synthesis import SOUND_RATE, Renderer, to_uint8

if TYPE_CHECKING:
    from thnerf.lpips import Lpips

BLOCK = 16
"""Frames held in memory at a time."""
LABELS = {"truth": "truth", "reconstruct": "reconstruct", "audio": "from audio"}
MOUTH_PREFIXES = ("jaw", "mouth", "tongue")
Predict = Callable[[np.ndarray, int, int], np.ndarray]


def evaluate(subject: Subject, run: str = "default", device: str = "auto", max_frames: int | None = None, lpips: str | Path | None = None) -> dict[str, Any]:
    """Measure a run on the held-out frames (at most the first `max_frames`); returns what it writes to <run>/metrics.json.

    lpips: weights of LPIPS (`thnerf.lpips`); every block then has `lpips`, the mean over frames of that of the face box (as for `psnr_face`; lower is better),
    whatever the run was trained with, and `notes` says with which network.

    Keys: a block of `thnerf.metrics.KEYS` for each of SETTINGS (null with a sentence in `notes` where it cannot be measured), `split`, `frames`,
    `size`, `clips`, `run`, `notes`. Beside it go evaluation.mp4 (truth | reconstruct | audio, with sound) and evaluation.png. Raises
    InputError when the subject holds no test frames, the run is missing, or the weights are not those of LPIPS.
    """
    from thnerf.device import choose_device
    from thnerf.lpips import load_lpips
    from thnerf.trainer import load_renderer

    run_dir, network = subject.run(run), load_lpips(lpips, choose_device(device)) if lpips else None
    renderer = load_renderer(run_dir, subject, device)
    detector = load_detector(fit_detector(subject))
    predict, reason = speech_predictor(subject, run_dir)
    return evaluate_with(subject, run_dir, renderer, detector, predict, reason, max_frames, network)


def stale_run(subject: Subject, run_dir: Path) -> str:
    """A sentence when the subject was fitted again after the run was trained (its numbers then mean little), else ''."""
    weights = [p.stat().st_mtime for p in run_dir.glob("field*.safetensors")]
    if weights and subject.track_path.stat().st_mtime > max(weights) + 60:  # copying a folder may reorder times by seconds
        return f"the subject was fitted again after the run {run_dir.name!r} was trained, so track and run do not match; train it again"
    return ""


def trained_with_lpips(run_dir: Path) -> bool:
    """Whether the run was trained to lower LPIPS, as its config.yaml says."""
    import yaml

    try:
        settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(settings, dict) and bool(settings.get("lpips") and settings.get("lpips_weight"))


def evaluate_with(subject: Subject, out: Path, renderer: Renderer, detector: Detector, predict: Predict | None, reason: str = "",
                  max_frames: int | None = None, lpips: Lpips | None = None) -> dict[str, Any]:
    """`evaluate` with its parts given: predict(samples, rate, frames) → expression (frames,E), or None and the reason for it."""
    ranges = held_out(subject, max_frames)
    track = subject.aligned(out)
    index = np.concatenate([np.arange(a, b) for a, b in ranges])
    starts = tuple(int(s) for s in np.cumsum([0] + [b - a for a, b in ranges[:-1]]))
    tracks = {"reconstruct": (tested := concatenate([track[a:b] for a, b in ranges])), "frozen_mouth": frozen_mouth(tested, track, subject.frames("train"))}
    notes = {} if predict else {"audio": reason}
    if track is subject.track:
        notes["unaligned"] = "the run has left the fitted track as it is, see reconstruct"
    else:
        tracks["unaligned"] = concatenate([subject.track[a:b] for a, b in ranges])
    if stale := stale_run(subject, out):
        notes["run"] = stale
    if lpips is not None:
        notes["lpips"] = f"of the face box, with {lpips.name}{', and the run was trained to lower LPIPS' if trained_with_lpips(out) else ''}"
    sound = stretch_sound(subject, ranges) if subject.has_audio else None
    if predict:
        try:
            tracks["audio"] = spoken_track(tested, starts, sound, predict)
        except InputError as error:  # a run without a speech network still has a picture to measure
            notes["audio"] = str(error)
    streams: dict[str, Iterable[np.ndarray]] = {name: rendered(renderer, t) for name, t in tracks.items()}
    other = shuffled_index(subject, ranges)
    if other is None:
        notes["shuffled"] = "there is no other stretch of footage to take frames from"
    else:
        streams["shuffled"] = frames_at(subject.video_path, other)
    mattes, unreadable = held_out_mattes(subject, index)
    if unreadable:
        notes["jitter_background"] = unreadable
    out.mkdir(parents=True, exist_ok=True)
    measured = measure(frames_at(subject.video_path, index), streams, detector, len(index), out / "evaluation.mp4", track.fps, sound, mattes, lpips)
    result: dict[str, Any] = {
        "split": subject.info["split"], "frames": len(index), "size": [track.camera.width, track.camera.height], "clips": len(ranges), "run": out.name,
        "notes": notes, **{name: measured[name].result(starts) if name in measured else None for name in SETTINGS}}
    chart(out / "evaluation.png", measured, result, track.fps, starts)
    write_json(out / "metrics.json", result)
    return result


def measure(truth: Iterable[np.ndarray], streams: dict[str, Iterable[np.ndarray]], detector: Detector, frames: int, video: Path | None = None,
            fps: float = 25.0, sound: np.ndarray | None = None, mattes: Iterable[np.ndarray] | None = None,
            lpips: Lpips | None = None) -> dict[str, Measurement]:
    """Run through all streams of (H,W,3) uint8 frames together; returns a Measurement for 'truth' and each stream.

    The landmarks of every picture come from `detector`, truth included. mattes: the truth's, (H,W) uint8, for the jitter of the background. lpips: compares
    the face boxes, too. With `video`, truth, reconstruct and audio are written side by side with `sound` (samples at SOUND_RATE).
    """
    measured = {name: Measurement() for name in ("truth", *streams)}
    people = iter(mattes) if mattes is not None else repeat(None)
    sources, real = {name: iter(stream) for name, stream in streams.items()}, iter(truth)
    shown = [name for name in LABELS if name in measured]
    writer = None
    bar = progress(None, "evaluate", total=frames)
    try:
        while block := list(islice(real, BLOCK)):
            pictures = {"truth": block, **{name: list(islice(source, len(block))) for name, source in sources.items()}}
            points = {name: landmarks68(detector, images) for name, images in pictures.items()}
            people_here = list(islice(people, len(block)))
            for i, frame in enumerate(block):
                shots = [images[i] for images in pictures.values()]
                box = landmark_box(points["truth"][i], FACE_MARGIN, frame.shape[1], frame.shape[0])
                for name, image, distance in zip(pictures, shots, lpips.measure(frame, shots, box) if lpips is not None else repeat(None)):
                    measured[name].add(frame, image, points["truth"][i], points[name][i], people_here[i], distance)
            if video is not None and writer is None:
                writer = side_by_side_writer(video, len(shown), block[0].shape, fps, sound)
            for i in range(len(block) if writer else 0):
                writer.write(side_by_side([pictures[name][i] for name in shown], [LABELS[name] for name in shown]))
            bar.update(len(block))
    except BaseException as error:
        if writer is not None:
            writer.__exit__(type(error), error, error.__traceback__)
        raise
    finally:
        bar.close()
    if writer is not None:
        writer.__exit__(None, None, None)
    return measured


def landmarks68(detector: Detector, frames: Sequence[np.ndarray]) -> np.ndarray:
    """(N,68,2) float32 px, NaN where the detector finds no face. Every picture is detected on its own."""
    found = detector.detect(frames)
    return np.where(found.valid[:, None, None], ibug68(found.points[..., :2]), np.nan).astype(np.float32)


def held_out(subject: Subject, max_frames: int | None = None) -> list[tuple[int, int]]:
    """Test frame ranges, cut after `max_frames` in all. Raises InputError when there are none."""
    left, ranges = max_frames if max_frames is not None else 1 << 60, []
    for a, b in subject.info["split"].get("test", []):
        if min(b - a, left) > 0:
            ranges.append((int(a), int(min(b, a + left))))
            left -= b - a
    if not ranges:
        raise InputError(f"{subject.path} has no held-out frames (its footage is shorter than 11 frames); fit a longer clip")
    return ranges


def fit_detector(subject: Subject) -> str:
    """Name of the detector that fit used. Landmarks that were read from a file cannot be found on renders; then the default."""
    name = str(subject.info.get("config", {}).get("detector", "mediapipe"))
    return "mediapipe" if name.endswith(".npz") else name


def speech_predictor(subject: Subject, run_dir: Path) -> tuple[Predict | None, str]:
    """The run's speech network as predict(samples, rate, frames) → (frames,E), or None and why there is none."""
    if not subject.has_audio:
        return None, "the footage has no sound, so there is nothing to predict from"
    from thnerf.motion import predict_expression

    return (lambda samples, rate, frames: predict_expression(subject, run_dir, samples, rate, frames)), ""


def stretch_sound(subject: Subject, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Mono float32 samples at SOUND_RATE of the given frame ranges, joined; each exactly as long as its frames."""
    from thnerf.audio import load_audio

    samples, fps = load_audio(subject.audio_path, SOUND_RATE), subject.track.fps
    parts = []
    for a, b in ranges:
        start, count = round(a * SOUND_RATE / fps), round((b - a) * SOUND_RATE / fps)
        part = samples[start : start + count]
        parts.append(np.pad(part, (0, count - len(part))))
    return np.concatenate(parts)


def spoken_track(tested: Track, starts: Sequence[int], sound: np.ndarray, predict: Predict) -> Track:
    """`tested` with the expression predicted from `sound`, stretch by stretch, so that no stretch hears another."""
    expression, bounds = [], [*starts, len(tested)]
    for a, b in zip(bounds, bounds[1:]):
        piece = sound[round(a * SOUND_RATE / tested.fps) : round(b * SOUND_RATE / tested.fps)]
        expression.append(np.asarray(predict(piece, SOUND_RATE, b - a), np.float32))
    return tested.replace(expression=np.concatenate(expression))


def frozen_mouth(tested: Track, track: Track, train: np.ndarray) -> Track:
    """`tested` with the mouth coefficients at their median over the training frames of `track`.

    Mouth coefficients are those named jaw…, mouth… or tongue…; of a model with other names, all of them.
    """
    names = np.array([name.lower().startswith(MOUTH_PREFIXES) for name in track.expression_names])
    mouth = names if names.any() else np.ones_like(names)
    expression = tested.expression.copy()
    expression[:, mouth] = np.median(track.expression[train][:, mouth], 0)
    return tested.replace(expression=expression)


def shuffled_index(subject: Subject, ranges: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """For each held-out frame, the real frame that stands in for it (see the module text); None when there is nothing else."""
    train = [(int(a), int(b)) for a, b in subject.info["split"]["train"]]
    if len(train) + len(ranges) > 2 or len(ranges) > 1:
        others = [*ranges[1:], ranges[0]] if len(ranges) > 1 else [train[-1]]
        return np.concatenate([np.minimum(other[0] + np.arange(b - a), other[1] - 1) for (a, b), other in zip(ranges, others)])
    count, (a, b) = ranges[0][1] - ranges[0][0], train[0]
    if b - a < 2:
        return None
    first = a + max(0, (b - a - count) // 2)
    return first + np.arange(count) % (b - first)


def held_out_mattes(subject: Subject, index: np.ndarray) -> tuple[Iterator[np.ndarray] | None, str]:
    """The person mattes (H,W) uint8 of the frames at `index`, or None and the reason why they cannot be read."""
    mattes = frames_at(subject.matte_path, index, grey=True)
    try:
        first = next(mattes)
    except InputError as error:
        return None, str(error)
    return chain([first], mattes), ""


def frames_at(video: Path, index: np.ndarray, grey: bool = False) -> Iterator[np.ndarray]:
    """The frames of a video at `index` (`grey`: (H,W)), in that order, streamed; goes back to the start where the order falls."""
    from render.video import read_frames

    position, frame, source = -1, None, iter(())
    for wanted in index:
        if wanted < position or position < 0:
            source, position = iter(read_frames(video, grey=grey)), -1
        while position < wanted:
            frame = next(source, None)
            position += 1
            if frame is None:
                raise InputError(f"{video} has only {position} frames and its track more; run thnerf fit again")
        yield frame


def rendered(renderer: Renderer, track: Track) -> Iterator[np.ndarray]:
    """All frames of a track, (H,W,3) uint8."""
    for i in range(len(track)):
        yield to_uint8(renderer.frame(track, i))


BAND = 24
"""Height of the label above each picture, px."""


def side_by_side_writer(path: Path, pictures: int, shape: Sequence[int], fps: float, sound: np.ndarray | None) -> Any:
    """An open VideoWriter for `pictures` frames of `shape` in a row under their labels."""
    from render.video import VideoWriter

    width, height = shape[1] * pictures, shape[0] + BAND
    audio = None if sound is None else (sound, SOUND_RATE)
    return VideoWriter(path, width + width % 2, height + height % 2, fps, audio=audio, crf=16, synthetic=True).__enter__()


def side_by_side(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(H,W,3) uint8 pictures in a row, each under its label; both sides padded to even."""
    import cv2

    columns = []
    for picture, label in zip(pictures, labels):
        band = np.full((BAND, picture.shape[1], 3), 24, np.uint8)
        cv2.putText(band, label, (6, BAND - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
        columns.append(np.concatenate([band, picture]))
    row = np.concatenate(columns, 1)
    return np.pad(row, ((0, row.shape[0] % 2), (0, row.shape[1] % 2), (0, 0)))


def chart(path: Path, measured: dict[str, Measurement], result: dict[str, Any], fps: float, starts: Sequence[int]) -> None:
    """A small PNG: mouth opening over time of truth, reconstruct and audio; PSNR of every setting as bars."""
    from matplotlib.figure import Figure

    colours = {"truth": "#222222", "reconstruct": "#2e86ab", "audio": "#d1495b", "unaligned": "#86bbd8", "frozen_mouth": "#b8b8b8", "shuffled": "#e9c46a"}
    figure = Figure(figsize=(11, 3), dpi=110, layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=(2.4, 1))
    for name in LABELS:
        if name in measured:
            opening = measured[name].openings()[1]
            curves.plot(np.arange(len(opening)) / fps, opening, color=colours[name], label=LABELS[name], lw=1.4)
    for start in starts[1:]:
        curves.axvline(start / fps, color="#dddddd", lw=0.8, zorder=0)
    curves.set(xlabel="s of held-out footage", ylabel="mouth opening / iod", title="Mouth opening")
    curves.legend(fontsize=8, frameon=False, ncols=3)
    shown = [name for name in SETTINGS[1:] if result.get(name)]
    for i, name in enumerate(shown):
        values = [result[name][key] or 0.0 for key in KEYS[:3]]
        bars.bar(np.arange(3) + (i - (len(shown) - 1) / 2) * 0.8 / len(shown), values, 0.72 / len(shown), color=colours[name], label=name)
    bars.set_xticks(range(3), ["full", "face", "mouth"])
    bars.set(ylabel="PSNR, dB", title="PSNR")
    bars.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
