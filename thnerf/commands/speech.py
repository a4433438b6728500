"""From a subject to frames: demo, train, render, stream, evaluate, view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

from tyro.conf import Positional, arg

from render.files import InputError, check_place
from thnerf.commands.common import Common, Directed, DirectedLive, LiveDirection, RunChoice, Shared, SharedRun
from thnerf.config import TrainConfig
from thnerf.direction import Direction


def demo(out: Path = Path("demo"), minutes: float = 3.5, shared: Shared = Common()) -> dict[str, Any]:
    """Fit, train, evaluate, speak and export the built-in subject: the whole chain in about five minutes on two cores.

    Example: thnerf demo --out demo

    Args:
        out: Folder for the subject, the videos and report.json; a second call resumes what is there.
        minutes: Training time; the default is what the README's figures were measured with.
    """
    from thnerf.demo import run_demo

    check_place(out)
    return run_demo(out, minutes=minutes)


def train(subject: Positional[Path], config: Annotated[TrainConfig, arg(name="")] = TrainConfig(), shared: Shared = Common()) -> dict[str, Any]:
    """Train the field, the torso and the speech network of a subject; call again to resume.

    Example: thnerf train subjects/me --minutes 10

    Args:
        subject: A folder made by thnerf fit.
    """
    from recon.subject import Subject
    from thnerf.trainer import train as run_training

    opened = Subject.open(subject)
    check_place(opened.run(config.run))
    return {"run": str(run_training(opened, config))}


def render(
    subject: Positional[Path],
    audio: Annotated[Optional[Path], arg(aliases=["-a"])] = None,
    out: Annotated[Path, arg(aliases=["-o"])] = Path("speech.mp4"),
    track: Optional[str] = None,
    direction: Directed = Direction(),
    dub: bool = False,
    background: Optional[str] = None,
    size: Optional[str] = None,
    full_frame: bool = False,
    camera: Optional[str] = None,
    depth: Optional[Path] = None,
    normals: Optional[Path] = None,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Render the subject speaking a sound file or a text, or moving as another video or a Track says; docs/direction.md shows how to direct it.

    Example: thnerf render subjects/me --audio speech.wav -o speech.mp4

    Example: thnerf render subjects/me --text "Good morning." --emotion happy:0.7 --gaze camera -o morning.mp4

    Example: thnerf render subjects/me --audio speech.wav -o speech.mov --size 1280x720

    Args:
        subject: A trained subject folder.
        audio: Any sound file (wav, mp3, flac, the sound of an mp4 …), any rate, channels and length.
        out: What to write, by its ending: .mp4; .mov (ProRes 4444 with alpha and PCM sound); a folder or frames/%05d.png (RGBA pictures);
            frames/%05d.exr (premultiplied linear float RGBA). All but mp4 are transparent unless --background is given.
        track: Instead of predicting: fit (the footage's own motion, with its sound) or the .npz of a Track, edited, imported or retargeted,
            which sets everything; it is silent without --audio.
        dub: Give the footage a new mouth: its frames, times, head and eyes stay, only the lower face is drawn anew.
        background: own (the footage's, as fitted), none (transparent), green, #RRGGBB, a picture, or a video (begins again where it is too short).
        size: N or WIDTHxHEIGHT, px; the fitted size by default. The whole fitted crop is shown, as large as it fits, on the lower edge; outside
            it nothing is known: the footage's background goes on blurred, the shoulders fall away at a slope.
        full_frame: Put the picture back into the footage, at its size and frame rate, with a soft edge. The head moves as in the footage
            (with another pose the shoulders would break at the edge), which plays forward and back while the speech is longer.
        camera: orbit, orbit:DEGREES (swings to both sides in 6 s; 15, at most 60: what the footage never showed frays, and the neck parts from the jaw), or a .npz or .json with
            world_to_camera (T,4,4), mm, from the footage's camera. The shoulders are flat and turn as a plane; the background stays.
        depth: Write the head's depth, too: %05d.exr in mm (Z, A), or a video or PNG pictures, white near and black far.
        normals: Write the head's normals, too: x right, y up, z to the viewer; %05d.exr as they are, else (n + 1) / 2.
    """
    from recon.subject import Subject
    from thnerf.synthesis import render_speech

    check_place(out, depth, normals)
    return render_speech(Subject.open(subject), audio, out, run=shared.run, direction=direction, background=background, device=shared.device, size=size,
                         full_frame=full_frame, track=track, camera=camera, depth=depth, normals=normals, dub=dub)


