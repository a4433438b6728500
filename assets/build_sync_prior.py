"""Build sync_prior.npz: how the mouth moves with the spectrum of the voice, learnt from GRID speakers (CC BY 4.0).

Usage: python assets/build_sync_prior.py FOOTAGE, a folder with grid_s1/mpg/*.mpg and grid_multi/*.mpg. Of the clips in
alphabetical order the last 20 of s1 and the last 4 of the other speakers are left out, for tests.
"""

import sys
from pathlib import Path

import numpy as np

from recon.landmarks import load_detector
from recon.sync import RATE, heard, log_mel, mouth_motion, ridge
from render.files import atomic_path
from render.video import read_audio_track, read_frames

FPS = 25.0
HELD_OUT = {"grid_s1/mpg": 20, "grid_multi": 4}


def main(footage: Path) -> None:
    """Detect, regress, write."""
    detector, inputs, outputs = load_detector(), [], []
    for folder, held in HELD_OUT.items():
        for clip in sorted((footage / folder).glob("*.mpg"))[:-held]:
            face = detector.detect(read_frames(clip, FPS))
            sound = read_audio_track(clip, RATE, len(face.valid) / FPS)
            if sound is not None and face.valid.mean() > 0.7:
                inputs.append(heard(log_mel(sound), len(face.valid), FPS, 0))
                outputs.append(mouth_motion(face.points, face.valid, FPS))
    weights = ridge(np.concatenate(inputs), np.concatenate(outputs), 0.02)
    with atomic_path(Path(__file__).parent / "sync_prior.npz") as temporary:
        np.savez_compressed(temporary, weights=weights.astype(np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
