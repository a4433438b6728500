"""From footage to a subject, and what is made without footage: doctor, fit, track, phantom, model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

from tyro.conf import Positional, arg

from recon.config import FitConfig
from render.files import InputError, check_place
from thnerf.commands.common import Common, Shared


def doctor(clip: Positional[Path], shared: Shared = Common()) -> dict[str, Any]:
    """Say whether a clip will work, what to change in it, and why. Exit code 2 when it cannot work.

    Example: thnerf doctor clip.mp4

    Args:
        clip: The video to look at.
    """
    from recon.doctor import diagnose

    report = diagnose(clip)
    if not shared.json:
        print(report.text())
    return report.as_dict()


def fit(clips: Positional[list[Path]], out: Path, config: Annotated[FitConfig, arg(name="")] = FitConfig(), shared: Shared = Common()) -> dict[str, Any]:
    """Track one speaker in one or more clips and write a subject folder.

    Example: thnerf fit clip.mp4 --out subjects/me

    Args:
        clips: Videos of one speaker; several become one subject.
        out: The subject folder to make, or to complete after an interruption.
    """
    from recon.fit import fit_subject

    if not clips:
        raise InputError("name at least one clip: thnerf fit CLIP --out FOLDER")
    return fit_subject(clips, out, config)


def track(
    camera: str,
    focal: float = 0.0,
    subject: Optional[Path] = None,
    model: str = "default",
    corrector: bool = True,
    livelink: Optional[str] = None,
    livelink_fps: float = 60.0,
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Track a face as it comes, without look-ahead, and print its motion as JSON lines, one a frame; Ctrl-C ends it.

    Each line has time (s), expression {name: value}, rotation, translation, gaze and valid. With --json a last line sums up.

    Example: thnerf track --camera 0 --subject subjects/me

    Args:
        camera: Number of a camera, or a video file, which keeps its own timestamps.
        focal: Focal length in px of the picture; 0 estimates it.
        subject: Whose face it is; without it the identity is estimated from the first frames and refined as more come.
        model: Face model where there is no subject: 'default' or the path of a model file.
        corrector: Move landmarks to where a network trained on renders sees them (default model only); --no-corrector takes a fifth less time.
        livelink: Send the motion to Unreal's Live Link, too: HOST:PORT (Unreal listens on port 11111).
        livelink_fps: What the frame numbers of those packets count in.
    """
    from contextlib import nullcontext

    from recon.live import track_live
    from thnerf.export.livelink_udp import LiveLinkSink

    name = subject.resolve().name if subject is not None else "thnerf"
    with nullcontext() if livelink is None else LiveLinkSink(livelink, livelink_fps, name) as sink:
        result = track_live(camera, sys.stdout, focal=focal, subject=subject, model=model, also=None if sink is None else sink.send, corrector=corrector)
    return result if sink is None else {**result, "livelink_sent": sink.sent, "livelink_lost": sink.lost}


def phantom(
    out: Annotated[Path, arg(aliases=["-o"])],
    text: Optional[str] = None,
    seed: int = 0,
    identity: int = 0,
    size: int = 256,
    fps: float = 25.0,
    reach: tuple[float, float, float] = (12.0, 8.0, 6.0),
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Render a synthetic speaker with an exact Track, for tests and experiments.

    Example: thnerf phantom --seed 1 --identity 3 --text "Good morning." -o phantom

    Args:
        out: Folder for video.mp4, audio.wav and track.npz.
        text: What it says; a built-in passage when absent.
        seed: Seed of the motion.
        identity: Seed of the person: face, hair, clothes, light and background.
        size: Width and height, px.
        fps: Frames per second.
        reach: Degrees of yaw, pitch and roll that the head keeps within; beyond the default it looks around to either side.
    """
    from thnerf.phantom import make_phantom

    check_place(out)
    return make_phantom(out, text, seed=seed, identity=identity, size=size, fps=fps, reach=reach)


def model(
    action: Positional[Literal["info", "convert"]],
    path: Positional[str],
    out: Annotated[Optional[Path], arg(aliases=["-o"])] = None,
    landmarks: Optional[Path] = None,
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Look into a face model, or convert it to thnerf's own file: FLAME, Basel (2009, 2017, 2019), ICT-FaceKit, GNM.

    Example: thnerf model info default
    Example: thnerf model convert flame2023.pkl -o flame.npz

    Args:
        action: info (sizes, names, landmarks, licence) or convert.
        path: default, a model file, or its folder; docs/models.md lists which files belong together.
        out: The .npz to write (convert).
        landmarks: A landmark file instead of those found beside the model.
    """
    from recon.formats import describe

    if action == "convert":
        if out is None:
            raise InputError("name the file to write: thnerf model convert PATH -o model.npz")
        check_place(out)
        return describe.convert(path, out, landmarks)
    info = describe.describe(describe.open_model(path, landmarks))
    if not shared.json:
        print(describe.text(info))
        return {}
    return info
