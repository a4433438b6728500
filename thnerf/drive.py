"""Video-driven animation: another person's performance, in the subject's manner.

The driving video is fitted like any footage, into SUBJECT/driving/, and kept there: a second call takes what is there, an interrupted one
goes on. Then neutral maps to neutral, a wide-open mouth to the subject's wide-open mouth, a closed lid to a closed lid, and head motion,
relative to where each head usually is, is scaled down where it goes further than the subject's footage ever did.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from recon.config import FitConfig
from recon.model import MorphableModel, load_model
from recon.subject import Subject
from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import from_frontal
from thnerf.manner import Manner, brow_columns, lid_columns, pose_of, within
from thnerf.pose import fit_pose

ROOM = np.array([np.radians(4.0)] * 3 + [8.0] * 3)
"""Head motion (rad, mm, from end to end) that any subject may make, however still it sat."""
MARGIN = 0.15
"""How far, in parts of ROOM and of the subject's own range, a pose may go beyond the footage."""
_MOUTH, _BROWS, _LIDS = (0.6, 1.6), (0.5, 1.6), (0.6, 1.6)  # least and greatest amplification


def driving_subject(path: str | Path, subject: Subject) -> Subject:
    """The fit of a driving video at the subject's frame rate and with its face model; or the subject folder that `path` is.

    Raises InputError for footage that cannot work, such as a video without a face.
    """
    from recon.fit import fit_subject

    path = Path(path)
    if path.is_dir():
        return Subject.open(path)
    if not path.is_file():
        raise InputError(f"the driving video {path} does not exist; name a video of one talking face, or a fitted subject folder")
    name = f"{path.stem[:40]}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    folder = subject.path / "driving" / name
    config = FitConfig(fps=subject.track.fps, model=subject.info.get("config", {}).get("model", "default"), overlay=False)
    try:
        fit_subject([path], folder, config)
    except InputError:
        shutil.rmtree(folder, ignore_errors=True)  # there is nothing in it to go on from
        raise
    return Subject.open(folder)


def transfer(driver: Track, driver_model: MorphableModel | None, home: Track, model: MorphableModel | None) -> Track:
    """The driver's performance as the subject whose footage is `home` would give it; both of one face model.

    As many frames as the driver has, at home's rate. Of home itself expression, pose and gaze come back as they are.
    Raises ValueError when the tracks belong to different models.
    """
    if driver.model_id != home.model_id or driver.expression_names != home.expression_names:
        raise ValueError(f"the driver has the face model {driver.model_id} and the subject {home.model_id}; retarget one of them first")
    driver = driver.resample(home.fps)
    own, other = Manner.of(home, model), Manner.of(driver, driver_model)
    names = home.expression_names
    gain = np.full(len(names), _ratio(own.reach, other.reach, _MOUTH))
    gain[[i for i, n in enumerate(names) if n.startswith("eye")]] = 1.0
    gain[brow_columns(names)] = _ratio(own.brows, other.brows, _BROWS)
    gain[lid_columns(names)] = _ratio(own.lids, other.lids, _LIDS)
    expression = own.bounded(own.neutral + gain * (driver.expression - other.neutral))
    states = np.zeros((len(driver), 6))
    scale = np.minimum(1.0, np.maximum(own.spread, ROOM) / np.maximum(other.spread, 1e-9))
    states[:] = own.centre + scale * (pose_of(driver) - other.centre)
    states = within(states, own.least, own.most, MARGIN * np.maximum(own.most - own.least, ROOM))
    limit = np.radians(4.0)
    gaze = within(own.gaze + driver.gaze - other.gaze, own.gaze_least, own.gaze_most, np.full((2, 2), limit))
    if not np.allclose(gaze, driver.gaze, atol=1e-6):
        from recon.gaze import looks_of

        looks = looks_of(names, gaze)
        expression = np.where(np.isfinite(looks), looks, expression)
    rotation, translation = from_frontal(states[:, :3]), states[:, 3:]
    camera = Camera(home.camera.K, np.repeat(home.camera.world_to_camera[:1], len(driver), 0), home.camera.width, home.camera.height)
    return home[:1].replace(
        camera=camera, expression=expression, rotation=rotation, translation=translation, gaze=gaze, torso=shoulders(home, states), valid=driver.valid,
        clip_starts=driver.clip_starts, meta={"origin": "drive", "mouth_gain": float(_ratio(own.reach, other.reach, _MOUTH)), "pose_gain": scale.round(3).tolist()})


def _ratio(own: float, other: float, limits: tuple[float, float]) -> float:
    """own / other within limits; 1 where the other does not move at all."""
    return float(np.clip(own / other, *limits)) if other > 1e-6 and own > 1e-6 else 1.0


def shoulders(home: Track, poses: np.ndarray) -> np.ndarray:
    """Torso coefficients (T,K) that go with head poses (T,6), as `manner.pose_of` has them, learned from the footage `home`."""
    seen = np.flatnonzero(home.valid) if home.valid.any() else np.arange(len(home))
    learned = fit_pose(home, seen, np.zeros(len(home), np.float32))
    states = np.zeros((len(poses), learned.states.shape[1]))
    states[:, :6] = poses
    return learned.torso_for(states)


def performance(subject: Subject, source: Subject) -> Track:
    """The driving subject's performance, transferred; re-expressed first where its face model is another one."""
    driver, driver_model = source.track, source.model
    if driver.model_id != subject.track.model_id:
        from recon.retarget import retarget

        _say(f"the driving footage has the face model {driver.model_id}; re-expressing it")
        driver, _ = retarget(driver, driver_model, subject.model)
        driver_model = subject.model
    return transfer(driver, driver_model, subject.track, face_model(subject))


def face_model(subject: Subject) -> MorphableModel | None:
    """The subject's face model, None where its file is not at hand (the mouth is then measured by jawOpen)."""
    try:
        return subject.model
    except InputError:
        default = load_model()
        return default if default.model_id == subject.track.model_id else None


def _say(text: str) -> None:
    """A note for the user on stderr."""
    if os.environ.get("THNERF_QUIET") != "1":
        print(f"drive: {text}", file=sys.stderr, flush=True)
