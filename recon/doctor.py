"""Will this clip work? Looks at a sample of its frames and its sound, and says what to change and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import numpy as np

from recon.landmarks import MediaPipeDetector, ibug68, interocular, outer_eye_corners, reduced
from recon.sync import RATE as SYNC_RATE
from recon.sync import Sync, measure_sync
from render.files import InputError
from render.video import VideoInfo, probe, read_audio_track, read_frames, timestamps

SAMPLES = 120  # frames looked at
LARGEST = 800  # px, longer side of a frame that is kept
SYNC_FRAMES, SYNC_FPS = 400, 25.0  # of the clip's beginning, looked at one by one for the A/V offset
BLURRED = 0.6  # of the clip's usual sharpness
_WORDS = {"closed": "words with m, b and p, and pauses with closed lips", "open": "words with e and i (bed, sit)", "wide open": "words with a long a (father, far)",
          "rounded": "words with oo and w (food, we)", "spread": "words with ee (see), and a smile"}
_ORDER = {"ok": 0, "warn": 1, "fail": 2}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. severity: 'ok', 'warn' (works, but worse) or 'fail' (cannot work)."""

    name: str
    severity: str
    value: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings of a clip; the verdict is the worst of them."""

    clip: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """'ok', 'warn' or 'fail'."""
        return max((f.severity for f in self.findings), key=_ORDER.__getitem__, default="ok")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"clip": self.clip, "verdict": self.verdict, "findings": [asdict(f) for f in self.findings]}

    def text(self) -> str:
        """A table for people."""
        mark = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
        width = max(len(f.name) for f in self.findings)
        lines = [f"{mark[f.severity]}  {f.name:<{width}}  {f.value}" + (f"\n      {'':<{width}}  {f.advice}" if f.advice else "") for f in self.findings]
        verdict = {"ok": "This clip will work.", "warn": "This clip works; the warnings say what would make it better.",
                   "fail": "This clip cannot work as it is."}[self.verdict]
        return "\n".join([*lines, verdict])


def judge(name: str, value: float, text: str, warn: float, fail: float, advice: str) -> Finding:
    """A Finding from a number that should be large: below `warn` it warns, below `fail` it fails."""
    severity = "fail" if value < fail else "warn" if value < warn else "ok"
    return Finding(name, severity, text, advice if severity != "ok" else "")


class Sample:
    """What the checks need of a clip's frames, gathered while they pass by on their way to something else."""

    def __init__(self, step: int) -> None:
        """step: every how many frames one is kept, its longer side reduced to LARGEST px."""
        self.step, self.index = max(1, step), 0
        self.pictures: dict[int, np.ndarray] = {}
        self.scale = 1.0
        self.changes: list[float] = []
        self._borders: list[np.ndarray] = []
        self._previous: np.ndarray | None = None

    def watch(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same frames (H,W,3) uint8, noted on the way."""
        for frame in frames:
            grey = _thumbnail(frame)
            if self._previous is not None:
                self.changes.append(float(np.abs(grey - self._previous).mean()))
            self._previous = grey
            if self.index % self.step == 0:
                self.pictures[self.index] = reduced(frame, LARGEST)
                self.scale = self.pictures[self.index].shape[1] / frame.shape[1]
                self._borders.append(np.concatenate([grey[:, :6].ravel(), grey[:, -6:].ravel()]))
            self.index += 1
            yield frame

    def findings(self, clip: str | Path, info: VideoInfo, faces: dict[int, np.ndarray]) -> list[Finding]:
        """All checks of a clip; info: with the duration that was decoded; faces (F,478|68,2) px of the kept frames, by index."""
        largest = {i: max(f, key=lambda p: np.ptp(p[:, 1])) for i, f in faces.items() if len(f)}
        pixels = [_face_pixels(self.pictures[i], p * self.scale) for i, p in largest.items()]
        return [*_container(info), _steady_rate(timestamps(clip)), *_face(info, list(faces.values())), *_picture(pixels, self._borders, self.changes),
                *_sound(clip, info)]


def diagnose(clip: str | Path) -> Report:
    """Look at container, picture, face and sound of a clip. Raises InputError when it is no readable video."""
    clip = Path(clip)
    info = probe(clip)
    sample, detector = Sample(round(info.duration * info.fps / SAMPLES)), MediaPipeDetector()
    faces = {i: detector.candidates(frame) for i, frame in enumerate(sample.watch(read_frames(clip))) if i % sample.step == 0}
    if not faces:
        raise InputError(f"{clip} has no frames that can be decoded; export it again as H.264 mp4")
    times = timestamps(clip)
    seconds = (float(times[min(sample.index, len(times)) - 1]) if len(times) else (sample.index - 1) / info.fps) + 1 / info.fps
    findings = [*sample.findings(clip, replace(info, duration=seconds), faces), *cut_short(info, seconds)]
    sound = read_audio_track(clip, SYNC_RATE, SYNC_FRAMES / SYNC_FPS) if info.has_audio else None
    if sound is not None and np.abs(sound).max() > 1e-4 and any(len(f) for f in faces.values()):
        found = detector.detect(islice(read_frames(clip, SYNC_FPS), SYNC_FRAMES))
        findings += sync_finding(measure_sync(found.points, found.valid, sound, SYNC_FPS, [(0, len(found.valid))]), len(found.valid) / SYNC_FPS)
    return Report(str(clip), findings)


def cut_short(info: VideoInfo, seconds: float) -> list[Finding]:
    """A complaint where a file declares more than the `seconds` of it that could be decoded: half a download still says how long the whole was."""
    if info.duration - seconds <= max(0.5, 0.01 * info.duration):
        return []
    return [Finding("whole file", "warn", f"only {seconds:.1f} of {info.duration:.1f} s could be decoded", "copy the file again: the rest of it is missing or damaged")]


def sync_finding(sync: Sync, seconds: float, moved: int = 0) -> list[Finding]:
    """The verdict on an A/V offset measured on so many seconds, of which fit corrected `moved` frames; nothing where a clip is too short to tell."""
    if sync.offset is None:
        return [] if seconds < 10 else [Finding("sound in time with the lips", "warn", "they agree at no shift within 1 s",
                                               "check that the sound is this speaker's own, clear and from this take; music and noise hide speech")]
    text = f"sound {sync.offset:+.1f} frames" + (f", corrected by {-moved:+d}" if moved else " against the picture")
    left = sync.shift - moved
    return [Finding("sound in time with the lips", "warn" if left else "ok", text,
                    f"the sound is {'late' if left > 0 else 'early'}: let fit move it with --fix-sync, or export the clip again" if left else "")]


def merged(parts: Sequence[Sequence[Finding]], seconds: float) -> list[Finding]:
    """Findings of several clips, `seconds` long in all, as one list: of every check the worst, with how many clips share its complaint."""
    names = dict.fromkeys(f.name for part in parts for f in part)
    out = [_length(seconds)]
    for name in (n for n in names if n != out[0].name):
        same = [f for part in parts for f in part if f.name == name]
        worst = max(same, key=lambda f: _ORDER[f.severity])
        poor = sum(f.severity != "ok" for f in same)
        out.append(replace(worst, value=f"{worst.value} (the worst of {poor} of {len(same)} clips)") if poor and len(same) > 1 else worst)
    return out


def coverage(openings: np.ndarray, widths: np.ndarray, blinks: int, pitch: np.ndarray, fps: float) -> list[Finding]:
    """What a fit knows about the variety of the footage: mouth shapes (`mouth_classes`), blinks and nodding (pitch (T,) rad)."""
    shares = {name: float(mask.mean()) for name, mask in mouth_classes(openings, widths).items()}
    rare = [name for name, share in shares.items() if share * len(openings) < 0.5 * fps]
    spread = float(np.degrees(np.diff(np.quantile(pitch, [0.05, 0.95])))[0])
    return [
        Finding("mouth shapes", "warn" if rare else "ok", f"hardly any {', '.join(rare)}" if rare else "closed, open, wide open, rounded and spread are all there",
                "say more: " + "; ".join(_WORDS[name] for name in rare) if rare else ""),
        judge("blinks", blinks, f"{blinks}", 3, 0, "blink as usual: too few are seen to learn from"),
        judge("nodding", spread, f"pitch varies by {spread:.0f} degrees", 3, 0, "nod and look up and down a little"),
    ]


def mouth_classes(openings: np.ndarray, widths: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (T,) bool from the lip opening over the interocular distance and the mouth's width over its median. Shapes, not phonemes."""
    return {"closed": openings < 0.03, "open": (openings >= 0.06) & (openings < 0.13), "wide open": openings >= 0.13, "rounded": widths < 0.93, "spread": widths > 1.05}


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    """(64,64) float32 grey."""
    import cv2

    return cv2.cvtColor(cv2.resize(frame, (64, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)


def _face_pixels(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Grey values (128,128) float32 of the face box, at one common scale."""
    import cv2

    height, width = frame.shape[:2]
    x0, y0 = np.maximum(points.min(0), 0).astype(int)
    x1, y1 = np.minimum(points.max(0) + 1, [width, height]).astype(int)
    box = frame[y0 : max(y1, y0 + 2), x0 : max(x1, x0 + 2)]
    return cv2.cvtColor(cv2.resize(box, (128, 128), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)


def sharpness_of(frame: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Mean brightness (0–255) and sharpness (deviation of the Laplacian) of the face with landmarks (N,2) px in a frame (H,W,3) uint8."""
    import cv2

    pixels = _face_pixels(frame, points)
    return float(pixels.mean()), float(cv2.Laplacian(pixels, cv2.CV_32F).std())


def _container(info: VideoInfo) -> list[Finding]:
    """Length, frame rate and size."""
    return [
        _length(info.duration),
        judge("frame rate", info.fps, f"{info.fps:.2f} fps", 23.5, 10, "record at 25 fps or more: lips move faster than this rate shows"),
        judge("picture", min(info.width, info.height), f"{info.width} x {info.height} px", 240, 64, "record at 480 px or more"),
    ]


def _length(seconds: float) -> Finding:
    return judge("length", seconds, f"{seconds:.1f} s", 20, 1.0, "record 20 s to 5 min of speech: too few mouth shapes are seen otherwise")


def _steady_rate(times: np.ndarray) -> Finding:
    """Whether the frames come evenly; phones drop to fewer in the dark, and screen recorders repeat none. times: (N,) s."""
    gaps = np.diff(times)
    uneven = float((np.abs(gaps - np.median(gaps)) > 0.25 * np.median(gaps) + 0.001).mean()) if len(gaps) else 0.0
    longest = f", longest gap {1000 * gaps.max():.0f} ms" if len(gaps) else ""
    return judge("steady frame rate", 1 - uneven, f"{uneven:.0%} of the frames come early or late{longest}", 0.98, 0,
                 "record at a constant frame rate: frames are repeated or left out to even it, which looks like a stumble")


def _face(info: VideoInfo, faces: list[np.ndarray]) -> list[Finding]:
    """How often, how large, how many, and whether it leaves the frame."""
    seen = np.mean([len(f) > 0 for f in faces])
    out = [judge("face visible", float(seen), f"{seen:.0%} of the frames", 0.97, 0.3, "keep the whole face in view; frames without one are left out")]
    if not seen:
        return out
    largest = [max(f, key=lambda p: np.ptp(p[:, 1])) for f in faces if len(f)]
    height = float(np.median([np.ptp(p[:, 1]) for p in largest]))
    size = np.array([info.width, info.height])
    cut = float(np.mean([(p.min(0) < 0).any() or (p.max(0) > size).any() for p in largest]))
    several = float(np.mean([len(f) > 1 for f in faces]))
    yaw = np.array([_yaw_proxy(p) for p in largest])
    # The nose tip stands out by about half the distance of the outer eye corners.
    spread = float(np.degrees(np.diff(np.arcsin(np.clip(np.quantile(yaw, [0.05, 0.95]) / 0.5, -1, 1)))[0]))
    out += [
        judge("face size", height, f"{height:.0f} px high", 150, 40, "come closer or record at a higher resolution: teeth and lids need 150 px or more"),
        judge("face inside the frame", 1 - cut, f"cut off in {cut:.0%} of the frames", 0.97, 0.3, "leave room around the head"),
        Finding("one person", "warn" if several > 0.02 else "ok", f"several faces in {several:.0%} of the frames",
                "only the largest face is tracked; keep others out of the picture" if several > 0.02 else ""),
        judge("head movement", spread, f"turns by about {spread:.0f} degrees", 4, 0, "turn and nod a little while speaking: depth cannot be seen in a still head"),
    ]
    return out


def _yaw_proxy(points: np.ndarray) -> float:
    """Sideways offset of the nose tip from the middle of the outer eye corners, over their distance (about sin yaw)."""
    middle = outer_eye_corners(points).mean(0)
    return float((ibug68(points)[30] - middle)[0] / max(interocular(points[None])[0], 1e-6))


def _picture(face: list[np.ndarray], borders: list[np.ndarray], changes: list[float]) -> list[Finding]:
    """Exposure, sharpness, cuts and camera motion."""
    out = []
    if face:
        import cv2

        pixels = np.stack(face)
        dark, bright = float((pixels < 16).mean()), float((pixels > 250).mean())
        light = np.array([p.mean() for p in face])
        sharpness = np.array([cv2.Laplacian(p, cv2.CV_32F).std() for p in face])
        sharp = float(np.median(sharpness))
        blurred = float((sharpness < BLURRED * sharp).mean())
        out += [
            judge("exposure of the face", 1 - bright - dark, f"mean {light.mean():.0f} of 255, {bright:.1%} burnt out, {dark:.1%} black", 0.9, 0.3,
                  "light the face evenly from the front and avoid clipping"),
            judge("steady light", 1 - float(light.std() / max(light.mean(), 1)), f"varies by {light.std() / max(light.mean(), 1):.1%}", 0.88, 0.0,
                  "fix the exposure and white balance of the camera"),
            judge("sharpness of the face", sharp, f"{sharp:.1f}", 4.0, 0.0, "focus on the eyes, use more light or a faster shutter, and less compression"),
            judge("motion blur", 1 - blurred, f"{blurred:.0%} of the frames are much softer than usual", 0.95, 0.0,
                  "use a faster shutter (1/100 s or less) and more light, or move less quickly"),
        ]
    change = np.array(changes) if changes else np.zeros(1)
    cuts = int((change > max(25.0, 12 * float(np.median(change)))).sum())
    drift = float(np.median(np.abs(np.stack(borders) - np.median(borders, axis=0))))
    out += [
        Finding("no cuts", "warn" if cuts else "ok", f"{cuts} found", "split the clip at its cuts and give the parts to thnerf fit together" if cuts else ""),
        Finding("static camera", "warn" if drift > 6 else "ok", f"border changes by {drift:.1f} of 255",
                "put the camera on a tripod: the background is taken as one still picture" if drift > 6 else ""),
    ]
    return out


def _sound(clip: Path, info: VideoInfo) -> list[Finding]:
    """Presence, level, clipping, pauses and length of the sound."""
    samples = read_audio_track(clip, 16000) if info.has_audio else None
    if samples is None or not len(samples):
        return [Finding("sound", "warn", "none", "without sound the head can be tracked and rendered, but not taught to speak from audio")]
    peak = float(np.abs(samples).max())
    if peak < 1e-4:
        return [Finding("sound", "warn", "silent", "the sound track is silent; check the microphone")]
    blocks = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    level = 20 * np.log10(np.sqrt((blocks**2).mean(1)) + 1e-9)
    loud = float(np.quantile(level, 0.9))
    snr = loud - float(np.quantile(level, 0.05))
    clipped = float((np.abs(samples) > 0.995).mean())
    pause = float((level < loud - 25).mean())
    mismatch = abs(len(samples) / 16000 - info.duration)
    return [
        judge("sound bandwidth", info.sample_rate, f"{info.audio_codec}, {info.sample_rate} Hz, {info.channels} channel(s)", 16000, 0,
              "record at 16 kHz or more: s, f and t are told apart by high frequencies"),
        judge("sound as long as the picture", 0.5 - mismatch, f"differs by {mismatch:.2f} s", 0, -np.inf,
              "check that sound and lips are in sync at the end; cut or export the clip again"),
        judge("sound level", loud, f"{loud:.0f} dBFS in speech", -35, -60, "speak closer to the microphone or raise its level"),
        judge("noise", snr, f"speech {snr:.0f} dB above the quietest parts", 15, 0, "record in a quieter room"),
        judge("no clipping", 1 - clipped, f"{clipped:.2%} of the samples", 0.999, 0, "lower the level of the microphone"),
        judge("speech", 1 - pause, f"{pause:.0%} pauses", 0.4, 0.02, "speak through most of the clip"),
    ]
