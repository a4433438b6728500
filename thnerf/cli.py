"""The command line: every stage behind one name, one result and one exit code.

Exit codes: 0 done, 1 the work failed, 2 the input is at fault. Errors are one sentence on stderr;
with THNERF_DEBUG=1 the traceback follows. Stages are imported when their command runs.
"""

from __future__ import annotations

import json as json_module
import os
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Callable, Literal, Optional

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from recon.config import FitConfig
from render.files import InputError, StageError, finite
from thnerf.config import TrainConfig

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Common:
    """Flags that every command takes."""

    json: bool = False
    """Print the result as one JSON object on stdout; progress and notes stay on stderr."""


@dataclass(frozen=True)
class RunChoice(Common):
    """Flags of the commands that use a training run."""

    run: str = "default"
    """Name of the training run inside the subject folder."""
    device: Device = "auto"
    """Where to compute: auto takes CUDA when PyTorch sees it."""


Shared = Annotated[Common, arg(name="")]
SharedRun = Annotated[RunChoice, arg(name="")]


def demo(out: Path = Path("demo"), minutes: float = 3.5, shared: Shared = Common()) -> dict[str, Any]:
    """Fit, train, evaluate, speak and export the built-in subject: the whole chain in about seven minutes.

    Example: thnerf demo --out demo

    Args:
        out: Folder for the subject, the videos and report.json; a second call resumes what is there.
        minutes: Training time; the default is what the README's figures were measured with.
    """
    from thnerf.demo import run_demo

    return run_demo(out, minutes=minutes)


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


def train(subject: Positional[Path], config: Annotated[TrainConfig, arg(name="")] = TrainConfig(), shared: Shared = Common()) -> dict[str, Any]:
    """Train the field, the torso and the speech network of a subject; call again to resume.

    Example: thnerf train subjects/me --minutes 10

    Args:
        subject: A folder made by thnerf fit.
    """
    from recon.subject import Subject
    from thnerf.trainer import train as run_training

    return {"run": str(run_training(Subject.open(subject), config))}


