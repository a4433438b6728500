"""The viewer: laws of its edits, clock and pictures; and the page itself in a real browser, where there is a Chromium."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from recon.model import load_model, save_model
from recon.subject import Subject, write_subject
from recon.track import Track
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, head_angles
from render.video import load_video
from synthetic import make_subject, toy_model, toy_track
from test_export import ARKIT, make_track
from thnerf.config import FieldConfig, TorsoConfig, TrainConfig
from thnerf.viewer import edits as editing
from thnerf.viewer import pictures as viewer
from thnerf.viewer.edits import Edit, apply_edits, channel_values, channels_of
from thnerf.viewer.session import Session

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


def session(frames=60, clips=(0,), clock=time.monotonic):
    track = make_track(frames, ARKIT).replace(clip_starts=clips)
    model = dataclasses.replace(toy_model(), bounds=None)
    return Session(track, channels_of(model, track), clock)


def number(s, name):
    return [c.name for c in s.channels].index(name)


# --- edits


@pytest.mark.parametrize("name, value", [("jawOpen", 0.93), ("head yaw", -11.0), ("head pitch", 7.5), ("head roll", -4.0), ("head x", 12.0), ("head z", 640.0),
                                         ("gaze yaw", 9.0), ("gaze pitch", -5.0)])
@pytest.mark.parametrize("reach", [None, 0.2])
def test_a_channel_becomes_what_it_is_set_to(name, value, reach):
    s = session()
    s.seek(30)
    s.set(number(s, name), value, reach)
    assert s.values()[number(s, name)] == pytest.approx(value, abs=1e-3)
    assert channel_values(s.result())[30, number(s, name)] == pytest.approx(value, abs=1e-3)


def test_an_edit_around_a_frame_eases_out_and_leaves_the_rest_bit_for_bit():
    s = session(frames=80, clips=(0, 40))
    s.seek(36)
    s.set(number(s, "jawOpen"), 1.0, 0.4)  # 10 frames, so beyond the clip's end
    before, after = s.track, s.result()
    touched = (after.expression != before.expression).any(1)
    assert set(np.flatnonzero(touched)) <= set(range(27, 40)) and touched[36]
    shift = after.column("jawOpen")[27:37] - before.column("jawOpen")[27:37]
    assert (np.diff(shift) >= -1e-6).all() or (np.diff(shift) <= 1e-6).all()
    for name in ("rotation", "translation", "gaze", "torso"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    others = [i for i, n in enumerate(before.expression_names) if n != "jawOpen"]
    np.testing.assert_array_equal(after.expression[:, others], before.expression[:, others])


def test_an_edit_of_the_whole_track_moves_every_frame_alike():
    s = session(clips=(0, 25))
    s.set(number(s, "head yaw"), s.values()[number(s, "head yaw")] + 5, None)
    turned = np.degrees(head_angles(s.result().rotation) - head_angles(s.track.rotation))
    np.testing.assert_allclose(turned, np.tile([5, 0, 0], (60, 1)), atol=1e-4)


def test_edits_add_up_in_any_order_and_undo_takes_back_exactly_one():
    s = session()
    jaw, yaw = number(s, "jawOpen"), number(s, "head yaw")
    edits = [Edit(jaw, 0.02, 20, 8), Edit(jaw, -0.01, None), Edit(yaw, 4.0, 22, 12)]
    one, other = (apply_edits(s.track, order, s.channels) for order in (edits, edits[::-1]))
    np.testing.assert_allclose(one.expression, other.expression, atol=1e-6)
    assert angle_between(one.rotation, other.rotation).max() < 1e-6
    s.seek(20)
    s.set(jaw, 0.5, 0.3)
    first = s.result()
    s.set(yaw, 3.0, None)
    s.undo()
    np.testing.assert_array_equal(s.result().rotation, first.rotation)
    s.undo()
    assert s.result() is not None and not s.edits
    np.testing.assert_array_equal(s.result().expression, s.track.expression)


def test_dragging_a_slider_is_one_edit():
    s = session()
    s.seek(10)
    for value in np.linspace(0, 1, 50):
        s.set(number(s, "jawOpen"), float(value), 0.4)
    assert len(s.edits) == 1 and s.values()[number(s, "jawOpen")] == pytest.approx(1)
    s.seek(11)
    s.set(number(s, "jawOpen"), 0.2, 0.4)
    assert len(s.edits) == 2


def test_coefficients_stop_at_their_bounds_and_come_back_at_once():
    s = session()
    jaw = number(s, "jawOpen")
    s.set(jaw, 1.0, None)
    assert s.result().column("jawOpen").max() <= 1.0
    s.set(jaw, 0.3, None)
    assert s.values()[jaw] == pytest.approx(0.3, abs=1e-6)
    outside = s.track.replace(expression=s.track.expression + 2)
    kept = apply_edits(outside, [Edit(jaw, 0.5, 5, 3)], s.channels)
    np.testing.assert_array_equal(kept.expression[20:], outside.expression[20:])
    assert (kept.expression <= outside.expression).all()


def test_lids_follow_an_edited_gaze():
    s = session()
    still = s.track.replace(gaze=np.zeros_like(s.track.gaze), expression=np.zeros_like(s.track.expression))
    up = apply_edits(still, [Edit(number(s, "gaze pitch"), 15.0)], s.channels)
    assert up.column("eyeLookUpLeft") == pytest.approx(0.5, abs=1e-5) and up.column("eyeLookDownLeft").max() == 0
    np.testing.assert_allclose(up.gaze[..., 1], np.radians(15), atol=1e-6)


def test_a_range_of_an_edited_track_is_the_edited_range():
    s = session(clips=(0, 33))
    edits = [Edit(number(s, "jawOpen"), 0.4, 30, 9), Edit(number(s, "head x"), 3.0), Edit(number(s, "gaze yaw"), -4.0, 40, 20)]
    whole = apply_edits(s.track, edits, s.channels)
    for part in (slice(0, 20), slice(28, 36), slice(59, 60)):
        piece = apply_edits(s.track, edits, s.channels, part)
        for name in ("expression", "rotation", "translation", "gaze"):
            np.testing.assert_allclose(getattr(piece, name), getattr(whole, name)[part], atol=1e-6)


def test_curves_are_the_channels_with_and_without_edits():
    s = session(frames=200)
    chosen = [number(s, n) for n in ("jawOpen", "head yaw", "gaze pitch")]
    s.seek(50)
    s.set(chosen[0], 0.9, 0.5)
    frames, after, before = s.curves(chosen, slice(None))
    np.testing.assert_allclose(before, channel_values(s.track)[:, chosen])
    np.testing.assert_allclose(after, channel_values(s.result())[:, chosen])
    thin = s.curves(chosen, slice(20, 180), most=40)
    assert len(thin[0]) == 40 and thin[0][0] == 20
    np.testing.assert_allclose(thin[1], after[thin[0]])


def test_models_without_bounds_and_with_joints_have_sliders():
    model = load_model()
    track = make_track(3, model.expression_names).replace(model_id=model.model_id)
    channels = channels_of(model, track)
    assert len(channels) == 52 + 8 and {c.group for c in channels} == {*editing.GROUPS, "head", "position", "gaze"}
    assert all(c.low < c.high for c in channels)
    other = channels_of(dataclasses.replace(toy_model(), bounds=None), make_track(3, ["expr_0", "expr_1"]))
    assert (other[0].low, other[0].high, other[0].group) == (-3, 3, "other")


# --- time


def test_the_clock_plays_stops_seeks_and_loops():
    now = [100.0]
    s = session(frames=50, clock=lambda: now[0])
    s.play()
    now[0] += 0.5
    assert s.frame == 12 and s.playing
    s.seek(40)
    now[0] += 0.2
    assert s.frame == 45
    now[0] += 0.3
    assert s.playing and s.frame == 2
    s.loop = False
    now[0] += 5
    assert s.frame == 49 and not s.playing
    s.play()
    assert s.frame == 0
    now[0] += 0.41
    s.pause()
    now[0] += 3
    assert s.frame == 10 and not s.playing


def test_a_slow_drawer_sees_the_newest_state_only():
    s, drawn = session(), []
    jaw = number(s, "jawOpen")
    done = threading.Event()

    def draw():
        seen = None
        while not (done.is_set() and seen is not None and seen[0] == s.version):
            state = s.take(seen, 0.05)
            if state is not None:
                seen = state
                time.sleep(0.02)
                drawn.append(s.values()[jaw])

    thread = threading.Thread(target=draw)
    thread.start()
    for value in np.linspace(0, 1, 2000):
        s.set(jaw, float(value), None)
    done.set()
    thread.join(10)
    assert not thread.is_alive() and len(drawn) < 500 and drawn[-1] == pytest.approx(1.0)


def test_tracks_that_do_not_fit_are_refused():
    s = session()
    with pytest.raises(InputError, match="retarget"):
        s.open(s.track.replace(model_id="another"))
    with pytest.raises(InputError, match="no frames"):
        s.open(s.track[0:0])
    with pytest.raises(InputError, match="another subject"):
        s.open(s.track.replace(torso=np.zeros((len(s.track), 9))))
    with pytest.raises(InputError, match="no frames"):
        Session(s.track[0:0], s.channels)


# --- pictures


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Subject:
    """A toy subject with sound, its model beside it, trained for some seconds."""
    import soundfile

    from thnerf.trainer import train

    path = tmp_path_factory.mktemp("viewer") / "toy"
    made = make_subject(path, frames=66, size=64)
    save_model(path / "model.npz", toy_model())
    small = TrainConfig(steps=250, samples_per_step=8000, preview_seconds=1e9, save_seconds=1e9,
                        head=FieldConfig(levels=6, log2_entries=12, finest_resolution=96, width=16, expression_modes=2, occupancy=48, step_mm=6),
                        torso=TorsoConfig(levels=4, log2_entries=10, finest_resolution=64, width=16))
    train(made, small, toy_model())
    soundfile.write(path / "audio.wav", np.random.default_rng(0).normal(0, 0.1, int(66 / 25 * 16000)), 16000)
    write_subject(path, {**made.info, "has_audio": True, "config": {"model": str(path / "model.npz")}})
    return Subject.open(path)


def test_footage_by_number_is_the_video(toy):
    footage, video = viewer.Footage(toy), load_video(toy.video_path)
    footage.KEEP = 5
    order = [0, 1, 2, 5, 30, 31, 29, 65, 64, 3, *np.random.default_rng(0).integers(0, 66, 20)]
    for index in order:
        np.testing.assert_array_equal(footage.frame(int(index)), video[index])
    with pytest.raises(IndexError):
        footage.frame(66)


def test_views_draw_what_they_say(toy):
    from thnerf.trainer import load_renderer

    pictures = viewer.Pictures(toy, load_renderer(toy.run(), toy, "cpu"))
    s = Session(toy.track, channels_of(toy.model, toy.track))
    assert pictures.views(s.track) == viewer.VIEWS
    assert pictures.views(s.track[:20]) == ("field", "mesh in 3D", "field in 3D")
    drawn = {view: pictures.draw(view, s.snapshot(12), 12, toy.track.camera.at(slice(12, 13))) for view in viewer.VIEWS}
    side = drawn["side by side"]
    np.testing.assert_array_equal(side, np.hstack([drawn["footage"], drawn["mesh on footage"], drawn["field"]]))
    assert np.abs(drawn["field"].astype(float) - drawn["footage"]).mean() < 15
    assert np.abs(drawn["mesh on footage"].astype(float) - drawn["footage"]).max() > 20
    s.set(number(s, "jawOpen"), 1.0)
    s.edits = [Edit(number(s, "head yaw"), 12.0)]
    for view in ("mesh on footage", "field", "mesh in 3D"):
        assert np.abs(pictures.draw(view, s.snapshot(12), 12, toy.track.camera.at(slice(12, 13))).astype(float) - drawn[view]).mean() > 0.5, view
    from recon.overlay import posed_vertices

    other = s.snapshot(12).replace(shape=np.full(1, 2.0))
    for part in (other, s.snapshot(12)):
        np.testing.assert_allclose(pictures._posed(part), posed_vertices(toy.model, part, 0), atol=1e-3)
    untrained = viewer.Pictures(toy)
    assert untrained.views(s.track) == ("footage", "mesh on footage", "mesh in 3D")
    with pytest.raises(InputError, match="no view"):
        untrained.draw("field", s.snapshot(0), 0)


def test_the_browser_camera_at_the_fitted_place_is_the_fitted_camera():
    track = toy_track(4, 64)
    K = track.camera.K
    made = viewer.orbit_camera(np.eye(3), np.zeros(3), 2 * np.arctan(32 / K[1, 1]), 1.0, 64)
    points = np.random.default_rng(0).normal(0, 50, (1, 20, 3)) + [0, 0, 900]
    np.testing.assert_allclose(made.project(points), track.camera.at(slice(0, 1)).project(points), atol=1e-6)
    R = axis_angle_to_matrix(np.array([0.1, -0.4, 0.2]))
    moved = viewer.orbit_camera(R, np.array([0.1, -0.2, 0.3]), 0.5, 1.5, 100)
    ahead = (np.array([100, -200, 300]) + 700 * R[:, 2])[None, None]
    np.testing.assert_allclose(moved.project(ahead)[0, 0], [75, 50], atol=1e-6)


def test_eyes_turn_with_the_identity_added_up_once():
    from types import SimpleNamespace

    from recon.overlay import posed_vertices

    model = load_model()
    rng = np.random.default_rng(0)
    part = make_track(1, model.expression_names).replace(model_id=model.model_id, shape=rng.normal(size=40), gaze=rng.uniform(-0.4, 0.4, (1, 2, 2)))
    subject = SimpleNamespace(model=model, video_path=None, track=part)
    np.testing.assert_allclose(viewer.Pictures(subject)._posed(part), posed_vertices(model, part, 0), atol=2e-3)


@pytest.mark.parametrize("aspect", [0.4, 1.0, 1.3333, 2.7])
def test_margins_keep_the_picture_whole(aspect):
    picture = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    out, (x, y) = viewer.fit_into(picture, aspect)
    np.testing.assert_array_equal(out[y : y + 50, x : x + 70], picture)
    assert abs(out.shape[1] / out.shape[0] - aspect) < 1.5 / min(out.shape[:2]) * max(1, aspect)


def test_the_sound_of_the_page_is_on_time(tmp_path):
    import base64

    import soundfile

    samples = np.zeros(3 * 44100, np.float32)
    samples[44100 : 44100 + 2000] = 0.8 * np.sin(np.arange(2000) * 0.2)
    soundfile.write(tmp_path / "a.wav", samples, 44100)
    url = viewer.sound_url(tmp_path / "a.wav", 2.0)
    assert url.startswith("data:audio/mpeg;base64,") and viewer.sound_url(None, 2.0) == ""
    (tmp_path / "a.mp3").write_bytes(base64.b64decode(url.split(",")[1]))
    heard, rate = soundfile.read(tmp_path / "a.mp3")
    assert abs(len(heard) / rate - 2.0) < 0.08
    assert abs(np.flatnonzero(np.abs(heard) > 0.2)[0] / rate - 1.0) < 0.06  # a decoder that ignores the encoder's delay is 45 ms late


# --- the page


def test_without_viser_the_reason_is_one_sentence(monkeypatch):
    from thnerf.viewer import server

    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match="pip install"):
        server.start_server(0, "x")


def test_bad_calls_end_before_a_server_starts(toy, tmp_path):
    pytest.importorskip("viser")
    from thnerf.viewer.server import open_page

    for arguments, reason in (({"run": "nothing"}, "not a trained run"), ({"port": 70000}, "--port"), ({"track": tmp_path / "no.npz"}, "does not exist"),
                              ({"track": "fit", "audio": tmp_path / "no.wav"}, "does not exist")):
        with pytest.raises(InputError, match=reason), open_page(toy, **{"port": 0, **arguments}):
            pass


def test_what_the_page_writes_it_loads_again(toy, tmp_path):
    pytest.importorskip("viser")
    from types import SimpleNamespace

    from thnerf.viewer.server import open_page

    with open_page(toy, port=0, folder=tmp_path) as page:
        jaw = number(page.session, "jawOpen")
        page.session.seek(20)
        page.session.set(jaw, 0.77, 0.4)
        edited = page.session.result()
        for kind, ending in (("npz", ".npz"), ("json", ".json"), ("clip", ".clip")):
            assert "1 edits" in page._export(None, "take 1", kind)
            file = tmp_path / f"take 1{ending}"
            page.session.reset()
            page._load(SimpleNamespace(name=file.name, content=file.read_bytes()))
            assert not page.session.edits and page.session.values(20)[jaw] == pytest.approx(0.77, abs=1e-3)
            np.testing.assert_allclose(page.session.track.expression, edited.expression, atol=1e-3)
            page.session.set(jaw, 0.77, 0.4)
        for name in ("../out", "/tmp/out", ".hidden", "", "a/b"):
            with pytest.raises(InputError, match="name"):
                page._export(None, name, "npz")
        with pytest.raises(InputError, match="ARKit"):
            page._export(None, "x", "livelink")
        for upload in (SimpleNamespace(name="a.npz", content=b"nothing"), SimpleNamespace(name="../../a.glb", content=b"nothing"), SimpleNamespace(name="a.txt", content=b"")):
            with pytest.raises(InputError) as error:
                page._load(upload)
            assert "/tmp" not in str(error.value)
        page._load(SimpleNamespace(name="short.npz", content=saved_bytes(toy.track[:20], tmp_path)))
        assert page.time.max == 19 and "footage" not in page.view.options and page.sound.heard.disabled
        assert sorted(p.name for p in tmp_path.iterdir()) == ["take 1.clip", "take 1.json", "take 1.npz"]


def saved_bytes(track, folder):
    """A Track's file."""
    track.save(folder / "t.npz")
    data = (folder / "t.npz").read_bytes()
    (folder / "t.npz").unlink()
    return data


