"""Exports, read back by parsers that know nothing of the writers."""

import csv
import json

import numpy as np
import pytest

from recon.track import Track
from render.camera import Camera
from render.files import InputError
from render.rotations import from_head_angles
from thnerf.export import export_track, resolve_track

# The header of a recording of the app, spelt out.
HEADER = (
    "Timecode,BlendShapeCount,EyeBlinkLeft,EyeLookDownLeft,EyeLookInLeft,EyeLookOutLeft,EyeLookUpLeft,EyeSquintLeft,EyeWideLeft,"
    "EyeBlinkRight,EyeLookDownRight,EyeLookInRight,EyeLookOutRight,EyeLookUpRight,EyeSquintRight,EyeWideRight,"
    "JawForward,JawRight,JawLeft,JawOpen,MouthClose,MouthFunnel,MouthPucker,MouthRight,MouthLeft,MouthSmileLeft,MouthSmileRight,"
    "MouthFrownLeft,MouthFrownRight,MouthDimpleLeft,MouthDimpleRight,MouthStretchLeft,MouthStretchRight,MouthRollLower,MouthRollUpper,"
    "MouthShrugLower,MouthShrugUpper,MouthPressLeft,MouthPressRight,MouthLowerDownLeft,MouthLowerDownRight,MouthUpperUpLeft,"
    "MouthUpperUpRight,BrowDownLeft,BrowDownRight,BrowInnerUp,BrowOuterUpLeft,BrowOuterUpRight,CheekPuff,CheekSquintLeft,"
    "CheekSquintRight,NoseSneerLeft,NoseSneerRight,TongueOut,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw,LeftEyePitch,LeftEyeRoll,"
    "RightEyeYaw,RightEyePitch,RightEyeRoll"
)
ARKIT = sorted(name[0].lower() + name[1:] for name in HEADER.split(",")[2:54])


def make_track(frames=7, names=ARKIT, fps=25.0, seed=0) -> Track:
    rng = np.random.default_rng(seed)
    return Track(
        fps=fps, model_id="test", camera=Camera.simple(500, 64, 64, frames), shape=rng.normal(size=3), expression=rng.random((frames, len(names))),
        rotation=from_head_angles(rng.uniform(-0.5, 0.5, (frames, 3))), translation=rng.normal(0, 5, (frames, 3)) + (0, 0, 600),
        gaze=rng.uniform(-0.3, 0.3, (frames, 2, 2)), torso=np.zeros((frames, 4)), valid=np.ones(frames, bool), expression_names=tuple(names))


def read_csv(path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_livelink_header_is_the_apps(tmp_path):
    export_track(make_track(), tmp_path / "a.csv", "livelink")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == HEADER and len(HEADER.split(",")) == 63
    assert all(len(line.split(",")) == 63 and line.split(",")[1] == "61" for line in lines[1:])


def test_livelink_weights_come_back_by_name(tmp_path):
    track = make_track()
    export_track(track, tmp_path / "a.csv", "livelink")
    rows = read_csv(tmp_path / "a.csv")
    assert len(rows) == len(track)
    for name in ARKIT:
        column = [float(row[name[0].upper() + name[1:]]) for row in rows]
        np.testing.assert_allclose(column, track.column(name), atol=1e-6)


@pytest.mark.parametrize("angles, expected", [((0.3, 0, 0), (-0.3, 0, 0)), ((0, 0.2, 0), (0, -0.2, 0)), ((0, 0, 0.1), (0, 0, 0.1))])
def test_livelink_head_signs(tmp_path, angles, expected):
    """Yaw to the subject's left and pitch up are negative, roll to the left shoulder positive."""
    track = make_track(1).replace(rotation=from_head_angles(np.array([angles])))
    export_track(track, tmp_path / "a.csv", "livelink")
    row = read_csv(tmp_path / "a.csv")[0]
    np.testing.assert_allclose([float(row[n]) for n in ("HeadYaw", "HeadPitch", "HeadRoll")], expected, atol=1e-6)


def test_livelink_eye_signs_and_sides(tmp_path):
    track = make_track(1).replace(gaze=np.array([[[0.1, 0.2], [0.3, -0.4]]]))
    export_track(track, tmp_path / "a.csv", "livelink")
    row = read_csv(tmp_path / "a.csv")[0]
    got = [float(row[n]) for n in ("LeftEyeYaw", "LeftEyePitch", "LeftEyeRoll", "RightEyeYaw", "RightEyePitch", "RightEyeRoll")]
    np.testing.assert_allclose(got, [-0.1, -0.2, 0, -0.3, 0.4, 0], atol=1e-6)


@pytest.mark.parametrize("fps", [25.0, 30.0, 60.0, 29.97])
def test_livelink_timecodes_count_frames(tmp_path, fps):
    track = make_track(130, fps=fps)
    export_track(track, tmp_path / "a.csv", "livelink")
    base = round(fps)
    for i, row in enumerate(read_csv(tmp_path / "a.csv")):
        h, m, s, f = row["Timecode"].split(":")
        assert len(row["Timecode"]) == len("00:00:00:00.000") and float(f) < base
        assert ((int(h) * 60 + int(m)) * 60 + int(s)) * base + float(f) == i


def test_livelink_refuses_a_model_without_arkit_names(tmp_path):
    (tmp_path / "a.csv").write_text("earlier")
    with pytest.raises(InputError, match="ARKit"):
        export_track(make_track(names=["expr_0", "jaw_x"]), tmp_path / "a.csv", "livelink")
    assert (tmp_path / "a.csv").read_text() == "earlier"


def test_json_is_strict_and_complete(tmp_path):
    track = make_track()
    export_track(track, tmp_path / "a.json", "json")

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    value = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert value["fps"] == 25 and tuple(value["names"]) == track.expression_names
    for key in ("expression", "rotation", "translation", "gaze", "torso"):
        np.testing.assert_allclose(np.array(value[key]).reshape(getattr(track, key).shape), getattr(track, key), atol=1e-4 if key == "translation" else 1e-6)
    assert value["valid"] == [True] * len(track) and value["clip_starts"] == [0]


def test_npz_is_the_track(tmp_path):
    track = make_track()
    export_track(track, tmp_path / "a.npz", "npz")
    again = resolve_track(tmp_path / "a.npz")
    for name in ("expression", "rotation", "gaze", "shape"):
        np.testing.assert_array_equal(getattr(again, name), getattr(track, name))


def test_export_at_another_rate_keeps_the_duration(tmp_path):
    export_track(make_track(50), tmp_path / "a.csv", "livelink", fps=60)
    assert len(read_csv(tmp_path / "a.csv")) == 120


def test_bad_requests_say_what_to_do(tmp_path):
    track = make_track()
    with pytest.raises(InputError, match="choose one of livelink"):
        export_track(track, tmp_path / "a.xyz", "xyz")
    with pytest.raises(InputError, match="no frames"):
        export_track(track[0:0], tmp_path / "a.csv", "livelink")
    with pytest.raises(InputError, match="does not exist"):
        resolve_track(tmp_path / "nothing.npz")
    track.save(tmp_path / "a.npz")
    with pytest.raises(InputError, match="subject folder"):
        resolve_track(tmp_path / "a.npz", audio=tmp_path / "speech.wav")
    (tmp_path / "b.npz").write_text("not a track")
    with pytest.raises(InputError, match="readable track"):
        resolve_track(tmp_path / "b.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