def render(
    subject: Positional[Path],
    audio: Annotated[Optional[Path], arg(aliases=["-a"])] = None,
    out: Annotated[Path, arg(aliases=["-o"])] = Path("speech.mp4"),
    pose: Optional[str] = None,
    track: Optional[str] = None,
    background: Optional[str] = None,
    size: Optional[str] = None,
    full_frame: bool = False,
    camera: Optional[str] = None,
    depth: Optional[Path] = None,
    normals: Optional[Path] = None,
    seed: int = 0,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Render the subject speaking a sound file to a video exactly as long as the sound.

    Example: thnerf render subjects/me --audio speech.wav -o speech.mp4

    Example: thnerf render subjects/me --audio speech.wav -o speech.mov --size 1280x720

    Args:
        subject: A trained subject folder.
        audio: Any sound file (wav, mp3, flac, the sound of an mp4 …), any rate, channels and length.
        out: What to write, by its ending: .mp4; .mov (ProRes 4444 with alpha and PCM sound); a folder or frames/%05d.png (RGBA pictures);
            frames/%05d.exr (premultiplied linear float RGBA). All but mp4 are transparent unless --background is given.
        pose: Head pose: audio (predicted, the default), source (from the footage), still, or a Track .npz.
        track: Instead of predicting: fit (the footage's own motion) or the .npz of a Track, edited or retargeted; --audio is then only heard.
        background: own (the footage's, as fitted), none (transparent), green, #RRGGBB, a picture, or a video (begins again where it is too short).
        size: N or WIDTHxHEIGHT, px; the fitted size by default. The whole fitted crop is shown, as large as it fits, on the lower edge; outside
            it nothing is known: the footage's background goes on blurred, the shoulders fall away at a slope.
        full_frame: Put the picture back into the footage, at its size and frame rate, with a soft edge. The head moves as in the footage
            (with another pose the shoulders would break at the edge), which plays forward and back while the speech is longer.
        camera: orbit, orbit:DEGREES (swings to both sides in 6 s; 25, at most 60: what the footage never showed frays), or a .npz or .json with
            world_to_camera (T,4,4), mm, from the footage's camera. The shoulders are flat and turn as a plane; the background stays.
        depth: Write the head's depth, too: %05d.exr in mm (Z, A), or a video or PNG pictures, white near and black far.
        normals: Write the head's normals, too: x right, y up, z to the viewer; %05d.exr as they are, else (n + 1) / 2.
        seed: Seed of the predicted head motion, blinks and gaze; the lips do not depend on it.
    """
    from recon.subject import Subject
    from thnerf.synthesis import render_speech

    return render_speech(Subject.open(subject), audio, out, run=shared.run, pose=pose, background=background, seed=seed, device=shared.device, size=size,
                         full_frame=full_frame, track=track, camera=camera, depth=depth, normals=normals)


def evaluate(subject: Positional[Path], shared: SharedRun = RunChoice()) -> dict[str, Any]:
    """Measure a run on the held-out frames: metrics.json, a table and a side-by-side video.

    Example: thnerf evaluate subjects/me

    Args:
        subject: A trained subject folder.
    """
    from recon.subject import Subject
    from thnerf.evaluate import evaluate as run_evaluation
    from thnerf.metrics import format_table

    result = run_evaluation(Subject.open(subject), run=shared.run, device=shared.device)
    if not shared.json:
        print(format_table(result))
    return result


def export(
    source: Positional[Path],
    to: Literal["livelink", "json", "npz"],
    out: Annotated[Path, arg(aliases=["-o"])],
    audio: Optional[Path] = None,
    seed: int = 0,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Write coefficients and head pose for another program.

    Example: thnerf export subjects/me --to livelink -o me.csv

    Args:
        source: A subject folder or a Track .npz.
        to: livelink (Live Link Face CSV), json, or npz (a Track).
        out: The file to write.
        audio: Export the motion predicted for this sound instead of the fitted track (needs a trained subject).
        seed: Seed of the predicted head motion.
    """
    from thnerf.export import export_track, resolve_track

    track = resolve_track(source, audio=audio, run=shared.run, seed=seed)
    export_track(track, out, to)
    return {"file": str(out), "format": to, "frames": len(track), "fps": track.fps}


def mesh(
    subject: Positional[Path],
    out: Annotated[Path, arg(aliases=["-o"])],
    source: Literal["field", "fit"] = "field",
    frame: Optional[int] = None,
    cell_mm: float = 1.5,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Write the subject's head as a mesh with vertex colours: .ply and .obj in mm, .glb in metres.

    Example: thnerf mesh subjects/me -o head.glb

    Args:
        subject: A subject folder; for --source field a trained one.
        out: head.ply, head.glb or head.obj.
        source: field (the surface of the trained field, hair included, closed at the back by the face model) or fit (the face model
            itself, with the footage's colours).
        frame: The expression of this frame of the footage instead of the typical one.
        cell_mm: Grain of the field's mesh.
    """
    from recon.subject import Subject
    from thnerf.mesh import export_mesh

    return export_mesh(Subject.open(subject), out, source, run=shared.run, frame=frame, cell_mm=cell_mm)


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
        return describe.convert(path, out, landmarks)
    info = describe.describe(describe.open_model(path, landmarks))
    if not shared.json:
        print(describe.text(info))
        return {}
    return info


def retarget(
    track: Positional[Path],
    model: str,
    out: Annotated[Path, arg(aliases=["-o"])],
    source: Optional[str] = None,
    smoothing: float = 0.04,
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Re-express a track in another face model, ARKit weights for example; says how far off the faces are, in mm.

    Example: thnerf retarget track.npz --source flame.npz --model default -o arkit.npz

    Args:
        track: A Track .npz, or a subject folder.
        model: The face model to re-express it in: default, or a model file.
        out: The Track .npz to write.
        source: The face model of the track, where it is neither the default one nor the subject's.
        smoothing: Zero-lag smoothing of the result, as fit's --expression-smoothing; no clip border is crossed.
    """
    from recon.retarget import retarget_file

    return retarget_file(track, model, out, source, smoothing)


def track(camera: str, focal: float = 0.0, subject: Optional[Path] = None, model: str = "default", shared: Shared = Common()) -> dict[str, Any]:
    """Track a face as it comes, without look-ahead, and print its motion as JSON lines, one a frame; Ctrl-C ends it.

    Each line has time (s), expression {name: value}, rotation, translation, gaze and valid. With --json a last line sums up.

    Example: thnerf track --camera 0 --subject subjects/me

    Args:
        camera: Number of a camera, or a video file, which keeps its own timestamps.
        focal: Focal length in px of the picture; 0 estimates it.
        subject: Whose face it is; without it the identity is estimated from the first frames and refined as more come.
        model: Face model where there is no subject: 'default' or the path of a model file.
    """
    from recon.live import track_live

    return track_live(camera, sys.stdout, focal=focal, subject=subject, model=model)


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {f.__name__: f for f in (demo, doctor, fit, track, train, render, evaluate, export, mesh, phantom, model, retarget)}


def run_command(argv: list[str]) -> int:
    """Parse and run one command; print its result. Returns 0, or 2 when doctor finds that a clip cannot work."""
    as_json = "--json" in argv
    with warnings.catch_warnings():
        warnings.showwarning = _one_line
        result = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="thnerf", args=argv, config=(FlagCreatePairsOff,),
            description="A talking head from one clip: track, train, speak, measure, export.")
    if as_json:
        print(json_module.dumps(finite(result), allow_nan=False))
    elif argv[0] not in ("doctor", "evaluate", "track"):
        for key, value in result.items():
            if not isinstance(value, (dict, list)):
                print(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
    return 2 if result.get("verdict") == "fail" else 0


def _one_line(message: Warning | str, category: type[Warning], *_: Any) -> None:
    """Our own warnings as a sentence on stderr; those of libraries about their internals stay unseen."""
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``thnerf``. Returns the exit code; errors become one sentence on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        argv = ["--help"]
    try:
        return run_command(argv)
    except InputError as error:
        code, message = 2, str(error)
    except StageError as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command resumes what can be resumed"
    except BrokenPipeError:
        return 1
    except Exception as error:
        code, message = 1, f"{type(error).__name__}: {error} (THNERF_DEBUG=1 shows where)"
    print("thnerf: " + " ".join(message.split()), file=sys.stderr)
    if os.environ.get("THNERF_DEBUG") == "1":
        traceback.print_exc()
    return code


if __name__ == "__main__":
    sys.exit(main())
