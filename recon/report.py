"""The page at the end of a fit: what the tracker found and what to record again, in one file without outside requests."""

from __future__ import annotations

import base64
import tempfile
from html import escape
from pathlib import Path
from string import Template
from typing import Any, Sequence

import numpy as np

from recon import charts
from recon.doctor import Finding, Report, coverage, mouth_classes, sharpness_of, sync_finding
from recon.landmarks import eye_opening, ibug68, interocular, mouth_opening
from recon.overlay import draw_mesh, draw_points, posed_vertices
from recon.subject import Subject
from recon.sync import RATE, Sync
from render.files import atomic_path, read_json
from render.rotations import head_angles
from render.sound import resample_audio
from render.video import VideoWriter, picked_frames

LOOP = 5.0  # s of overlay
WORST, MATTES, MEASURED = 5, 4, 600
_CURVES = (("jawOpen", "mouthPucker", "mouthSmileLeft", "mouthClose"), ("eyeBlinkLeft", "eyeBlinkRight", "browInnerUp"))
_VERDICT = {"ok": ("good footage", "Good footage: nothing needs to be recorded again."), "warn": ("usable footage", "This footage works. What to record differently next time:"),
            "fail": ("unusable footage", "This footage will not train well. What to record again:")}


def write_report(subject: Subject) -> Path:
    """report.html of a finished subject; returns its path. Costs one pass over video and matte and LOOP seconds of overlay."""
    track, info, fit = subject.track, subject.info, read_json(subject.fit_path)
    with np.load(subject.landmarks_path) as data:
        points, valid = data["points"], data["valid"]
    curves = _stored(subject)
    opening, width = _mouth(points, valid)
    angles = np.degrees(head_angles(track.rotation))
    loop = _liveliest(opening, valid, track.clip_starts, round(LOOP * track.fps))
    error = curves.get("error")
    worst = _worst(error if error is not None else np.zeros(len(track)), valid, round(0.5 * track.fps))
    shown = np.flatnonzero(valid)[np.linspace(0, valid.sum() - 1, MATTES).astype(int)] if valid.any() else np.zeros(0, int)
    pictures, light, sharp = _pass(subject, points, valid, {*range(*loop), *worst, *shown})
    mattes, known = _mattes(subject, shown, len(track))
    sync = Sync(fit.get("av_offset_frames"), fit.get("av_offset_confidence", 0.0), curves.get("lags", np.zeros(0)), curves.get("score", np.zeros(0)))
    blinks = count_blinks(eye_opening(points[valid]).min(1)) if valid.any() else 0
    findings = [Finding(**f) for f in fit.get("findings", [])]
    if subject.has_audio and "av_offset_frames" in fit:
        findings += sync_finding(sync, len(track) / track.fps, fit.get("av_shift_frames", 0))
    findings += coverage(opening[valid], width[valid], blinks, np.radians(angles[valid, 1]), track.fps) if valid.any() else []
    report = Report(subject.path.name, findings)
    split = info.get("split", {})
    shades = [(*r, "held") for r in split.get("test", [])] + [(*loop, "loop")] + [(a, b, "gone") for a, b in _runs(~valid)]
    text = Template((Path(__file__).parent / "report.html").read_text()).substitute(
        name=escape(subject.path.resolve().name), verdict=report.verdict, verdict_word=_VERDICT[report.verdict][0], verdict_line=_VERDICT[report.verdict][1],
        clips=escape(_clips(info, len(track), track.fps)), facts=_facts(fit, track, angles, sync), advice=_advice(findings), findings=_table(findings),
        loop=_loop(subject, pictures, loop, points), loop_start=f"{loop[0] / track.fps:.3f}",
        loop_note=f"Detected landmarks, fitted mesh; the {LOOP:g} liveliest seconds. Turn the sound on and watch the lips.",
        timelines=_timelines(track, points, valid, error, angles, light, sharp, shades, worst), worst=_worst_strip(subject, pictures, points, worst, error),
        pose=_pose(angles, valid, split), pose_note=_pose_note(angles[valid]), mouth=_mouth_plane(opening[valid], width[valid]),
        mouth_note="Every dot is a frame: how far the lips are apart and how wide the mouth is, from the landmarks. Shapes, not phonemes.",
        mouth_bars=charts.bars({n: float(m.mean()) for n, m in mouth_classes(opening[valid], width[valid]).items()}) if valid.any() else "",
        **_sound(subject, sync, fit, opening, valid), mattes=_matte_strip(subject, pictures, mattes, known), plate_note=_plate_note(known),
        footer="Made by thnerf fit. Everything on this page is measured on this subject's footage; the page shows a person, share it only with consent.")
    with atomic_path(subject.path / "report.html") as temporary:
        temporary.write_text(text)
    return subject.path / "report.html"


