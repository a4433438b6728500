"""``thnerf fit``: footage in, a finished subject folder out.

Stages write into ``OUT/.fit`` and are noted in its record when they are whole; a later call with the same footage and
settings continues there. Only when everything is done do the files move into OUT, subject.json last, so an
earlier subject stays usable until then and a folder without subject.json was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import numpy as np

from recon import sync
from recon.assets import asset
from recon.config import FitConfig
from recon.doctor import SAMPLES, Sample, cut_short
from recon.doctor import merged as merge_findings
from recon.landmarks import load_detector
from recon.model import DEFAULT_MODEL, MorphableModel, load_model
from recon.subject import Subject, make_split, write_subject
from recon.track import Track
from render.files import InputError, atomic_path, check_place, read_json, write_json
from render.progress import progress, timed
from render.sound import resample_audio
from render.threads import prefetched
from render.video import VideoWriter, crop_square, probe, read_audio_track, read_frames

VERSION = 4  # raise when a change here or in the solver should make old subjects be fitted again
SHORTEST = 11  # frames; the split holds one of eleven out
RATE = 48000
OVERLAY_FRAMES = 750  # enough to judge a fit by
FACE_AT = 0.46  # height of the face's middle in the crop: room for the shoulders
FILES = ("video.mp4", "audio.wav", "matte.mp4", "background.png", "landmarks.npz", "overlay.mp4", "curves.png", "fit_curves.npz", "track.npz",
         "fit.json")


@dataclass(frozen=True)
class _Work:
    """One fit in progress: clips, staging folder, settings and what identifies them."""

    clips: tuple[Path, ...]
    out: Path
    config: FitConfig
    fingerprint: str

    @property
    def folder(self) -> Path:
        """Where unfinished files live."""
        return self.out / ".fit"

    @cached_property
    def model(self) -> MorphableModel:
        """The face model."""
        return load_model(self.config.model)

    def record(self) -> dict[str, Any]:
        """Notes of the stages that finished, {} when there are none or they belong to other footage or settings."""
        path = self.folder / "record.json"
        if not path.exists():
            return {}
        try:
            record = read_json(path)
        except InputError:  # cut off while writing on a file system without atomic renames: start again
            return {}
        return record if isinstance(record, dict) and record.get("fingerprint") == self.fingerprint else {}

    def note(self, stage: str, **values: Any) -> None:
        """Mark a stage as finished."""
        write_json(self.folder / "record.json", {"fingerprint": self.fingerprint, **self.record(), stage: values})


def fit_subject(clips: Sequence[Path], out: Path, config: FitConfig = FitConfig()) -> dict[str, Any]:
    """Fit one speaker's clips into the subject folder `out`; returns what fit.json holds.

    Resumes what an interrupted call left. Raises InputError for footage that cannot work, StageError when the disk is full.
    """
    clips, out = tuple(Path(c) for c in clips), Path(out)
    if config.model != DEFAULT_MODEL:  # subject.json is read from other folders later
        config = replace(config, model=str(Path(config.model).resolve()))
    if config.detector.startswith("face-alignment:"):
        config = replace(config, detector=f"face-alignment:{Path(config.detector.partition(':')[2]).resolve()}")
    if not clips:
        raise InputError("fit needs at least one clip")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder for the subject")
    check_place(out)
    for clip in clips:
        if not clip.is_file():
            raise InputError(f"{clip} does not exist or is no file; name a video")
    work = _Work(clips, out, config, _fingerprint(clips, config))
    if _finished(work):
        _say(f"{out} already holds this footage fitted with these settings; it is not fitted again")
        _consent(work)
        _pictures(work, out)
        return _reported(work)
    _check_model(work)
    if work.folder.exists() and not work.record():
        shutil.rmtree(work.folder)
    elif work.folder.exists():
        _say(f"continuing the interrupted fit in {out}: {', '.join(k for k in work.record() if k != 'fingerprint')} done earlier")
    if (out / "runs").exists():
        _say(f"{out / 'runs'} holds runs trained on an earlier fit; train them again")
    if "publish" not in work.record():
        _detect(work)
        _crop(work)
        _sync(work)
        _solve(work)
        _pictures(work, work.folder)
        work.note("publish")
    _publish(work)
    return _reported(work)


def _say(text: str) -> None:
    """A note for the user on stderr."""
    if os.environ.get("THNERF_QUIET") != "1":
        print(f"fit: {text}", file=sys.stderr, flush=True)


_ASIDE = ("consent", "overlay")  # settings that change nothing of what is fitted


def _fingerprint(clips: Iterable[Path], config: FitConfig, **aside: Any) -> str:
    """Identifies footage and settings; changes with content-relevant ones only. aside: values of _ASIDE other than their defaults."""
    model = asset("face_model.npz") if config.model == DEFAULT_MODEL else Path(config.model)
    plain = replace(config, **{n: getattr(FitConfig, n) for n in _ASIDE} | aside)
    settings = {k: v for k, v in plain.as_dict().items() if k != "fix_sync" or v}  # at its default it changes nothing: older fits stay valid
    files = [*clips, *(p for p in (model, Path(config.detector)) if p.is_file())]
    stats = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps([VERSION, stats, settings], sort_keys=True).encode()).hexdigest()[:16]


def _finished(work: _Work) -> bool:
    """Whether `out` is a whole subject of this very footage and settings."""
    try:
        info = Subject.open(work.out).info
    except InputError:
        return False
    earlier = {k: v for k, v in info.get("config", {}).items() if k in _ASIDE}  # older fits counted these in
    return info.get("fingerprint") in (work.fingerprint, _fingerprint(work.clips, work.config, **earlier)) and (work.out / "fit.json").exists()


def _consent(work: _Work) -> None:
    """Rewrite the note of a finished subject, where another one is given."""
    info = read_json(work.out / "subject.json")
    if work.config.consent and work.config.consent != info.get("consent"):
        write_json(work.out / "subject.json", {**info, "consent": work.config.consent})  # config stays: an older fit's fingerprint is made of it
        _say("noted the consent in subject.json")


def _check_model(work: _Work) -> None:
    """Raise InputError for a face model that cannot be read or has too few components, before the minutes that detection takes."""
    if "track" in work.record():
        return
    has, wanted = len(work.model.shape_basis), work.config.shape_components
    if wanted > max(has, FitConfig.shape_components):
        raise InputError(f"--shape-components must lie between 0 and {has}, which the face model has, not {wanted}")


def _detect(work: _Work) -> None:
    """Landmarks of every clip in source px → source_landmarks.npz."""
    if "landmarks" in work.record():
        return
    config, seconds = work.config, {}
    detector = load_detector(config.detector)
    found, info, notes, findings = [], [], [], []
    for index, clip in enumerate(work.clips):
        video = probe(clip)
        expected = max(1, round(video.duration * config.fps))
        label = "landmarks" if len(work.clips) == 1 else f"landmarks {index + 1}/{len(work.clips)}"
        sample = Sample(expected // SAMPLES)
        with timed(seconds, "detect"):
            landmarks = detector.detect(progress(prefetched(sample.watch(read_frames(clip, config.fps))), label, total=expected))
        frames = len(landmarks.valid)
        if frames < SHORTEST:
            raise InputError(f"{clip} has only {frames} frame{'s' if frames != 1 else ''} at {config.fps:g} fps; fit needs at least {SHORTEST}, and learns well from 20 s on")
        if not landmarks.valid.any():
            raise InputError(f"{clip} shows no face that the detector finds; use footage with one well-lit face, at least a tenth of the picture high")
        missing = cut_short(video, frames / config.fps)
        for note in [*landmarks.notes, *(f"{f.value}; {f.advice}" for f in missing)]:
            notes.append(f"{clip.name}: {note}")
            _say(notes[-1])
        faces = {i: np.repeat(landmarks.points[i : i + 1], landmarks.faces_seen[i] if landmarks.valid[i] else 0, axis=0) for i in sample.pictures}
        findings.append([*sample.findings(clip, replace(video, duration=frames / config.fps), faces), *missing])
        found.append(landmarks)
        info.append({"source": str(clip), "frames": frames, "width": video.width, "height": video.height})
    with atomic_path(work.folder / "source_landmarks.npz") as temporary:
        np.savez(temporary, points=np.concatenate([x.points for x in found]), valid=np.concatenate([x.valid for x in found]),
                 faces_seen=np.concatenate([x.faces_seen for x in found]))
    merged = findings[0] if len(findings) == 1 else merge_findings(findings, sum(c["frames"] for c in info) / config.fps)
    work.note("landmarks", clips=info, notes=notes, seconds=seconds["detect"], findings=[asdict(f) for f in merged])


def choose_crop(points: np.ndarray, valid: np.ndarray, width: int, height: int, heights: float) -> tuple[int, int, int]:
    """The fixed square (x, y, side) px for a speaker: points (T,N,2) of frames with `valid` in a width×height picture.

    Side is `heights` face heights or what the face's motion needs, at most the picture's shorter side; a picture
    that is nearly square and not much larger is kept whole. Inside the frame wherever that is possible.
    """
    low, high = points[valid].min(1), points[valid].max(1)
    face = float(np.median(high[:, 1] - low[:, 1]))
    reach_low, reach_high = np.percentile(low, 1, axis=0), np.percentile(high, 99, axis=0)
    side = max(heights * face, 1.25 * float((reach_high - reach_low).max()))
    shorter = min(width, height)
    if abs(width - height) <= 0.05 * shorter and shorter <= 1.5 * side:
        side = shorter
    side = int(round(min(side, shorter)))
    middle = (reach_low + reach_high) / 2
    x, y = middle[0] - side / 2, middle[1] - FACE_AT * side
    return int(round(np.clip(x, 0, width - side))), int(round(np.clip(y, 0, height - side))), side


def _crop(work: _Work) -> None:
    """video.mp4, matte.mp4, audio.wav and landmarks.npz in crop px."""
    if "video" in work.record():
        return
    from recon.matte import Matter

    config, clips = work.config, work.record()["landmarks"]["clips"]
    with np.load(work.folder / "source_landmarks.npz") as data:
        points, valid, faces_seen = data["points"], data["valid"], data["faces_seen"]
    bounds = np.cumsum([0] + [c["frames"] for c in clips])
    same = len({(c["width"], c["height"]) for c in clips}) == 1
    crops = []
    for index, clip in enumerate(clips):
        part = slice(None) if same else slice(bounds[index], bounds[index + 1])  # one camera setup: one crop
        crops.append(crops[0] if same and crops else choose_crop(points[part], valid[part], clip["width"], clip["height"], config.crop_heights))
    scaled = points.astype(np.float64)
    for index, (x, y, side) in enumerate(crops):
        scaled[bounds[index] : bounds[index + 1]] = (scaled[bounds[index] : bounds[index + 1]] - [x, y]) * config.size / side
    with atomic_path(work.folder / "landmarks.npz") as temporary:
        np.savez_compressed(temporary, points=scaled.astype(np.float32), valid=valid, faces_seen=faces_seen)

    def cropped() -> Iterator[np.ndarray]:
        for clip, (x, y, side) in zip(clips, crops):
            for frame in read_frames(clip["source"], config.fps):
                yield crop_square(frame, x, y, side, config.size)

    has_audio = _sound(work, clips)
    seconds: dict[str, float] = {}
    starts, frames = [int(b) for b in bounds[:-1]], int(bounds[-1])
    matter = Matter()
    with VideoWriter(work.folder / "video.mp4", config.size, config.size, config.fps, crf=config.crf) as video, \
            VideoWriter(work.folder / "matte.mp4", config.size, config.size, config.fps, crf=config.crf, grey=True) as mattes:

        def written() -> Iterator[np.ndarray]:
            for frame in cropped():
                video.write(frame)
                yield frame

        with closing(prefetched(written())) as source, closing(prefetched(matter.masks(source))) as masks, timed(seconds, "matte"):  # three stages side by side
            for matte in matter.refined(progress(masks, "video and matte", total=frames), starts):
                mattes.write(matte)
    work.note("video", crops=crops, starts=starts, frames=frames, has_audio=has_audio, seconds=seconds["matte"])


def _train_frames(starts: Sequence[int], frames: int, valid: np.ndarray) -> np.ndarray:
    """Sorted indices of the frames that statistics may use: training frames with a face, or all of them if none has one."""
    train = np.concatenate([np.arange(a, b) for a, b in make_split(tuple(starts), frames)["train"]])
    return train[valid[train]] if valid[train].any() else train


def _sound(work: _Work, clips: Sequence[dict[str, Any]], shift: int = 0) -> bool:
    """audio.wav, mono 16 bit, every clip exactly as long as its frames; False when no clip has sound.

    shift: frames by which the footage's sound is late; that much is taken out of each clip's start (or put in, when negative).
    """
    import soundfile

    late, fps = round(shift / work.config.fps * RATE), work.config.fps
    tracks = [read_audio_track(c["source"], RATE, c["frames"] / fps + max(0, late) / RATE) for c in clips]
    tracks = [None if t is None else t[late:] if late > 0 else np.pad(t, (-late, 0)) for t in tracks]
    if all(t is None for t in tracks):
        _say("the footage has no sound; the subject can be fitted and rendered, but not learn to speak")
        return False
    ends = np.round(np.cumsum([c["frames"] for c in clips]) * RATE / work.config.fps).astype(int)
    samples = np.zeros(ends[-1], np.float32)
    for track, start, end in zip(tracks, [0, *ends[:-1]], ends):
        if track is not None:
            piece = track[: end - start]
            samples[start : start + len(piece)] = piece
    with atomic_path(work.folder / "audio.wav") as temporary:
        soundfile.write(temporary, np.clip(samples, -1, 1), RATE, subtype="PCM_16")
    return True


def _sync(work: _Work) -> None:
    """The A/V offset of the training frames, and with fix_sync a shifted audio.wav."""
    record = work.record()
    if "sync" in record:
        return
    values: dict[str, Any] = {"av_offset_frames": None, "av_offset_confidence": 0.0, "av_shift_frames": 0}
    if record["video"]["has_audio"]:
        starts, frames = record["video"]["starts"], record["video"]["frames"]
        with np.load(work.folder / "landmarks.npz") as data:
            points, valid = data["points"], data["valid"]
        sound = resample_audio(read_sound(work.folder / "audio.wav"), RATE, sync.RATE)
        found = sync.measure_sync(points, valid, sound, work.config.fps, make_split(tuple(starts), frames)["train"])
        values = {"av_offset_frames": found.offset, "av_offset_confidence": found.confidence, "av_shift_frames": found.shift if work.config.fix_sync else 0,
                  "curve": [found.lags.tolist(), found.score.round(4).tolist()]}
        if work.config.fix_sync:
            _sound(work, record["landmarks"]["clips"], found.shift)  # from the footage again, so that a repetition shifts once
        _say(sync_note(found, work.config.fix_sync))
    work.note("sync", **values)


def sync_note(found: sync.Sync, fixed: bool) -> str:
    """One sentence on a measured A/V offset, with what to do about it."""
    if found.offset is None:
        return "the A/V offset cannot be measured: too little speech, or sound and lips do not belong together"
    if not found.shift:
        return f"sound and lips are in time (offset {found.offset:+.1f} frames)"
    where = f"the sound is {'late' if found.offset > 0 else 'early'} by {abs(found.offset):.1f} frames"
    return f"{where}; moved by {abs(found.shift)} frames" if fixed else f"{where}; correct it with --fix-sync"


def read_sound(path: Path) -> np.ndarray:
    """(S,) float32 samples of a mono wav that fit wrote."""
    import soundfile

    return soundfile.read(path, dtype="float32")[0]


def _solve(work: _Work) -> None:
    """track.npz and fit.json: head and torso."""
    if "track" in work.record():
        return
    from recon.landmarks import interocular
    from recon.lips import landmark_shift, lips_as_seen
    from recon.matte import background_plate
    from recon.solve import solve
    from recon.torso import track_torso

    config, record = work.config, work.record()
    starts, frames = record["video"]["starts"], record["video"]["frames"]
    with np.load(work.folder / "landmarks.npz") as data:
        points, valid = data["points"], data["valid"]
    model, report = work.model, {}
    _say(f"solving shape, camera, pose and expression of {frames} frames")
    track = solve(points, valid, starts, config.fps, config.size, config.size, model, config, report, pictures=lambda: read_frames(work.folder / "video.mp4"),
                  mattes=lambda: read_frames(work.folder / "matte.mp4", grey=True))
    solved, track = track, lips_as_seen(track, points, model)
    projected = report["projected"] + landmark_shift(solved, track, model, points.shape[1])
    error = np.linalg.norm(projected - points, axis=-1)[:, : 468 if points.shape[1] == 478 else None].mean(1)
    _say("tracking the shoulders and the background")
    train = _train_frames(starts, frames, valid)
    seen = train[:: max(1, len(train) // 200)]
    pairs = _Watched(read_frames(work.folder / "video.mp4"), seen), _Watched(read_frames(work.folder / "matte.mp4", grey=True), seen)
    torso = track_torso(pairs[0].stream, pairs[1].stream, projected[..., 1].max(1), starts, train, fps=config.fps)
    _write_picture(work.folder / "background.png", background_plate(np.stack(pairs[0].kept), np.stack(pairs[1].kept)))
    track = track.replace(torso=torso, meta={**track.meta, "detector": config.detector})
    track.save(work.folder / "track.npz")
    detect, matte = record["landmarks"]["seconds"], record["video"]["seconds"]
    write_json(work.folder / "fit.json", {
        "frames": frames, "valid_fraction": float(valid.mean()), "landmark_error_px": float(error[valid].mean()),
        "landmark_error_iod": float((error / interocular(points))[valid].mean()), "focal_px": report["focal_px"], "photometric": report["photometric"], "detect_fps": frames / detect,
        "solve_fps": frames / report["seconds"], **{f"{k}_fps": frames / report[f"{k}_seconds"] if report[f"{k}_seconds"] else None for k in ("correct", "refine")},
        "fit_fps": frames / (detect + report["seconds"] + report["correct_seconds"] + report["refine_seconds"] + matte),
        "matte_fps": frames / matte, **{k: record["sync"][k] for k in ("av_offset_frames", "av_offset_confidence", "av_shift_frames")}, "notes": record["landmarks"]["notes"],
        "findings": record["landmarks"]["findings"]})
    curve = record["sync"].get("curve", [[], []])
    with atomic_path(work.folder / "fit_curves.npz") as temporary:
        np.savez(temporary, error=error.astype(np.float32), lags=np.array(curve[0]), score=np.array(curve[1]))
    work.note("track")


class _Watched:
    """A stream of frames that passes through and leaves copies of those at `wanted` in `kept`, in order: memory does not grow with the clip."""

    def __init__(self, frames: Iterable[np.ndarray], wanted: np.ndarray) -> None:
        self.kept: list[np.ndarray] = []
        self.stream = self._pass(frames, set(wanted.tolist()))

    def _pass(self, frames: Iterable[np.ndarray], wanted: set[int]) -> Iterator[np.ndarray]:
        for index, frame in enumerate(frames):
            if index in wanted:
                self.kept.append(frame.copy())
            yield frame


def _write_picture(path: Path, picture: np.ndarray) -> None:
    """(H,W,3) uint8 RGB → PNG, atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def _pictures(work: _Work, folder: Path) -> None:
    """overlay.mp4 and curves.png in `folder`, to look at, where they are missing."""
    if not work.config.overlay or (folder / "overlay.mp4").exists() and (folder / "curves.png").exists() or not (folder / "fit_curves.npz").exists():
        return
    from recon.overlay import write_curves, write_overlay

    track = Track.load(folder / "track.npz")
    with np.load(folder / "landmarks.npz") as data, np.load(folder / "fit_curves.npz") as curves:
        points, error = data["points"], np.nan_to_num(curves["error"])
    sound = folder / "audio.wav"
    write_overlay(folder / "overlay.mp4", islice(read_frames(folder / "video.mp4"), OVERLAY_FRAMES), track[:OVERLAY_FRAMES],
                  work.model, points[:OVERLAY_FRAMES], audio=sound if sound.exists() else None)
    write_curves(folder / "curves.png", track, error, make_split(track.clip_starts, len(track)))