@contextlib.contextmanager
def served(subject: Path, *options):
    """``thnerf view`` in a process of its own; its URL and the process, which Ctrl-C ends."""
    command = [sys.executable, "-m", "thnerf.cli", "view", str(subject), "--no-open", "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        said = []
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said[-1] if said else "")):
            said.append(process.stderr.readline())
            assert said[-1], f"it ended without an address: {said}"
        yield found[0], process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def interrupted(process):
    """Exit code and JSON result after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert "Traceback" not in err, err
    return process.returncode, json.loads(out)


def test_other_pages_cannot_talk_to_it(toy):
    pytest.importorskip("viser")
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    with served(toy.path) as (url, process):
        address = url.replace("http", "ws")
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin="http://elsewhere.example", subprotocols=["viser-v0"], open_timeout=10)
        with contextlib.suppress(Exception), connect(address, origin=url, subprotocols=["viser-v0"], open_timeout=10):
            pass  # it says goodbye for the wrong version, after it let this page in
        code, result = interrupted(process)
    assert code == 0 and result["edits"] == 0


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    pytest.importorskip("viser")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--autoplay-policy=no-user-gesture-required"])
        yield chromium
        chromium.close()


def eventually(check, seconds=15.0):
    """The first true value of `check`; fails after some time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if value := check():
            return value
        time.sleep(0.1)
    raise AssertionError(f"still not after {seconds} s: {check.__name__}")


