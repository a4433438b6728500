"""Will this clip work? Looks at a sample of its frames and its sound, and says what to change and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recon.landmarks import MediaPipeDetector, interocular
from render.files import InputError
from render.video import VideoInfo, probe, read_audio_track, read_frames, timestamps

SAMPLES = 120  # frames looked at
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


def diagnose(clip: str | Path) -> Report:
    """Look at container, picture, face and sound of a clip. Raises InputError when it is no readable video."""
    clip = Path(clip)
    info = probe(clip)
    step = max(1, round(info.duration * info.fps / SAMPLES)) if info.duration else 1
    detector = MediaPipeDetector()
    faces, brightness, borders, previous, changes, small_face = [], [], [], None, [], []
    for index, frame in enumerate(read_frames(clip)):
        grey = _thumbnail(frame)
        if previous is not None:
            changes.append(np.abs(grey - previous).mean())
        previous = grey
        if index % step:
            continue
        found = detector.candidates(frame)
        faces.append(found)
        borders.append(np.concatenate([grey[:, :6].ravel(), grey[:, -6:].ravel()]))
        if len(found):
            largest = max(found, key=lambda p: np.ptp(p[:, 1]))
            small_face.append(_face_pixels(frame, largest))
            brightness.append(small_face[-1].mean())
    if not faces:
        raise InputError(f"{clip} has no frames that can be decoded; export it again as H.264 mp4")
    return Report(str(clip), [*_container(info), _steady_rate(timestamps(clip)), *_face(info, faces), *_picture(small_face, borders, changes), *_sound(clip, info)])


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


def _container(info: VideoInfo) -> list[Finding]:
    """Length, frame rate and size."""
    return [
        judge("length", info.duration, f"{info.duration:.1f} s", 20, 1.0, "record 20 s to 5 min of speech: too few mouth shapes are seen otherwise"),
        judge("frame rate", info.fps, f"{info.fps:.2f} fps", 23.5, 10, "record at 25 fps or more: lips move faster than this rate shows"),
        judge("picture", min(info.width, info.height), f"{info.width} x {info.height} px", 240, 64, "record at 480 px or more"),
    ]


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
    middle = (points[33] + points[263]) / 2
    return float((points[1] - middle)[0] / max(interocular(points[None])[0], 1e-6))


def _picture(face: list[np.ndarray], borders: list[np.ndarray], changes: list[float]) -> list[Finding]:
    """Exposure, sharpness, cuts and camera motion."""
    out = []
    if face:
        import cv2

        pixels = np.stack(face)
        dark, bright = float((pixels < 16).mean()), float((pixels > 250).mean())
        light = np.array([p.mean() for p in face])
        sharp = float(np.median([cv2.Laplacian(p, cv2.CV_32F).std() for p in face]))
        out += [
            judge("exposure of the face", 1 - bright - dark, f"mean {light.mean():.0f} of 255, {bright:.1%} burnt out, {dark:.1%} black", 0.9, 0.3,
                  "light the face evenly from the front and avoid clipping"),
            judge("steady light", 1 - float(light.std() / max(light.mean(), 1)), f"varies by {light.std() / max(light.mean(), 1):.1%}", 0.88, 0.0,
                  "fix the exposure and white balance of the camera"),
            judge("sharpness of the face", sharp, f"{sharp:.1f}", 4.0, 0.0, "focus on the eyes, use more light or a faster shutter, and less compression"),
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
    mismatch = abs(info.audio_duration - info.duration) if info.audio_duration else 0.0
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