def _reported(work: _Work) -> dict[str, Any]:
    """What fit.json holds, after making the page when it is missing: it needs nothing but the finished folder."""
    if work.config.overlay and not (work.out / "report.html").exists():
        from recon.report import write_report

        _say(f"look at {write_report(Subject.open(work.out))}")
    return read_json(work.out / "fit.json")


def _publish(work: _Work) -> None:
    """Move the finished files into place, subject.json last; completes a move that was interrupted, too."""
    record, out = work.record(), work.out
    (out / "subject.json").unlink(missing_ok=True)
    (out / "report.html").unlink(missing_ok=True)  # of an earlier fit
    has_audio = record["video"]["has_audio"]
    for name in FILES:
        if (work.folder / name).exists():
            os.replace(work.folder / name, out / name)
        elif name in ("overlay.mp4", "curves.png") and not work.config.overlay or name == "audio.wav" and not has_audio:
            (out / name).unlink(missing_ok=True)  # of an earlier fit
    starts, frames = record["video"]["starts"], record["video"]["frames"]
    crops = [{"x": x, "y": y, "side": side, "size": work.config.size} for x, y, side in record["video"]["crops"]]
    clips = [{"source": c["source"], "start": start, "end": end, "crop": crop}
             for c, start, end, crop in zip(record["landmarks"]["clips"], starts, [*starts[1:], frames], crops)]
    write_subject(out, {"clips": clips, "crop": crops[0], "split": make_split(tuple(starts), frames), "consent": work.config.consent,
                        "has_audio": has_audio, "fingerprint": work.fingerprint, "config": work.config.as_dict()})
    shutil.rmtree(work.folder)
