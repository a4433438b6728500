"""From what is asked for to what is performed: a Track of the subject, directed, and the sound that goes with it.

One path for every command: speech (a sound file or a text), another person's video (`--drive`), or a Track (`--track`), then the
head pose where it is asked for on its own, then `thnerf.direction.direct`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import from_frontal
from thnerf.direction import Direction, direct
from thnerf.manner import Manner, pose_of

POSES = ("audio", "source", "still")
SOUND_RATE = 48_000
_SILENT_POSE = "--pose audio is predicted from speech, and here there is none; give --pose source, still, a Track or a video, or leave it out"

Sound = tuple[np.ndarray, int]


@dataclass(frozen=True)
class Performance:
    """What is to be shown and heard: track, at the subject's frame rate, sound (samples, Hz), None for a silent video, and its file, where it is one."""

    track: Track
    sound: Optional[Sound]
    file: Optional[Path] = None


@dataclass(frozen=True)
class Speech:
    """A voice twice: samples (n,) at audio.RATE to be understood, and (samples, Hz) to be heard."""

    understood: np.ndarray
    heard: Sound


def speech_of(audio: str | Path | None, direction: Direction) -> Speech | None:
    """The voice of `--audio` or `--text`, None where neither is given. Raises InputError for both, and for what cannot be read or said."""
    from thnerf.audio import RATE, load_audio, resample

    if audio is not None and direction.text is not None:
        raise InputError("--audio and --text are two things to say; leave out one of them")
    if direction.text is not None:
        from thnerf.voice import synthesise

        samples, rate = synthesise(direction.text, direction.voice)
        return Speech(resample(samples, rate, RATE), (samples, rate))
    return None if audio is None else Speech(load_audio(audio, RATE), _heard(Path(audio)))


def pose_source(pose: str | Path | Track, subject: Subject) -> str | Track:
    """What `--pose` means: one of POSES, a Track (or its .npz) of the subject's face model, or a video whose head is followed in the
    subject's manner (`thnerf.drive`); at the subject's frame rate.

    Raises InputError for another word, an unreadable file, an empty track, or a track of another face model.
    """
    if isinstance(pose, str) and pose in POSES:
        return pose
    if not isinstance(pose, Track):
        if Path(pose).suffix != ".npz":
            if not Path(pose).exists():
                raise InputError(f"--pose takes {', '.join(POSES)}, a Track .npz or a video, not {str(pose)!r}")
            from thnerf import drive

            return drive.performance(subject, drive.driving_subject(pose, subject))
        pose = Track.load(pose)
    if not len(pose):
        raise InputError("the pose track has no frames; export it again")
    if pose.model_id != subject.track.model_id:
        raise InputError(
            f"the pose track belongs to the face model {pose.model_id} and this subject to {subject.track.model_id}; "
            "their head positions do not compare, so fit the source clip with the subject's model")
    return pose.resample(subject.track.fps)


def driving_track(subject: Subject, text: str | Path | Track, run_dir: Path | None = None) -> Track:
    """What `--track` means: 'fit' (the footage's own, as the run has aligned it) or the .npz of an edited or retargeted one.

    Raises InputError when it is unreadable, empty or of another face model.
    """
    own = subject.track if run_dir is None else subject.aligned(run_dir)
    track = text if isinstance(text, Track) else own if str(text) == "fit" else Track.load(text)
    if track.model_id != subject.track.model_id:
        raise InputError(f"the track belongs to the face model {track.model_id} and this subject to {subject.track.model_id}; re-express it with thnerf retarget")
    if not len(track):
        raise InputError("the track has no frames, so there is nothing to render; export it again")
    return track


def check_wishes(audio: Any, direction: Direction, track: Any) -> None:
    """Raises InputError for wishes that exclude each other, and when there is nothing to perform."""
    if track is not None and (direction.text is not None or direction.drive is not None):
        raise InputError(f"--track moves the mouth already; leave out {'--text' if direction.text is not None else '--drive'}, or leave out --track")
    if track is None and audio is None and direction.text is None and direction.drive is None and direction.pose in (None, "audio", "still"):
        raise InputError("say what to speak with --audio FILE or --text WORDS, or what to play with --drive VIDEO, --track fit or --track FILE.npz")


def perform(subject: Subject, run_dir: Path, audio: str | Path | None, direction: Direction = Direction(), track: str | Path | Track | None = None,
            seen: bool = False) -> Performance:
    """What the subject does. `track` (see `driving_track`) sets everything, `direction.pose` the head alone; without `audio` a Track file is
    silent, while 'fit' brings the footage's sound and `drive` that of its video. seen: as of `direct`, for a motion that the field is to show.

    Raises InputError for wishes that exclude each other or cannot be read, and a run that has no speech network when it must speak.
    """
    check_wishes(audio, direction, track)
    direction.offsets(subject.track.expression_names)
    if direction.pose == "audio" and audio is None and direction.text is None or direction.pose == "audio" and (track is not None or direction.drive is not None):
        raise InputError(_SILENT_POSE)
    model = None
    if direction.changes_track:
        from thnerf.drive import face_model

        model = face_model(subject)
    motion, file = _played(subject, run_dir, audio, direction, track)
    if motion is not None:
        if direction.pose is not None:
            motion = with_pose(motion, pose_source(direction.pose, subject), subject)
        sound = None if file is None else _heard(file)
    else:
        head = pose_source(direction.pose or "audio", subject)
        speech = speech_of(audio, direction)
        if speech is None:
            motion, sound = with_pose(resting(subject, len(subject.track if isinstance(head, str) else head), direction.seed), head, subject), None
        else:
            motion, sound = spoken(subject, run_dir, speech.understood, direction, head), speech.heard
            file = None if audio is None else Path(audio)
    return Performance(direct(motion, direction, subject.track, model, seen), sound, file)