class OpenPage:
    """What a person does on the page."""

    def __init__(self, browser, url):
        self.page = browser.new_page(viewport={"width": 1150, "height": 620})
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.get_by_text("jawOpen", exact=True).first.wait_for(timeout=30000)

    def canvas(self):
        """The picture on the canvas, (H,W,3)."""
        import io

        from PIL import Image

        boxes = [c.bounding_box() for c in self.page.locator("canvas").all()]
        box = max((b for b in boxes if b), key=lambda b: b["width"] * b["height"])
        shot = np.asarray(Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB"), np.float32)
        return shot

    def slider(self, name):
        row = self.page.locator(f"xpath=//label[text()='{name}']/ancestor::*[.//*[@role='slider']][1]")
        return row.locator("[role=slider]").first

    def choose(self, label, option):
        row = self.page.locator(f"xpath=//label[text()='{label}']/ancestor::*[.//input][1]")
        row.locator("input").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def sound(self):
        return self.page.evaluate("(() => { const a = document.getElementById('thnerf-sound'); return [a.paused, a.currentTime, a.duration] })()")


def mouth_and_forehead(subject, shape):
    """Index arrays of two squares on the canvas that shows frame 0 of the square picture in the middle."""
    from recon.overlay import posed_vertices

    points = subject.model.points(posed_vertices(subject.model, subject.track, 0), "ibug68")
    pixels = subject.track.camera.at(slice(0, 1)).project(points[None])[0]
    scale = min(shape[:2]) / subject.track.camera.width
    corner = (np.array(shape[1::-1]) - min(shape[:2])) / 2
    squares = []
    for centre in (pixels[60:68].mean(0), pixels[17:27].mean(0) - [0, 6]):
        x, y = (corner + centre * scale).astype(int)
        half = int(4 * scale)
        squares.append((slice(y - half, y + half), slice(x - half, x + half)))
    return squares


@pytest.mark.slow
def test_a_person_plays_edits_saves_and_leaves(toy, browser, tmp_path):
    with served(toy.path, "-o", str(tmp_path)) as (url, process):
        tab = OpenPage(browser, url)
        eventually(lambda: tab.canvas().std() > 25)
        before = tab.canvas()
        mouth, forehead = mouth_and_forehead(toy, before.shape)
        target = 1.0 if toy.track.column("jawOpen")[0] < 0.5 else 0.0
        tab.slider("jawOpen").focus()
        tab.page.keyboard.press("End" if target else "Home")

        def mouth_moved():
            change = np.abs(tab.canvas() - before)
            return change[mouth].mean() > 12 and change[forehead].mean() < 0.3 * change[mouth].mean()

        eventually(mouth_moved)
        tab.page.get_by_role("button", name="Play", exact=True).click()
        eventually(lambda: tab.sound()[1] > 0.4 and not tab.sound()[0])
        tab.page.get_by_role("button", name="Pause", exact=True).click()
        eventually(lambda: tab.sound()[0])
        assert tab.sound()[2] == pytest.approx(66 / 25, abs=0.1)
        tab.choose("View", "mesh in 3D")
        eventually(lambda: np.abs(tab.canvas() - before).mean() > 10)
        still = tab.canvas()
        height, width = still.shape[:2]
        x, y = next((b["x"] + width / 2, b["y"] + height / 2) for b in [c.bounding_box() for c in tab.page.locator("canvas").all()] if b and b["height"] == height)
        tab.page.mouse.move(x, y)
        tab.page.mouse.down()
        tab.page.mouse.move(x - 120, y, steps=5)
        tab.page.mouse.up()
        eventually(lambda: np.abs(tab.canvas() - still).mean() > 2)
        tab.page.get_by_role("button", name=re.compile("Save Track")).click()
        saved = eventually(lambda: (tmp_path / "edited.npz").exists() and Track.load(tmp_path / "edited.npz"))
        assert saved.column("jawOpen")[0] == pytest.approx(target, abs=1e-6) and saved.meta["edits"] == 1
        np.testing.assert_array_equal(saved.expression[15:], toy.track.expression[15:])
        assert not tab.errors
        tab.page.close()
        again = OpenPage(browser, url)  # a closed tab ends nothing, and the edits are still there
        eventually(lambda: again.canvas().std() > 15)
        assert not again.errors
        code, result = interrupted(process)
    assert code == 0 and result["edits"] == 1 and result["url"] == url
