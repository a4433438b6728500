"""Settings of ``thnerf fit``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from render.files import InputError, check_numbers

_LIMITS = {"size": (64, 2048), "fps": (1, 240), "crop_heights": (1.2, 6), "shape_components": (0, 10000), "keyframes": (1, 10000), "focal": (0, 100000),
           "pose_smoothing": (0, 1000), "expression_smoothing": (0, 1000), "crf": (0, 51)}


@dataclass(frozen=True)
class FitConfig:
    """How footage becomes a subject."""

    size: int = 256
    """Side of the square crop that everything after fit works on, px; at most 2048."""
    fps: float = 25.0
    """Frame rate of the subject; footage of any other rate is resampled by timestamps."""
    model: str = "default"
    """Face model: 'default' or the path of a model file."""
    detector: str = "mediapipe"
    """Landmark detector: mediapipe, face-alignment (face-alignment:FOLDER where its weights lie in a folder of yours), or the path of an .npz with landmarks in source px."""
    crop_heights: float = 2.3
    """Side of the crop in face heights (brow-to-chin mesh of the detector); larger shows more shoulders."""
    shape_components: int = 60
    """How many identity coefficients are solved for."""
    keyframes: int = 48
    """How many well-spread frames determine identity, camera and landmark corrections."""
    focal: float = 0.0
    """Focal length in crop px; 0 solves for it."""
    corrector: bool = True
    """Move landmarks to where a network trained on renders sees them; --no-corrector leaves the detector's. Only for MediaPipe's landmarks and the default model."""
    photometric: bool = True
    """Refine pose and expression by the pixels after the landmarks; --no-photometric takes the landmarks' word."""
    silhouette: bool = True
    """Let the edge of the matte have a say about the shape of cheeks and jaw; --no-silhouette leaves it to the landmarks."""
    pose_smoothing: float = 1.0
    """Strength of the zero-lag smoothing of head pose: 1 halves motion above 4 Hz at 25 fps; 0 turns it off."""
    expression_smoothing: float = 0.04
    """The same for lips, jaw and lids, light enough to keep plosives and blinks; brows and cheeks get 20 times as much."""
    crf: int = 12
    """H.264 quality of video.mp4, 0 to 51: lower is better and larger."""
    overlay: bool = True
    """Whether to write what is only to be looked at: report.html, overlay.mp4 (mesh and landmarks on the footage) and curves.png."""
    fix_sync: bool = False
    """Move audio.wav by the A/V offset that fit measures, in whole frames; offsets within the measurement's error stay."""
    consent: str = ""
    """A note on the consent of the person shown, kept in subject.json."""

    def __post_init__(self) -> None:
        """Raises InputError for settings that cannot work."""
        check_numbers(self, _LIMITS)
        if self.size % 2:
            raise InputError(f"--size must be an even number of px, not {self.size}")
        if 0 < self.focal < 30:
            raise InputError(f"--focal must be 0, which solves for it, or lie between 30 and 100000 px, not {self.focal:g}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