def animated(audio: str | Path | None, direction: Direction = Direction(), fps: float = 25.0) -> Performance:
    """The default head, without a subject, speaking a sound file or a text as it is directed (`thnerf animate`).

    Raises InputError for wishes that need a subject's footage: --drive, and 'source' or a video as a pose.
    """
    from recon.model import load_model
    from thnerf.animate import animate
    from thnerf.audio import RATE
    from thnerf.pose import source_states

    if direction.drive is not None or direction.pose not in (None, "audio", "still") and Path(direction.pose).suffix != ".npz":
        raise InputError("without a subject there is no footage to drive or to take a pose from; leave out --drive, and give --pose audio, still or a Track .npz")
    speech = speech_of(audio, direction)
    if speech is None:
        raise InputError("say what to speak: a sound file, or --text WORDS")
    track = animate(speech.understood, RATE, seed=direction.seed, fps=fps, liveliness=direction.liveliness)
    if direction.pose not in (None, "audio"):
        head = pose_of(track)
        if direction.pose == "still":
            states = np.repeat(np.median(head, 0)[None], len(track), 0)
        else:
            source = Track.load(direction.pose)
            if not len(source) or source.model_id != track.model_id:
                raise InputError(f"the pose track {direction.pose} has no frames or another face model than the default one; re-express it with thnerf retarget")
            states = source_states(source.resample(fps), len(track))
            states[:, 3:6] += np.median(head, 0)[3:] - np.median(states[:, 3:6], 0)  # another camera: only its motion means something
        track = track.replace(rotation=from_frontal(states[:, :3]), translation=states[:, 3:6])
    return Performance(direct(track, direction, None, load_model()), speech.heard, None if audio is None else Path(audio))


def _heard(path: Path) -> Sound:
    """A sound file as it is muxed."""
    from thnerf.audio import load_audio

    return load_audio(path, SOUND_RATE), SOUND_RATE


def _played(subject: Subject, run_dir: Path, audio: str | Path | None, direction: Direction, track: str | Path | Track | None) -> tuple[Track | None, Path | None]:
    """The motion of `--track` or `--drive` and the file of its sound; (None, None) where it has to come from speech."""
    if track is None and direction.drive is None:
        return None, None
    if track is not None:
        motion = driving_track(subject, track, run_dir)
        own = subject if str(track) == "fit" else None
    else:
        from thnerf import drive

        own = drive.driving_subject(direction.drive, subject)
        motion = drive.performance(subject, own)
    return motion, Path(audio) if audio is not None else own.audio_path if own is not None and own.has_audio else None


def spoken(subject: Subject, run_dir: Path, samples: np.ndarray, direction: Direction, head: str | Track, fps: float | None = None) -> Track:
    """The subject saying `samples` (at audio.RATE), not yet directed; at its own frame rate, or at `fps`."""
    from thnerf.audio import RATE
    from thnerf.motion import predict_track

    options: dict[str, Any] = {} if fps is None else {"fps": fps}
    if direction.liveliness != 1:
        options["liveliness"] = direction.liveliness
    return predict_track(subject, run_dir, samples, RATE, seed=direction.seed, pose=head, **options)


def resting(subject: Subject, frames: int, seed: int = 0) -> Track:
    """The subject with its mouth closed, its head still, blinking as it does: what a head pose alone moves."""
    from thnerf.drive import face_model
    from thnerf.pose import fit_pose

    home = subject.track
    manner = Manner.of(home, face_model(subject))
    own = fit_pose(home, np.flatnonzero(home.valid) if home.valid.any() else np.arange(len(home)), np.zeros(len(home), np.float32))
    states = own.with_blinks(np.repeat(np.median(own.states, 0)[None].astype(np.float64), frames, 0), seed)
    parts = own.layout.unpack(states)
    parts.pop("upper")
    expression = np.repeat(manner.neutral[None], frames, 0)
    lids = [home.expression_names.index(n) for n in own.layout.names if n in ("eyeBlinkLeft", "eyeBlinkRight")]
    expression[:, lids] = states[:, own.layout.blinks]
    return home[:1].replace(camera=_held(home, frames), expression=manner.bounded(expression), valid=np.ones(frames, bool), meta={"origin": "pose"}, **parts)


def with_pose(motion: Track, head: str | Track, subject: Subject) -> Track:
    """The motion with another head pose ('source', 'still' or a Track, played back and forth), and the shoulders that go with it.

    Raises InputError for 'audio', which needs speech.
    """
    from thnerf.drive import shoulders
    from thnerf.pose import source_states

    if head == "audio":
        raise InputError(_SILENT_POSE)
    home = subject.track.resample(motion.fps)
    if head == "still":
        states = np.repeat(np.median(pose_of(home), 0)[None], len(motion), 0)
    else:
        states = source_states(home if head == "source" else head.resample(motion.fps), len(motion))
    return motion.replace(rotation=from_frontal(states[:, :3]), translation=states[:, 3:6], torso=shoulders(home, states[:, :6]))


def _held(home: Track, frames: int) -> Camera:
    """The subject's camera for `frames` frames."""
    return Camera(home.camera.K, np.repeat(home.camera.world_to_camera[:1], frames, 0), home.camera.width, home.camera.height)