def stream(
    subject: Positional[Path],
    audio: Annotated[str, arg(aliases=["-a"])] = "-",
    frames: Optional[str] = None,
    livelink: Optional[str] = None,
    latency: Optional[float] = None,
    direction: DirectedLive = LiveDirection(),
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Speak what comes in, while it comes: motion as JSON lines on stdout, one a frame; Ctrl-C or the end of the sound ends it.

    Each line has time (s), expression {name: value}, rotation, translation, gaze and valid, as those of thnerf track. With --json a last line sums up.

    Example: arecord -t raw -f S16_LE -r 16000 -c 1 | thnerf stream subjects/me --livelink 192.168.1.20:11111

    Example: thnerf stream subjects/me --audio speech.wav --frames raw | ffplay -f rawvideo -pixel_format rgb24 -video_size 256x256 -framerate 25 -

    Args:
        subject: A trained subject folder.
        audio: - for 16-bit little-endian mono samples at 16000 Hz on stdin, or a sound file.
        frames: Draw the frames, too: a video or pictures, as render's --out; or raw, bare RGB24 on stdout instead of the lines.
        livelink: HOST:PORT of Unreal's Live Link, which gets every frame over UDP.
        latency: ms that a frame may come after the moment it shows; 173 by default. More hears further ahead and is more exact, up to what
            the network was trained with; at least 93.
    """
    import sys

    from recon.subject import Subject
    from thnerf.sinks import FrameSink, LineSink, RawSink
    from thnerf.stream import pcm_packets, sound_packets, stream_speech

    if frames == "raw" and shared.json:
        raise InputError("--frames raw fills stdout with pictures, and --json would write behind them; leave out one of them")
    check_place(None if frames == "raw" else frames)
    wishes = direction.whole()
    opened = Subject.open(subject)
    sinks: list[Any] = [] if frames == "raw" else [LineSink(sys.stdout)]
    if livelink is not None:
        from thnerf.export.livelink_udp import LiveLinkSink

        sinks.append(LiveLinkSink(livelink, opened.track.fps, opened.path.resolve().name))
    if frames is not None:
        from thnerf.trainer import load_renderer

        renderer = load_renderer(opened.run(shared.run), opened, shared.device)
        sinks.append(RawSink(sys.stdout.buffer, renderer) if frames == "raw" else FrameSink(frames, opened, renderer))
    packets = pcm_packets(sys.stdin.buffer) if audio == "-" else sound_packets(Path(audio))
    return stream_speech(opened, packets, sinks, run=shared.run, direction=wishes, latency=latency)


def animate(
    audio: Positional[Optional[Path]] = None,
    out: Annotated[Path, arg(aliases=["-o"])] = Path("track.npz"),
    preview: Optional[Path] = None,
    fps: float = 25.0,
    direction: Directed = Direction(),
    shared: Shared = Common(),
) -> dict[str, Any]:
    """Turn speech into motion without a subject: a Track of the default head, for thnerf export or any 3D tool.

    Example: thnerf animate speech.wav -o track.npz --preview head.mp4

    Args:
        audio: Any sound file, of any voice and language; or nothing, with --text.
        out: Where the Track goes (.npz).
        preview: Render the face model with the sound to this .mp4, too.
        fps: Frames per second of the Track.
    """
    from thnerf.animate import render_preview
    from thnerf.performance import animated

    if out.suffix != ".npz":
        raise InputError(f"--out takes the name of a Track, ending in .npz, not {out.name!r}; --preview renders a video")
    if preview is not None and preview.suffix.lower() != ".mp4":
        raise InputError(f"--preview takes the name of a video, ending in .mp4, not {preview.name!r}")
    check_place(out, preview)
    played = animated(audio, direction, fps)
    track = played.track
    track.save(out)
    return {"track": str(out), "frames": len(track), "fps": track.fps, **(render_preview(track, preview, played.sound) if preview is not None else {})}


def evaluate(subject: Positional[Path], lpips: Optional[Path] = None, shared: SharedRun = RunChoice()) -> dict[str, Any]:
    """Measure a run on the held-out frames: metrics.json, a table and a side-by-side video.

    Example: thnerf evaluate subjects/me

    Args:
        subject: A trained subject folder.
        lpips: Measure LPIPS of the face box, too (lower is better), with the weights in this folder or file: AlexNet's or VGG16's and the heads of the lpips package.
    """
    from recon.subject import Subject
    from thnerf.evaluate import evaluate as run_evaluation
    from thnerf.metrics import format_table

    opened = Subject.open(subject)
    check_place(opened.run(shared.run))
    result = run_evaluation(opened, run=shared.run, device=shared.device, lpips=lpips)
    if not shared.json:
        print(format_table(result))
    return result


def view(
    subject: Positional[Path],
    port: int = 8080,
    open: bool = True,
    track: Optional[str] = None,
    audio: Optional[Path] = None,
    out: Annotated[Optional[Path], arg(aliases=["-o"])] = None,
    shared: SharedRun = RunChoice(),
) -> dict[str, Any]:
    """Look at a subject in the browser: mesh and field beside the footage, timeline with sound, sliders that edit the Track; Ctrl-C ends it.

    Example: thnerf view subjects/me

    Args:
        subject: A subject folder; the field is there when it is trained.
        port: On 127.0.0.1; the next free one where it is taken.
        open: Open the page in the default browser.
        track: A Track .npz to look at instead of the fitted one.
        audio: Sound to hear; without --track, the motion predicted for it is what you look at.
        out: Folder that the page's buttons write into; exports/ in the subject folder by default.
    """
    from recon.subject import Subject
    from thnerf.viewer.server import view_subject

    check_place(out)
    return view_subject(Subject.open(subject), run=shared.run, device=shared.device, port=port, open_browser=open, track=track, audio=audio, folder=out)
