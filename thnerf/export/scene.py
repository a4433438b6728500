"""What is exported: one motion, the head that makes it, and what belongs to both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Optional

import numpy as np

from recon.model import MorphableModel, load_model
from recon.subject import Subject
from recon.track import Track
from render.files import InputError
from thnerf.direction import Direction, direct
from thnerf.export.names import swap_side
from thnerf.export.options import ExportOptions, check_fps
from thnerf.export.space import Space


@dataclass(frozen=True)
class Scene:
    """A Track with everything that a format may want beside it; made by `make_scene`.

    track: at the frame rate of the file. name: of the subject or file. face_model: None where the track's model file is not known.
    audio: the sound that belongs to the track, from its first frame on. subject: whose track it is, where that is known.
    albedo: whether its texture is without the light of the footage.
    """

    track: Track
    name: str
    face_model: Optional[MorphableModel] = None
    audio: Optional[Path] = None
    subject: Optional[Subject] = None
    albedo: bool = False

    @property
    def model(self) -> MorphableModel:
        """The face model. Raises InputError where only its name is known."""
        if self.face_model is None:
            raise InputError(f"this format carries the mesh of the face model {self.track.model_id}, which the track does not bring along; name its file with --model")
        return self.face_model

    @cached_property
    def neutral(self) -> np.ndarray:
        """The head without expression, (V,3) float64 mm in model space."""
        return self.model.vertices(self.track.shape, np.zeros(len(self.model.expression_names), np.float32)).astype(np.float64)

    def names(self, options: ExportOptions) -> tuple[str, ...]:
        """Expression names as the file spells their sides."""
        names = self.track.expression_names
        return tuple(swap_side(n) for n in names) if options.sides == "viewer" else names

    def space(self, options: ExportOptions, unit: str) -> Space:
        """The exported world; `unit` is the format's own."""
        return Space(options.scale(unit), options.up)

    def gaze(self, options: ExportOptions) -> np.ndarray:
        """Rotation of the eyeballs (T,2,2) rad, zero where the eyeLook weights turn them."""
        return np.zeros_like(self.track.gaze, np.float64) if options.eyes == "blendshape" else self.track.gaze.astype(np.float64)


def gaze_of_looks(names: tuple[str, ...], weights: np.ndarray) -> Optional[np.ndarray]:
    """The gaze (T,2,2) rad that eyeLook weights (T,E) mean, the inverse of `recon.gaze.looks_of`; None where the names lack some of them."""
    from recon.gaze import LOOK_ANGLE, LOOKS

    if not all(stem + side in names for stem in LOOKS for side in ("Left", "Right")):
        return None
    out = np.zeros((len(weights), 2, 2))
    for side, (label, outward) in enumerate((("Left", 1), ("Right", -1))):
        up, down, inward, out_ = (weights[:, names.index(stem + label)].astype(np.float64) for stem in LOOKS)
        out[:, side] = np.stack([outward * (out_ - inward), up - down], -1) * LOOK_ANGLE
    return out


def make_scene(source: str | Path | None, options: ExportOptions = ExportOptions(), audio: str | Path | None = None, model: str | Path | None = None,
               run: str = "default", direction: Direction = Direction()) -> Scene:
    """What a command line means: a subject folder's own motion, a Track .npz, or with `audio` a subject's predicted one; without a source the default head's.

    model: file of the face model, where `source` is a bare Track of another than the default one. run: whose speech network predicts.
    direction: how the subject performs (`thnerf.performance`); of a bare Track what changes a Track. Raises InputError when `source` is neither, when `audio` comes with a bare Track, when the run holds no speech
    network, for an empty track, a bad frame rate, or a model that is not the track's.
    """
    check_fps(options.fps)
    track, subject, sound = _motion(source, audio, run, direction)
    if not len(track):
        raise InputError("the track has no frames, so there is nothing to export; fit the clip again")
    found = load_model(model) if model is not None else subject.model if subject is not None else load_model() if track.model_id == load_model().model_id else None
    if found is not None and (found.model_id != track.model_id or found.expression_names != track.expression_names or len(track.shape) > len(found.shape_basis)):
        if model is None and subject is None:
            found = None
        else:
            raise InputError(f"the track belongs to the face model {track.model_id}, not to {found.model_id}; name the file of its model with --model")
    name = subject.path.resolve().name if subject is not None else Path(str(source if source is not None else audio)).stem
    return Scene(track if options.fps is None else track.resample(options.fps), name, found, sound, subject, options.albedo)


def _motion(source: str | Path | None, audio: str | Path | None, run: str, direction: Direction) -> tuple[Track, Optional[Subject], Optional[Path]]:
    """Track, subject and sound file of a command line."""
    plain = direction.text is None and direction.drive is None and direction.pose is None
    if source is None:
        if audio is None and direction.text is None:
            raise InputError("name what to export: a subject folder, a Track .npz, or --audio or --text alone, which the default head then speaks")
        from thnerf.performance import animated

        played = animated(audio, direction)
        return played.track, None, played.file
    source = Path(source)
    if not source.is_dir():
        if audio is not None or not plain:
            raise InputError(f"--audio, --text, --drive and --pose need a subject folder to perform through, and {source} is none; give the folder instead")
        if not source.exists():
            raise InputError(f"{source} does not exist; give a subject folder or a Track .npz")
        return direct(Track.load(source), direction), None, None
    from thnerf.performance import perform

    if audio is None and direction.text is None and direction.drive is None and direction.pose in ("audio", "still"):
        raise InputError("--pose audio and --pose still are for speech: give --audio FILE or --text WORDS, or --pose source, a Track .npz or a video")
    subject = Subject.open(source)
    played = perform(subject, subject.run(run), audio, direction, "fit" if audio is None and plain else None)
    weights = np.clip(played.track.expression, np.minimum(subject.track.expression.min(), 0), np.maximum(subject.track.expression.max(), 1))
    return played.track.replace(expression=weights), subject, played.file  # what the alignment to a field lets weights overshoot is for that field alone
