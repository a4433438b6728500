"""Laws of live tracking: causal, deterministic, honest about frames without a face, close to the offline fit; and of its lines."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from recon.assets import asset
from recon.config import FitConfig
from recon.lines import MotionFrame, parse_line, track_lines, write_lines
from recon.live import FORGET, FaceChooser, LiveTracker, OneEuro, track_live
from recon.model import load_model
from recon.solve import solve
from recon.track import Track
from render.files import InputError
from render.rotations import angle_between
from render.threads import one_blas_thread
from render.video import load_video

FROM, FRAMES = 110, 110  # two blinks after the identity has settled


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with one_blas_thread():
        yield


@pytest.fixture(scope="module")
def demo():
    """Landmarks (T,478,2) px of some seconds of the demo, and its true Track."""
    from recon.landmarks import load_detector

    return load_detector().detect(demo_pictures()).points, Track.load(asset("demo") / "track.npz")[FROM : FROM + FRAMES]


def demo_pictures():
    return load_video(asset("demo") / "video.mp4")[FROM : FROM + FRAMES]


def follow(points, fps=25.0, pictures=None, **options):
    tracker = LiveTracker(256, 256, load_model(), **options)
    frames = [tracker.push(p if p is None or np.isfinite(p).all() else None, i / fps, None if pictures is None else pictures[i]) for i, p in enumerate(points)]
    tracker.close()
    return frames


@pytest.fixture(scope="module")
def followed(demo):
    return follow(demo[0])


def test_nothing_that_comes_later_changes_what_was_said(demo, followed):
    cut = 60  # after the first estimates of the identity have been taken over
    assert [f.line() for f in follow(demo[0][:cut])] == [f.line() for f in followed[:cut]]


def test_it_agrees_with_the_offline_track(demo, followed):
    points, _ = demo
    track = solve(points, np.ones(len(points), bool), (0,), 25, 256, 256, load_model(), FitConfig())
    settled = slice(40, None)
    rotation = np.array([f.rotation for f in followed])
    assert np.degrees(np.median(angle_between(rotation, track.rotation)[settled])) < 1
    for name, least in (("jawOpen", 0.95), ("eyeBlinkLeft", 0.97), ("mouthPucker", 0.9)):
        assert np.corrcoef([f.expression[name] for f in followed[settled]], track.column(name)[settled])[0, 1] > least, name
    assert list(followed[0].expression) == list(load_model().expression_names) and all(f.valid for f in followed)


def test_pictures_bring_it_nearer_to_the_truth_and_change_nothing_before_them(demo, followed):
    (points, truth), pictures, cut, settled = demo, demo_pictures(), 60, slice(40, None)
    looked = follow(points, pictures=pictures)
    assert [f.line() for f in follow(points[:cut], pictures=pictures)] == [f.line() for f in looked[:cut]]

    def off(frames):
        pose = angle_between(np.array([f.rotation for f in frames]), truth.rotation)[settled]
        return np.degrees(np.median(pose)), *(np.abs([f.expression[n] for f in frames[settled]] - truth.column(n)[settled]).mean() for n in ("jawOpen", "mouthPucker"))

    assert np.all(np.array(off(looked)) < 0.9 * np.array(off(followed))), (off(looked), off(followed))
    frames = follow(points[:5], pictures=pictures, corrector=False)
    assert [f.line() for f in frames] == [f.line() for f in followed[:5]]
    tracker = LiveTracker(256, 256, load_model())
    tracker.push(points[0], 0.0, pictures[0])
    with pytest.raises(ValueError, match="pictures before"):
        tracker.push(points[1], 0.04)


def test_a_known_subject_keeps_its_shape_and_is_right_from_the_start(demo):
    points, truth = demo
    focal = float(truth.camera.K[0, 0])
    known, unknown = follow(points[:30], shape=truth.shape, focal=focal), follow(points[:30])
    depth = lambda frames: np.median([f.translation[2] for f in frames[:10]])  # noqa: E731
    true = np.median(truth.translation[:10, 2])
    assert abs(depth(known) / true - 1) < 0.05 and abs(depth(known) / true - 1) <= abs(depth(unknown) / true - 1) + 0.01
    assert abs(depth(follow(points[:30], pictures=demo_pictures(), shape=truth.shape, focal=focal)) / true - 1) < 0.05


def test_frames_without_a_face_hold_the_last_motion(demo):
    points = [None, None, *demo[0][:20], None, np.full((478, 2), np.nan), *demo[0][22:25]]
    frames = follow(points)
    assert [f.valid for f in frames] == [False] * 2 + [True] * 20 + [False] * 2 + [True] * 3
    assert np.array_equal(frames[22].rotation, frames[21].rotation) and frames[23].expression == frames[21].expression
    assert [f.time for f in frames] == [i / 25 for i in range(len(points))] and set(frames[0].expression.values()) == {0.0}
    assert np.degrees(angle_between(frames[24].rotation, frames[21].rotation)) < 5


def test_after_a_long_absence_smoothing_starts_anew():
    filtered = OneEuro(1.0, 0.0)
    filtered(np.zeros(1), 0.04)
    assert 0 < filtered(np.ones(1), 0.04)[0] < 0.5
    filtered.reset()
    assert filtered(np.ones(1), 0.04)[0] == 1 and 0.1 < FORGET < 5


def test_the_filter_calms_what_is_still_and_follows_what_is_fast():
    rng, still, fast = np.random.default_rng(0), OneEuro(1.0, 20.0), OneEuro(1.0, 20.0)
    noise = 0.001 * rng.normal(size=(200, 3))
    assert np.std([still(x, 0.04) for x in noise][50:]) < 0.6 * noise.std()
    ramp = np.arange(50)[:, None] * 0.08  # 2 units/s
    assert (ramp[-1] - [fast(x, 0.04) for x in ramp][-1]) / 2 < 0.02  # s of lag
    coarse, fine = OneEuro(2.0, 0.0), OneEuro(2.0, 0.0)  # the same behaviour in time at another frame rate
    for filtered, step in ((coarse, 0.02), (fine, 0.01)):
        filtered(np.zeros(1), step)
        for _ in range(round(0.2 / step)):
            filtered(np.ones(1), step)
    assert coarse.value == pytest.approx(fine.value, abs=0.03)


def test_one_person_is_followed():
    at = lambda x, size: np.array([x, 100.0]) + size * np.random.default_rng(0).uniform(-0.5, 0.5, (478, 2))  # noqa: E731
    choose = FaceChooser()
    assert np.array_equal(choose(np.stack([at(50, 30), at(200, 60)])), at(200, 60))
    assert np.array_equal(choose(np.stack([at(50, 90), at(204, 60)])), at(204, 60))  # the other one came nearer
    assert choose(at(50, 90)[None]) is None and choose(np.zeros((0, 478, 2))) is None
    for _ in range(30):
        found = choose(at(50, 90)[None])
    assert found is not None  # nobody came back


def test_lines_come_back_as_they_were_and_bad_ones_are_refused(demo):
    _, truth = demo
    stream = io.StringIO()
    assert write_lines(track_lines(truth[:5]), stream) == 5
    lines = stream.getvalue().splitlines()
    assert set(json.loads(lines[0])) == {"time", "expression", "rotation", "translation", "gaze", "valid"}
    for index, frame in enumerate(map(parse_line, lines)):
        assert frame.time == pytest.approx(index / 25) and np.allclose(frame.rotation, truth.rotation[index], atol=1e-5)
        assert np.allclose(list(frame.expression.values()), truth.expression[index], atol=1e-5) and np.allclose(frame.gaze, truth.gaze[index], atol=1e-5)
    for bad in ("", "[]", "{}", lines[0].replace('"rotation": [', '"rotation": [1, ')):
        with pytest.raises(InputError):
            parse_line(bad)
    with pytest.raises(ValueError):
        MotionFrame(0, {"jawOpen": float("nan")}, np.zeros(3), np.zeros(3), np.zeros((2, 2))).line()


@pytest.mark.parametrize("source, options, says", [
    ("no_such_file.mp4", {}, "does not exist"), ("87", {}, "camera 87 cannot be opened"), ("0", {"focal": -1}, "--focal"),
    ("0", {"subject": "nobody"}, "not a subject folder"), ("0", {"model": "no_model.npz"}, "no_model.npz")])
def test_a_bad_source_is_one_clear_sentence(source, options, says):
    with pytest.raises(InputError, match=says):
        track_live(source, io.StringIO(), **options)


def test_the_command_streams_lines_at_once_and_ctrl_c_ends_it_cleanly():
    command = [sys.executable, "-m", "thnerf.cli", "track", "--camera", str(asset("demo") / "video.mp4")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()  # while the video is still running
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    lines = [first, *rest.splitlines()]
    times = [parse_line(line).time for line in lines]
    assert process.returncode == 0 and 1 <= len(lines) < 600 and "Traceback" not in errors
    assert times[0] == 0 and (np.diff(times) > 0).all()
