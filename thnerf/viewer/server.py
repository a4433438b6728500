"""Serving the viewer's page on this machine, and ``thnerf view``."""

from __future__ import annotations

import contextlib
import re
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any, Iterator

from recon.subject import Subject
from render.files import InputError
from thnerf.viewer.edits import channels_of
from thnerf.viewer.page import Page
from thnerf.viewer.pictures import Pictures
from thnerf.viewer.session import Session

HOST = "127.0.0.1"
ORIGINS = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?")


def start_server(port: int, label: str) -> Any:
    """A viser server on 127.0.0.1 (the next free port from `port`) that refuses pages of other origins and cannot be shared to the outside.

    Raises InputError when viser is not installed or the port is no port.
    """
    try:
        import rich
        import viser
        import websockets.asyncio.server
    except ImportError:
        raise InputError("thnerf view needs the package viser; pip install viser (or thnerf's extra: viewer)") from None
    if not 0 <= port <= 65535:
        raise InputError(f"--port takes 0 (any free one) to 65535, not {port}")

    class Server(viser.ViserServer):
        """Stays on this machine."""

        def request_share_url(self, verbose: bool = True) -> None:
            """No tunnel: a person's face is not for a public address."""
            return None

    rich.reconfigure(quiet=True)  # viser's only use of it; its banner and notices would stand before --json
    # viser does not pass `origins` on, so any page in the browser could talk to it; it looks the function up when it starts.
    serve = websockets.asyncio.server.serve
    websockets.asyncio.server.serve = partial(serve, origins=[ORIGINS, None])
    try:
        return Server(host=HOST, port=port, label=label, verbose=False)
    finally:
        websockets.asyncio.server.serve = serve


@contextlib.contextmanager
def open_page(subject: Subject, run: str = "default", device: str = "auto", port: int = 8080, track: str | Path | None = None,
              audio: str | Path | None = None, folder: str | Path | None = None) -> Iterator[Page]:
    """A page that is served, not yet drawing (`Page.run`). See `view_subject`."""
    from thnerf.export import make_scene
    from thnerf.synthesis import driving_track

    motion = driving_track(subject, track, subject.run(run)) if track is not None else make_scene(subject.path, audio=audio, run=run).track
    weights = subject.run(run) / "field.safetensors"
    if not weights.exists() and run != "default":
        raise InputError(f"{subject.run(run)} is not a trained run; train it with: thnerf train {subject.path} --run {run}")
    session = Session(motion, channels_of(subject.model, motion))
    alike = len(motion) == len(subject.track) and motion.fps == subject.track.fps
    heard = Path(audio) if audio is not None else subject.audio_path if subject.has_audio and alike else None
    server = start_server(port, f"thnerf · {subject.path.resolve().name}")
    try:
        renderer = None
        if weights.exists():
            from thnerf.trainer import load_renderer

            renderer = load_renderer(subject.run(run), subject, device)
        yield Page(server, session, Pictures(subject, renderer), heard, Path(folder or subject.path / "exports"))
    finally:
        server.stop()


def view_subject(subject: Subject, run: str = "default", device: str = "auto", port: int = 8080, open_browser: bool = True, track: str | Path | None = None,
                 audio: str | Path | None = None, folder: str | Path | None = None) -> dict[str, Any]:
    """Serve the viewer until Ctrl-C; returns {url, edits}.

    port: the first that is tried; 0 takes any. track: 'fit' or a Track's .npz instead of the fitted one. audio: its sound; without `track` the motion
    predicted for that sound. folder: where the page writes, SUBJECT/exports by default.
    Raises InputError when viser is missing, and for a run, track or sound that cannot be used.
    """
    with open_page(subject, run, device, port, track, audio, folder) as page:
        url = f"http://{HOST}:{page.server.get_port()}"
        print(f"open {url} (Ctrl-C ends)", file=sys.stderr, flush=True)
        if page.pictures.renderer is None:
            print(f"note: {subject.path} is not trained, so there is no field to look at; thnerf train {subject.path}", file=sys.stderr)
        if open_browser:
            webbrowser.open(url)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            page.run()
        return {"url": url, "edits": len(page.session.edits)}
