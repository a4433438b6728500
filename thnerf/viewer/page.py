"""The page: viser's widgets around a `Session`, and the loop that draws what a browser looks at.

Widgets only write into the session; one loop, in the thread that calls `Page.run`, draws the newest state, so slow pictures never queue up.
Files are written into one folder only.
"""

from __future__ import annotations

import queue
import re
import tempfile
import threading
import time
import warnings
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, Callable, Coroutine

import numpy as np

from recon.track import Track
from render.files import InputError, StageError
from thnerf.viewer.edits import GROUPS
from thnerf.viewer.pictures import LARGEST_3D, Pictures, fit_into, orbit_camera, sound_url, wxyz_matrix
from thnerf.viewer.session import Session
from thnerf.viewer.widgets import Curves, Sound, assign

FOLLOW, AROUND, WHOLE = "follow the track", "edit around this frame", "edit the whole track"
UPLOAD_LIMIT = 256 * 2**20
HELD = 0.7
"""Seconds for which a slider that a user moved is left alone."""
TIMELINE = -1


class Page:
    """Everything on the page. server: a viser server. folder: where the page's buttons write. audio: the track's sound, if any.

    Raises InputError for sound that cannot be read.
    """

    def __init__(self, server: Any, session: Session, pictures: Pictures, audio: Path | None, folder: Path) -> None:
        self.server, self.session, self.pictures, self.audio, self.folder = server, session, pictures, audio, folder
        self._heard_seconds = len(session.track) / session.track.fps  # what the sound goes with
        self.stopped = threading.Event()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._touched: dict[int, float] = {}
        self._drawn: deque[float] = deque(maxlen=40)
        self._aspects: dict[int, float] = {}
        self._refreshed = 0.0
        self._shown: tuple[int, int] | None = None
        self._build()

    # --- widgets

    def _build(self) -> None:
        gui, server = self.server.gui, self.server
        gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False, control_width="large")
        server.scene.set_up_direction("-y")
        self._place_camera()
        gui.main_panel.dock_right()
        self._build_player(gui)
        self.curves = Curves(gui, self.session)
        self._build_files(gui)
        panel = gui.add_panel()
        with panel.add_tab("Edit"):
            self._build_edit(gui)
        panel.dock_left()
        panel.set_width(330)
        server.on_client_connect(self._connected)
        server.on_client_disconnect(lambda client: self._aspects.pop(client.client_id, None))

    def _build_player(self, gui: Any) -> None:
        views = self.pictures.views(self.session.track)
        first = next(view for view in ("field", "mesh on footage", "mesh in 3D") if view in views)
        self.view = gui.add_dropdown("View", views, initial_value=first, hint="the 3D views turn with the mouse; the others are seen through the fitted camera")
        self.view.on_update(lambda _: self.session.touch())
        self.play = gui.add_button("Play", hint="space bar")
        self.play.on_click(lambda _: self._toggle())
        self.time = gui.add_slider("Frame", 0, max(1, len(self.session.track) - 1), 1, 0)
        self.time.on_update(self._if_user(self._scrub))
        self.status = gui.add_markdown("")
        self.loop = gui.add_checkbox("Loop", True)
        self.loop.on_update(lambda _: setattr(self.session, "loop", self.loop.value))
        self.plain = gui.add_checkbox("Without edits", False, hint="compare with the track as it was")
        self.plain.on_update(lambda _: self.session.touch())
        self.sound = Sound(gui, self.session, sound_url(self.audio, len(self.session.track) / self.session.track.fps))
        gui.add_command("Play or pause", hotkey="SPACE").on_trigger(lambda _: self._toggle())
        gui.add_command("Next frame", hotkey="ARROWRIGHT").on_trigger(lambda _: self._step(1))
        gui.add_command("Previous frame", hotkey="ARROWLEFT").on_trigger(lambda _: self._step(-1))
        gui.add_command("Undo the last edit", hotkey="Z", modifier="cmd/ctrl").on_trigger(lambda _: self.session.undo())

    def _build_edit(self, gui: Any) -> None:
        self.mode = gui.add_dropdown("Sliders", (FOLLOW, AROUND, WHOLE), initial_value=AROUND,
                                     hint="follow: show the track; around: what you set at this frame fades out on both sides; whole: all frames move by as much")
        self.mode.on_update(lambda _: self._mode_changed())
        self.reach = gui.add_number("Fade out, s", 0.4, min=0.04, max=60.0, step=0.04)
        back = gui.add_button_group("Edits", ("Undo", "Reset all"), hint="Ctrl-Z undoes, too")
        back.on_click(lambda _: self.session.undo() if back.value == "Undo" else self.session.reset())
        self.sliders = []
        order = [*GROUPS, "other", "head", "position", "gaze"]
        for name in sorted({c.group for c in self.session.channels}, key=order.index):
            members = [c for c in self.session.channels if c.group == name]
            with gui.add_folder(name.capitalize(), expand_by_default=name in ("jaw", "head", "gaze")):
                for channel in members:
                    self._add_slider(gui, channel)
                again = gui.add_button(f"Reset {name}", color="gray")
                again.on_click(partial(self._reset_group, name))
        self.sliders = [slider for _, slider in sorted(self.sliders, key=lambda pair: pair[0])]

    def _add_slider(self, gui: Any, channel: Any) -> None:
        number = self.session.channels.index(channel)
        step = 0.01 if channel.high - channel.low <= 8 else 0.1
        low, high = (float(np.round(v / step) * step) for v in (channel.low, channel.high))
        slider = gui.add_slider(channel.name, low, high, step, low, hint=channel.hint or None)

        def moved() -> None:
            if self.mode.value != FOLLOW:
                self._touched[number] = time.monotonic()
                self._paused_by_edit()
                self.session.set(number, slider.value, None if self.mode.value == WHOLE else float(self.reach.value))

        slider.on_update(self._if_user(moved))
        self.sliders.append((number, slider))

    def _build_files(self, gui: Any) -> None:
        from thnerf.export import FORMATS

        with gui.add_folder("Files"):
            gui.add_markdown(f"Written into `{self.folder}`, and offered to the browser.")
            name = gui.add_text("Name", "edited")
            save = gui.add_button("Save Track (.npz)", hint="thnerf render --track plays it")
            load = gui.add_upload_button("Load Track or edited file", hint="a Track .npz, or what another program made of an export: " + ", ".join(k for k, f in FORMATS.items() if f.two_way))
            kind = gui.add_dropdown("Format", tuple(k for k in FORMATS if k != "npz"), hint="thnerf export has these and more options; docs/dcc.md")
            export = gui.add_button("Export")
        save.on_click(lambda event: self._do(event, lambda: self._export(event.client, name.value, "npz")))
        export.on_click(lambda event: self._do(event, lambda: self._export(event.client, name.value, kind.value)))
        load.on_upload(lambda event: self._do(event, lambda: self._load(load.value)))

    @staticmethod
    def _if_user(act: Callable[[], None]) -> Callable[[Any], Coroutine[Any, Any, None]]:
        """A callback that ignores changes that the page itself made. It runs where the message arrives, before anything else can set the widget."""

        async def changed(event: Any) -> None:
            if event.client is not None:
                act()

        return changed

    # --- what widgets do

    def _toggle(self) -> None:
        self.session.pause() if self.session.playing else self.session.play()
        self.sound.tell()

    def _seek(self, frame: int) -> None:
        self.session.seek(frame)
        self.sound.tell()

    def _scrub(self) -> None:
        self._touched[TIMELINE] = time.monotonic()
        self._seek(int(self.time.value))

    def _step(self, by: int) -> None:
        self.session.pause()
        self._seek(self.session.frame + by)

    def _paused_by_edit(self) -> None:
        if self.session.playing:
            self.session.pause()
            self.sound.tell()

    def _reset_group(self, group: str, _: Any) -> None:
        for number, channel in enumerate(self.session.channels):
            if channel.group == group:
                self.session.reset(number)

    def _mode_changed(self) -> None:
        for slider in self.sliders:
            slider.disabled = self.mode.value == FOLLOW
        self.reach.disabled = self.mode.value != AROUND

    def _do(self, event: Any, work: Callable[[], str]) -> None:
        """Do something long in the drawing thread, between two pictures; its result or reason of failure becomes a notice."""

        def job() -> None:
            try:
                title, body, colour = "Done", work(), "green"
            except (InputError, StageError) as error:
                title, body, colour = "That did not work", str(error), "red"
            except Exception as error:  # of a library behind an export: the viewer goes on, the user reads it
                title, body, colour = "That did not work", f"{type(error).__name__}: {error}", "red"
            if event.client is not None:
                event.client.add_notification(title, body, color=colour, auto_close_seconds=None if colour == "red" else 8.0)

        self._jobs.put(job)
        self.session.touch()

    def _export(self, client: Any, name: str, kind: str) -> str:
        from thnerf.export import FORMATS, Scene, export_scene

        name = name.strip()
        if not re.fullmatch(r"\w[\w .+-]{0,79}", name):
            raise InputError(f"a name has letters, digits, spaces, dots, plus and minus, and no folder, unlike {name!r}")
        path, subject, track = self.folder / f"{name}{FORMATS[kind].suffixes[0]}", self.pictures.subject, self.session.result()
        audio = self.audio if len(track) / track.fps == self._heard_seconds else None
        export_scene(Scene(track, name, subject.model, audio, subject), path, kind)
        if client is not None:
            client.send_file_download(path.name, path.read_bytes())
        return f"{path} has {len(self.session.track)} frames and {len(self.session.edits)} edits"

    def _load(self, upload: Any) -> str:
        from thnerf.export.importer import import_track

        if len(upload.content) > UPLOAD_LIMIT:
            raise InputError(f"{upload.name} is larger than {UPLOAD_LIMIT >> 20} MiB; load it with thnerf import and thnerf view --track")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (re.sub(r"[^\w.-]", "_", Path(upload.name).name) or "file")
            path.write_bytes(upload.content)
            try:
                track, notes = (Track.load(path), []) if path.suffix == ".npz" else self._imported(import_track(path, self.pictures.subject))
            except InputError as error:
                raise InputError(str(error).replace(f"{folder}/", "")) from None
        self.session.open(track)
        self.time.max = max(1, len(track) - 1)
        self.view.options = self.pictures.views(track)
        self.sound.allow(len(track) / track.fps == self._heard_seconds)
        return " ".join([f"{upload.name}: {len(track)} frames at {track.fps:g} per second.", *notes])

    @staticmethod
    def _imported(result: tuple[Track, dict[str, Any]]) -> tuple[Track, list[str]]:
        return result[0], result[1]["notes"]

    # --- clients

    def _place_camera(self) -> None:
        """Begin where the fitted camera stands, looking at the head."""
        track, camera = self.session.track, self.server.initial_camera
        camera.position = (0.0, 0.0, 0.0)
        camera.look_at = tuple(float(v) / 1000 for v in np.median(track.translation, 0) * [0, 0, 1])
        camera.up = (0.0, -1.0, 0.0)
        camera.fov = float(2 * np.arctan(track.camera.height / 2 / track.camera.K[1, 1]))
        camera.near = 0.005

    def _connected(self, client: Any) -> None:
        client.camera.on_update(self._camera_moved)
        self.sound.tell()
        self.session.touch()

    def _camera_moved(self, camera: Any) -> None:
        aspect = camera.aspect
        if self.view.value.endswith("3D") or self._aspects.get(camera.client.client_id) != aspect:
            self._aspects[camera.client.client_id] = aspect
            self.session.touch()

    # --- the loop

    def run(self) -> None:
        """Draw until `stopped` is set. Raises what drawing raises, apart from what a user can mend, which the page shows."""
        seen = None
        warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # a tab that is closed while a picture is on its way
        while not self.stopped.is_set():
            while not self._jobs.empty():
                self._jobs.get()()
            clients = list(self.server.get_clients().values())
            state = self.session.take(seen, 0.1)
            if state is None or not clients:
                self._refresh(final=True)
                if not clients:
                    self.session.pause()
                    self.stopped.wait(0.1)
                continue
            seen = state
            self._show(clients, state[1])
            self._refresh(final=False)

    def _show(self, clients: list[Any], frame: int) -> None:
        """One picture for every browser."""
        view = self.view.value
        part = self.session.snapshot(frame, edited=not self.plain.value)
        flat: np.ndarray | None = None
        for client in clients:
            try:
                camera = client.camera
                aspect = float(np.clip(camera.aspect, 0.2, 5.0))
                if view.endswith("3D"):
                    rows = LARGEST_3D if view.startswith("mesh") else part.camera.height
                    picture = self.pictures.draw(view, part, frame, orbit_camera(wxyz_matrix(camera.wxyz), camera.position, camera.fov, aspect, rows))
                else:
                    flat = self.pictures.draw(view, part, frame) if flat is None else flat
                    picture = fit_into(flat, aspect)[0]
            except InputError as error:
                self.status.content = f"**{error}**"
                return
            client.scene.set_background_image(picture, format="jpeg", jpeg_quality=90)
        self._drawn.append(time.monotonic())

    @property
    def rate(self) -> float:
        """Pictures a second of late."""
        now = time.monotonic()
        recent = [t for t in self._drawn if now - t < 2]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0

    def _refresh(self, final: bool) -> None:
        """Bring the widgets up to date: a few times a second while something moves, once when it has stopped. At rest nothing is set that a user may
        be about to change."""
        now, session = time.monotonic(), self.session
        frame = session.frame
        state = (session.version, frame)
        if state == self._shown or (not final and now - self._refreshed < 0.2):
            return
        self._refreshed, self._shown = now, state
        assign(self.play, "label", "Pause" if session.playing else "Play")
        held = {number for number, when in self._touched.items() if now - when < HELD}
        if held:
            self._shown = None  # whoever drags a slider knows its value: look again later
        if TIMELINE not in held:
            assign(self.time, "value", frame)
        for number, (slider, value) in enumerate(zip(self.sliders, session.values(frame))):
            if number not in held:
                assign(slider, "value", round(float(min(max(value, slider.min), slider.max)) / slider.step) * slider.step)
        fps = session.track.fps
        valid = "" if session.track.valid[frame] else ", no face found in the footage here"
        drawn = f", {self.rate:.0f} pictures/s" if session.playing else ""
        assign(self.status, "content", f"{frame / fps:.2f} of {len(session.track) / fps:.2f} s, {len(session.edits)} edits{drawn}{valid}")
        self.curves.draw(frame)
        self.sound.keep()