def _stored(subject: Subject) -> dict[str, np.ndarray]:
    """What fit noted by frame and lag (fit_curves.npz); {} for subjects from before that file existed."""
    path = subject.path / "fit_curves.npz"
    if not path.exists():
        return {}
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def _mouth(points: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lip opening over the interocular distance, and mouth width over its median; (T,) each, NaN where no face."""
    face = ibug68(points)
    width = np.linalg.norm(face[:, 48] - face[:, 54], axis=-1) / interocular(points)
    opening = np.where(valid, mouth_opening(points), np.nan)
    return opening, np.where(valid, width / (np.median(width[valid]) if valid.any() else 1), np.nan)


def count_blinks(opening: np.ndarray) -> int:
    """How often the lid opening (T,) falls below 55 % of its median."""
    closed = opening < 0.55 * np.median(opening)
    return int((closed[1:] & ~closed[:-1]).sum())


def _liveliest(opening: np.ndarray, valid: np.ndarray, starts: Sequence[int], length: int) -> tuple[int, int]:
    """The frame range of at most `length` in one clip with the most mouth motion and a face."""
    motion = np.concatenate([[0], np.cumsum(np.abs(np.diff(np.nan_to_num(opening), prepend=0)) * valid)])
    best = (-1.0, 0, 0)
    for a, b in zip(starts, [*starts[1:], len(valid)]):
        span = min(length, b - a)
        gain = motion[a + span : b + 1] - motion[a : b + 1 - span]
        at = a + int(gain.argmax())
        best = max(best, (float(gain.max()), at, at + span))
    return best[1], best[2]


def _worst(error: np.ndarray, valid: np.ndarray, apart: int) -> list[int]:
    """Frames of the largest error (T,), at least `apart` frames from each other, worst first."""
    chosen: list[int] = []
    for frame in np.argsort(np.where(valid, -error, np.inf), kind="stable"):
        if valid[frame] and all(abs(frame - c) >= apart for c in chosen):
            chosen.append(int(frame))
        if len(chosen) == WORST:
            break
    return chosen


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Half-open ranges in which (T,) bool is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _pass(subject: Subject, points: np.ndarray, valid: np.ndarray, wanted: set[int]) -> tuple[dict[int, np.ndarray], np.ndarray, np.ndarray]:
    """The wanted frames of video.mp4, and brightness (0–255) and sharpness over its median of the face, (T,) each, NaN without a face.

    Of long clips every few frames are measured, MEASURED in all, and the ones between are interpolated.
    """
    pictures, measured = {}, {}
    step = max(1, len(valid) // MEASURED)
    sampled = [i for i in range(len(valid)) if valid[i] and i % step == 0]
    for index, frame in picked_frames(subject.video_path, wanted.union(sampled)):
        if index in wanted:
            pictures[index] = frame
        if valid[index]:
            measured[index] = sharpness_of(frame, points[index])
    if not measured:
        return pictures, np.full(len(valid), np.nan), np.full(len(valid), np.nan)
    at, values = np.array(list(measured)), np.array(list(measured.values()))
    light, sharp = (np.where(valid, np.interp(np.arange(len(valid)), at, column), np.nan) for column in values.T)
    return pictures, light, sharp / np.nanmedian(sharp)


def _mattes(subject: Subject, wanted: Sequence[int], frames: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """The wanted mattes, and where (H,W) bool the background was ever seen."""
    from recon.matte import PLATE_FRAMES, seen_background

    picks = range(0, frames, max(1, frames // PLATE_FRAMES))
    mattes = dict(picked_frames(subject.matte_path, {*wanted, *picks}, grey=True))
    return {i: mattes[i] for i in wanted}, seen_background(np.stack([mattes[i] for i in picks]))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _image(picture: np.ndarray, caption: str) -> str:
    """A figure of (H,W,3) uint8 as JPEG."""
    import cv2

    coded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 84])[1]
    return f'<figure><img alt="" src="{_data("image/jpeg", coded.tobytes())}"><figcaption>{escape(caption)}</figcaption></figure>'


def _loop(subject: Subject, pictures: dict[int, np.ndarray], loop: tuple[int, int], points: np.ndarray) -> str:
    """The looping overlay, landmarks beside mesh, with its sound, as a data URL."""
    track, sound = subject.track, None
    if subject.has_audio:
        samples = _read_wav(subject.audio_path)
        sound = (samples[0][round(loop[0] / track.fps * samples[1]) : round(loop[1] / track.fps * samples[1])], samples[1])
    width, height = track.camera.width, track.camera.height
    with tempfile.TemporaryDirectory() as folder:
        with VideoWriter(Path(folder) / "loop.mp4", 2 * width, height, track.fps, audio=sound, crf=25) as writer:
            for index in range(*loop):
                writer.write(np.hstack([draw_points(pictures[index].copy(), points[index]), _meshed(subject, pictures[index], index)]))
        return _data("video/mp4", (Path(folder) / "loop.mp4").read_bytes())


def _meshed(subject: Subject, frame: np.ndarray, index: int) -> np.ndarray:
    """The frame with the fitted mesh; darkened where there was no face."""
    if not subject.track.valid[index]:
        return frame // 3
    return draw_mesh(frame, posed_vertices(subject.model, subject.track, index), subject.model, subject.track, index)


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    return soundfile.read(path, dtype="float32")


def _worst_strip(subject: Subject, pictures: dict[int, np.ndarray], points: np.ndarray, worst: Sequence[int], error: np.ndarray | None) -> str:
    """Face crops of the worst frames, mesh and landmarks together."""
    import cv2

    if error is None:
        return '<p class="soft">This fit is from before errors were kept by frame; fit again to see them.</p>'
    out = []
    for rank, index in enumerate(worst):
        low, high = points[index].min(0), points[index].max(0)
        side = int(1.25 * (high - low).max())
        x, y = np.clip(((low + high) / 2 - side / 2).astype(int), 0, None)
        scale = 360 / side
        mesh = cv2.resize(_meshed(subject, pictures[index], index)[y : y + side, x : x + side], None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        for px, py in (points[index] - [x, y]) * scale:
            cv2.circle(mesh, (int(px), int(py)), 1, (255, 230, 60), -1, cv2.LINE_AA)
        relative = error[index] / interocular(points[index])
        out.append(_image(mesh, f"{rank + 1}: {index / subject.track.fps:.2f} s, {error[index]:.2f} px, {100 * relative:.1f} % of the eyes' distance"))
    return "".join(out)


def _matte_strip(subject: Subject, pictures: dict[int, np.ndarray], mattes: dict[int, np.ndarray], known: np.ndarray) -> str:
    """The person over strong colours, and the plate with its guessed part hatched."""
    out = []
    for turn, index in enumerate(sorted(mattes)):
        alpha = mattes[index][..., None] / 255
        colour = np.array([(0, 177, 64), (255, 255, 255)][turn % 2])
        out.append(_image(np.round(alpha * pictures[index] + (1 - alpha) * colour).astype(np.uint8), f"{index / subject.track.fps:.2f} s over {('green', 'white')[turn % 2]}"))
    from PIL import Image

    plate = np.array(Image.open(subject.background_path).convert("RGB"))
    hatched = plate.copy()
    v, u = np.mgrid[: plate.shape[0], : plate.shape[1]]
    hatched[~known & ((u + v) % 10 < 2)] = (255, 120, 60)
    return "".join(out) + _image(hatched, "background plate; hatched: never seen")


def _plate_note(known: np.ndarray) -> str:
    hidden = 100 * (1 - known.mean())
    return (f"{hidden:.0f} % of the picture was always hidden behind the speaker. There the plate is a smooth guess from its surroundings; it shows only where a rendered "
            "speaker leaves the space the real one filled.") if hidden >= 1 else "The whole background was seen."


def _facts(fit: dict[str, Any], track: Any, angles: np.ndarray, sync: Sync) -> str:
    """Headline numbers."""
    spread = np.quantile(angles, [0.02, 0.98], axis=0)
    offset = "not measured" if sync.offset is None else f"{sync.offset:+.1f} frames"
    facts = {"landmark error, of the eyes' distance": f"{100 * fit['landmark_error_iod']:.2f} %", "frames with a face": f"{100 * fit['valid_fraction']:.0f} %",
             "yaw": f"{spread[0, 0]:.0f}° … {spread[1, 0]:.0f}°", "pitch": f"{spread[0, 1]:.0f}° … {spread[1, 1]:.0f}°", "A/V offset": offset, "fit": f"{fit['fit_fps']:.0f} frames/s"}
    if fit.get("av_shift_frames"):
        facts["sound moved by"] = f"{-fit['av_shift_frames']:+d} frames"
    if fit.get("photometric"):
        before, after = fit["photometric"]
        facts["pixels against shared textures, before and after refinement"] = f"{before:.3f} → {after:.3f}"
    return "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())


def _clips(info: dict[str, Any], frames: int, fps: float) -> str:
    names = [Path(c["source"]).name for c in info.get("clips", [])]
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}, {frames / fps:.1f} s at {fps:g} fps"


def _advice(findings: Sequence[Finding]) -> str:
    poor = sorted((f for f in findings if f.severity != "ok"), key=lambda f: f.severity)
    return "<ul>" + "".join(f'<li><b class="{f.severity}">{escape(f.name)}</b> ({escape(f.value)}): {escape(f.advice)}</li>' for f in poor) + "</ul>" if poor else ""


def _table(findings: Sequence[Finding]) -> str:
    mark = {"ok": "✓", "warn": "!", "fail": "✗"}
    return "".join(f'<tr><td class="s {f.severity}">{mark[f.severity]}</td><td class="n">{escape(f.name)}</td><td>{escape(f.value)}</td></tr>' for f in findings)


def _timelines(track: Any, points: np.ndarray, valid: np.ndarray, error: np.ndarray | None, angles: np.ndarray, light: np.ndarray, sharp: np.ndarray,
               shades: Sequence[tuple[int, int, str]], worst: Sequence[int]) -> str:
    """Error, coefficients, pose, exposure and blur, one under the other on one time axis."""
    out = []

    def add(title: str, curves: dict[str, np.ndarray], **options: Any) -> None:
        out.append(f"<h3 class=soft>{escape(title)}</h3>{charts.legend(list(curves))}{charts.timeline(curves, track.fps, shades=shades, **options)}")

    if error is not None:
        relative = np.where(valid, 100 * error / interocular(points), np.nan)
        add("Landmark error, % of the distance of the outer eye corners", {"mean over the landmarks": relative}, low=0.0, high=1.15 * float(np.nanmax(relative, initial=0.1)), marks={f: str(i + 1) for i, f in enumerate(worst)})
    rest = [n for n in np.array(track.expression_names)[np.argsort(-track.expression.std(0))][:4]] if track.expression.size else []
    groups = [[n for n in names if n in track.expression_names] for names in _CURVES]
    for title, names in zip(("Mouth coefficients", "Eyes and brows"), groups if any(groups) else [rest]):
        if names:
            add(title if any(groups) else "The liveliest coefficients", {n: track.column(n) for n in names}, **({"low": 0.0, "high": 1.0} if any(groups) else {}))
    add("Head, degrees", {n: v for n, v in zip(("yaw", "pitch", "roll"), angles.T)})
    speed = np.linalg.norm(np.diff(np.nanmean(points, 1), axis=0, prepend=np.nan), axis=-1)
    speed[list(track.clip_starts)] = np.nan
    add("Exposure: mean brightness of the face, 0 to 255", {"brightness": light}, low=0.0, high=255.0, height=110)
    add("Motion blur: sharpness of the face over its median, and speed of the face in px a frame", {"sharpness": sharp, "speed / 4": speed / 4}, low=0.0, high=1.6, height=120)
    return "".join(out)


def _pose(angles: np.ndarray, valid: np.ndarray, split: dict[str, Any]) -> str:
    """Yaw against pitch, training and held-out frames."""
    held = np.zeros(len(angles), bool)
    for a, b in split.get("test", []):
        held[a:b] = True
    clouds = {"training": angles[valid & ~held, :2], "held out": angles[valid & held, :2]}
    reach = np.abs(angles[valid, :2]).max() if valid.any() else 10
    span = float(next((s for s in (10, 20, 30, 45, 60) if reach <= s), 90))
    return charts.plane(clouds, ("yaw, degrees", "pitch, degrees"), (-span, span, -span, span)) + charts.legend(list(clouds))


def _pose_note(angles: np.ndarray) -> str:
    """Where rendered heads will hold up."""
    if not len(angles):
        return "No frame shows a face."
    low, high = np.quantile(angles[:, :2], [0.01, 0.99], axis=0)
    return f"Expect sharp renders for yaw {low[0]:.0f}° to {high[0]:.0f}° and pitch {low[1]:.0f}° to {high[1]:.0f}°; poses outside were never seen."


def _mouth_plane(opening: np.ndarray, width: np.ndarray) -> str:
    top = max(0.2, float(np.ceil(20 * np.quantile(opening, 0.999)) / 20)) if len(opening) else 0.2
    dots = np.stack([width, opening], 1)
    return charts.plane({"frames": dots}, ("mouth width over its median", "lip opening over the eyes' distance"), (0.6, 1.3, 0.0, top),
                        [("y", 0.03), ("y", 0.06), ("y", 0.13), ("x", 0.93), ("x", 1.05)])


def sound_classes(samples: np.ndarray, frames: int, fps: float) -> np.ndarray:
    """Class of every frame's sound (samples (S,) at RATE): 0 silence, 1 hiss (most energy above 3 kHz), 2 other sound (mostly voiced)."""
    length = int(RATE / fps)
    need = round(frames / fps * RATE) + length
    block = np.lib.stride_tricks.sliding_window_view(np.pad(samples[:need], (0, max(0, need - len(samples)))), length)[np.round(np.arange(frames) / fps * RATE).astype(int)]
    power = np.abs(np.fft.rfft(block * np.hanning(length), axis=1)) ** 2
    frequency = np.fft.rfftfreq(length, 1 / RATE)
    total = power.sum(1)
    level = 10 * np.log10(total + 1e-12)
    hiss = power[:, frequency > 3000].sum(1) > 0.5 * total
    return np.where(level < np.quantile(level, 0.9) - 25, 0, np.where(hiss, 1, 2))


def _sound(subject: Subject, sync: Sync, fit: dict[str, Any], opening: np.ndarray, valid: np.ndarray) -> dict[str, str]:
    """Lag curve, classes of sound and what the mouth does in each."""
    if not subject.has_audio:
        return {"sync": "", "sync_note": "The footage has no sound.", "sound_bars": "", "sound_note": ""}
    if len(sync.lags):
        chart = charts.curve(sync.lags.astype(float), sync.score, "frames by which the sound is taken to be late", sync.offset)
    else:
        chart = ""
    verdict = "The offset cannot be told from this footage." if sync.offset is None else f"Offset {sync.offset:+.2f} frames, within about one frame; confidence {sync.confidence:.2f}."
    samples, rate = _read_wav(subject.audio_path)
    kind = sound_classes(resample_audio(samples, rate, RATE), len(valid), subject.track.fps)
    names = ("silence", "hiss (s, f, sh)", "other, mostly voiced")
    shares = {n: float((kind == i).mean()) for i, n in enumerate(names)}
    means = [f"{np.nanmean(opening[(kind == i) & valid]):.3f} in {n.split(' (')[0].split(',')[0]}" for i, n in enumerate(names) if ((kind == i) & valid).any()]
    return {"sync": chart, "sync_note": f"How well the sound predicts the mouth at each lag. {verdict}", "sound_bars": charts.bars(shares),
            "sound_note": f"Mean lip opening: {', '.join(means)}. Told apart by loudness and by energy above 3 kHz; no phonemes are recognised."}
