"""Builds the demo subject, assets/demo/: a synthetic talking person with its exact track, and one more sentence kept as unseen speech.

    python assets/build_demo.py [--out FOLDER]        # about two minutes

Deterministic: the same versions of eSpeak NG and the face model give the same track and sound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # runs from a checkout that is not installed

from recon.model import load_model  # noqa: E402
from recon.track import Track  # noqa: E402
from render.files import atomic_path  # noqa: E402
from thnerf.phantom.motion import phantom_track  # noqa: E402
from thnerf.phantom.scene import identity_shape, render_phantom, utterance, write_sound  # noqa: E402

IDENTITY, SEED, UNSEEN_SEED = 0, 7, 8
VOICE, RATE, FPS, SIZE = "en-us", 150, 25.0, 256
TEXT = (
    "Good morning, and thank you for joining me. My favourite place is a small blue house above the bay. "
    "We walk there every summer with five dogs, two boys, and far too much food. "
    "Bob usually makes the fire, while Joy pours a huge pot of fresh orange tea. "
    "Please bring warm clothes: the wind can be rather rough. "
    "At night we watch the ships move past the beach, and nobody checks the time.")
UNSEEN_TEXT = "When the weather is fine, you might hear voices from the market and the bells above the old bridge."
README = f"""# Demo subject
A synthetic person, rendered by this project ({Path(__file__).name}): nobody was filmed or recorded, so no consent is needed.
Face and body: the CC0 face model of ../README.md. Voice: eSpeak NG ("{VOICE}"). These files: CC0.

| file | what |
|---|---|
| video.mp4 | {SIZE} x {SIZE}, {FPS:g} fps, H.264 with AAC sound; the training footage of `thnerf demo` |
| track.npz | its exact Track: identity, expression, pose, gaze, torso, camera |
| unseen.wav, unseen_track.npz | one more sentence, in no training footage, with the motion the same person would make |

Spoken in the video: "{TEXT}"

Unseen: "{UNSEEN_TEXT}"
"""


def speech_and_track(text: str, seed: int) -> tuple[tuple, Track]:
    """((samples, rate), exact track) of one text spoken by the demo person."""
    model = load_model("default")
    samples, rate, phonemes = utterance(text, VOICE, RATE, FPS)
    track = phantom_track(phonemes, samples, rate, model, identity_shape(model, IDENTITY), seed=seed, fps=FPS, size=SIZE)
    return (samples, rate), track.replace(meta={**track.meta, "identity": IDENTITY, "text": text})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "demo", help="folder to write to")
    parser.add_argument("--crf", type=float, default=15, help="x264 quality of the video")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sound, track = speech_and_track(TEXT, SEED)
    track.save(args.out / "track.npz")
    unseen_sound, unseen = speech_and_track(UNSEEN_TEXT, UNSEEN_SEED)
    unseen.save(args.out / "unseen_track.npz")
    write_sound(args.out / "unseen.wav", *unseen_sound)
    with atomic_path(args.out / "README.md") as temporary:
        temporary.write_text(README)
    render_phantom(track, IDENTITY, args.out / "video.mp4", sound, crf=args.crf)
    files = [p for p in args.out.iterdir() if p.is_file()]
    print(f"{len(track)} frames, {len(unseen)} unseen; " + ", ".join(f"{p.name} {p.stat().st_size / 1e6:.2f} MB" for p in sorted(files)))


if __name__ == "__main__":
    main()
