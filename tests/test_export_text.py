"""Text formats, re-read by parsers that follow each format's documentation and know nothing of the writers."""

import csv
import json
import re

import numpy as np
import pytest
from exporting import EXACT, moving_scene, moving_track, small_subject, told
from scipy.spatial.transform import Rotation

from recon.model import apply_gaze
from render.files import InputError
from render.rotations import FRONTAL, angle_between, axis_angle_to_matrix
from thnerf.export import FORMATS, ExportOptions, export_scene
from thnerf.export.importer import import_track
from thnerf.export.names import ARKIT, match, plain, swap_side

FRAMES = 40


@pytest.fixture(scope="module")
def scene():
    return moving_scene(FRAMES)


@pytest.fixture(scope="module")
def subject(scene, tmp_path_factory):
    return small_subject(tmp_path_factory.mktemp("subject"), scene.track)


def head(track):
    """Rotation matrices and positions (mm) in a y-up world whose camera looks along -z."""
    return FRONTAL @ axis_angle_to_matrix(track.rotation), track.translation @ FRONTAL.T


# ---- parsers of the documented formats ----

def parse_anim(text):
    """Autodesk's description of .anim: lines end with ';', blocks in braces, keys 'time value in out locked weighted breakdown'."""
    header, curves, current, keys = {}, {}, None, False
    for line in text.splitlines():
        words = line.split("//")[0].strip().rstrip(";").split()
        if not words:
            continue
        if words[0] == "anim":
            current = curves.setdefault((words[3], words[2]), {"path": words[1], "keys": []})
        elif words[-1] == "{":
            keys = words[0] == "keys"
        elif words[0] == "}":
            keys = False
        elif keys:
            assert line.endswith(";") and words[2:] == ["linear", "linear", "1", "1", "0"]
            current["keys"].append((float(words[0]), float(words[1])))
        elif current is None:
            header[words[0]] = words[1]
        else:
            current[words[0]] = words[1]
    return header, curves


def parse_ma(text):
    """Maya ASCII: MEL statements; createNode makes a node that the following setAttr lines with '.attribute' belong to."""
    statements, start, quoted = [], 0, False
    text = re.sub(r"^//.*$", "", text, flags=re.M)
    for i, c in enumerate(text):
        if c == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif c == ";" and not quoted:
            statements.append(text[start:i].strip())
            start = i + 1
    nodes, links, globals_, current = {}, [], [], None
    for statement in statements:
        words = re.findall(r'"(?:[^"\\]|\\.)*"|\S+', statement)
        if words[0] == "createNode":
            current = nodes.setdefault(words[words.index("-n") + 1].strip('"'), {"type": words[1], "attributes": []})
            current["parent"] = words[words.index("-p") + 1].strip('"') if "-p" in words else None
        elif words[0] == "setAttr":
            rest, flags = words[1:], {}
            while rest[0].startswith("-"):
                flags[rest[0]] = rest[1]
                rest = rest[2:]
            name, rest = rest[0].strip('"'), rest[1:]
            if rest[0] == "-type":
                flags["-type"], rest = rest[1].strip('"'), rest[2:]
            current["attributes"].append((name, flags, rest))
        elif words[0] == "connectAttr":
            links.append((words[1].strip('"'), words[2].strip('"')))
        else:
            globals_.append(words)
    return nodes, links, globals_


def ma_values(node, name, columns):
    """An array attribute, gathered from its pieces; checks their ranges and sizes."""
    rows, size = [], None
    for attribute, flags, rest in node["attributes"]:
        found = re.fullmatch(re.escape(name) + r"\[(\d+):(\d+)\]", attribute)
        if found:
            size = int(flags["-s"]) if "-s" in flags else size
            part = np.array([float(x) for x in rest]).reshape(-1, columns)
            assert int(found[1]) == len(rows) and int(found[2]) == len(rows) + len(part) - 1
            rows += part.tolist()
    assert len(rows) == size
    return np.array(rows)


def ma_faces(node, edges):
    """Triangles of polyFaces, whose edges are reversed where negative (as -index - 1)."""
    faces = []
    for attribute, flags, rest in node["attributes"]:
        if attribute.startswith(".fc["):
            words = iter(rest)
            for word in words:
                if word == "f":
                    corners = []
                    for _ in range(int(next(words))):
                        e = int(next(words))
                        corners.append(edges[e, 0] if e >= 0 else edges[-e - 1, 1])
                    faces.append(corners)
    return np.array(faces, int)


def ma_curve(nodes, links, target):
    """Keys of the curve that drives an attribute: {time: value}."""
    source = next(a for a, b in links if b == target)
    keys = ma_values(nodes[source.rsplit(".", 1)[0]], ".ktv", 2)
    return keys[:, 0], keys[:, 1]


def parse_bvh(text):
    """Biovision: hierarchy of joints with offsets and channels, then one line a frame; rotations multiply in the order of the channels."""
    lines = text.splitlines()
    split = lines.index("MOTION")
    joints, stack = [], []
    for line in lines[1:split]:
        words = line.split()
        if words[0] in ("ROOT", "JOINT"):
            joints.append({"name": words[1], "parent": stack[-1] if stack else None})
            opened = len(joints) - 1
        elif words[0] == "End":
            opened = None
        elif words[0] == "{":
            stack.append(opened)
        elif words[0] == "}":
            stack.pop()
        elif words[0] == "OFFSET" and stack[-1] is not None:
            joints[stack[-1]]["offset"] = [float(x) for x in words[1:]]
        elif words[0] == "CHANNELS":
            assert int(words[1]) == len(words) - 2
            joints[stack[-1]]["channels"] = words[2:]
    frames = int(re.fullmatch(r"Frames:\s*(\d+)", lines[split + 1])[1])
    step = float(re.fullmatch(r"Frame Time:\s*(\S+)", lines[split + 2])[1])
    data = np.array([[float(x) for x in line.split()] for line in lines[split + 3 :]])
    assert data.shape == (frames, sum(len(j["channels"]) for j in joints))
    at = 0
    for j in joints:
        part = dict(zip(j["channels"], data[:, at : at + len(j["channels"])].T))
        at += len(j["channels"])
        turn = Rotation.identity(frames)
        for channel, angle in part.items():
            if channel.endswith("rotation"):
                turn = turn * Rotation.from_euler(channel[0].lower(), angle[:, None], degrees=True)
        j["rotation"], j["position"] = turn.as_matrix(), np.stack([part.get(f"{a}position", np.zeros(frames)) for a in "XYZ"], 1)
    return joints, step


# ---- the files say what the Track says ----

def test_anim_carries_every_curve_frame_by_frame(scene, tmp_path):
    export_scene(scene, tmp_path / "a.anim", "anim", ExportOptions(start_frame=7))
    header, curves = parse_anim((tmp_path / "a.anim").read_text())
    assert header["animVersion"] == "1.1" and header["timeUnit"] == "pal" and header["linearUnit"] == "cm" and header["angularUnit"] == "deg"
    assert float(header["startTime"]) == 7 and float(header["endTime"]) == 6 + FRAMES
    R, t = head(scene.track)
    value = lambda node, name: np.array(curves[node, name]["keys"])  # noqa: E731
    np.testing.assert_array_equal(value("head", "translateX")[:, 0], 7 + np.arange(FRAMES))
    for i, axis in enumerate("XYZ"):
        np.testing.assert_allclose(value("head", f"translate{axis}")[:, 1], t[:, i] / 10, atol=1e-5)
        assert curves["head", f"translate{axis}"]["output"] == "linear" and curves["head", f"rotate{axis}"]["output"] == "angular"
    angles = np.stack([value("head", f"rotate{a}")[:, 1] for a in "XYZ"], 1)
    np.testing.assert_allclose(Rotation.from_euler("xyz", angles, degrees=True).as_matrix(), R, atol=1e-6)
    for name in scene.track.expression_names:
        np.testing.assert_allclose(value("head_blendShape", name)[:, 1], scene.track.column(name), atol=1e-6)
    assert curves["head_blendShape", "jawOpen"]["output"] == "unitless"


@pytest.mark.parametrize("fps, unit", [(24, "film"), (30, "ntsc"), (60, "ntscf"), (29.97, "29.97fps"), (120, "120fps")])
def test_maya_is_told_the_frame_rate(tmp_path, fps, unit):
    scene = moving_scene(3, fps)
    export_scene(scene, tmp_path / "a.anim", "anim")
    assert parse_anim((tmp_path / "a.anim").read_text())[0]["timeUnit"] == unit


def test_maya_has_no_time_unit_of_33_frames(tmp_path):
    with pytest.raises(InputError, match="--fps 30"):
        export_scene(moving_scene(3, 33.0), tmp_path / "a.anim", "anim")


@pytest.mark.parametrize("eyes", ["rotation", "blendshape"])
def test_maya_scene_shows_the_head(scene, tmp_path, eyes):
    """Mesh, targets, aliases and curves of the .ma, put together as Maya does, give the vertices of the face model."""
    export_scene(scene, tmp_path / "a.ma", "maya", ExportOptions(eyes=eyes))
    nodes, links, statements = parse_ma((tmp_path / "a.ma").read_text())
    assert ["currentUnit", "-l", "centimeter", "-a", "degree", "-t", "pal"] in statements
    model, track = scene.model, scene.track
    blend = nodes["head_blendShape"]
    aliases = re.findall(r'"([^"]+)","weight\[(\d+)\]"', " ".join(next(r for a, f, r in blend["attributes"] if a == ".aal")))
    assert [name for name, _ in aliases] == list(model.expression_names) and [int(k) for _, k in aliases] == list(range(52))
    assert ("head_blendShape.og[0]", "headShape.i") in links and ("headShapeOrig.w", "head_blendShapeGroupParts.ig") in links
    mesh = nodes["headShapeOrig"]
    rest, edges = ma_values(mesh, ".vt", 3), ma_values(mesh, ".ed", 3).astype(int)
    faces = ma_faces(mesh, edges)
    eye = model.regions["eye_left"] | model.regions["eye_right"]
    chosen = np.ones(len(model.mean), bool) if eyes == "blendshape" else ~eye
    np.testing.assert_array_equal(np.sort((np.flatnonzero(chosen))[faces], 1), np.sort(model.faces[chosen[model.faces].all(1)], 1))
    offsets = np.zeros((52, *rest.shape))
    for attribute, flags, words in blend["attributes"]:
        if found := re.fullmatch(r"\.it\[0\]\.itg\[(\d+)\]\.iti\[6000\]\.ipt", attribute):
            points = np.array(words[1:], float).reshape(-1, 4)
            assert len(points) == int(words[0]) and (points[:, 3] == 1).all()
        elif found := re.fullmatch(r"\.it\[0\]\.itg\[(\d+)\]\.iti\[6000\]\.ict", attribute):
            index = []
            for a, b in (re.fullmatch(r'"vtx\[(\d+)(?::(\d+))?\]"', w).groups() for w in words[1:]):
                index += range(int(a), int(b or a) + 1)
            offsets[int(found[1]), index] = points[:, :3]
    for frame in (0, FRAMES // 2, FRAMES - 1):
        at = lambda attribute: dict(zip(*ma_curve(nodes, links, attribute)))[frame]  # noqa: E731
        weights = np.array([at(f"head_blendShape.w[{k}]") for k in range(52)])
        R = Rotation.from_euler("xyz", [at(f"head.r{a}") for a in "xyz"], degrees=True).as_matrix()
        t = np.array([at(f"head.t{a}") for a in "xyz"])
        seen = (rest + np.tensordot(weights, offsets, 1)) @ R.T + t
        truth = apply_gaze(model, model.vertices(track.shape, track.expression[frame]), track.shape, track.gaze[frame])
        Rt, tt = head(track)
        truth = (truth.astype(float) @ Rt[frame].T + tt[frame]) / 10
        np.testing.assert_allclose(seen[~eye[chosen]], truth[~eye], atol=1e-3)  # cm
        if eyes == "rotation":
            for side in ("left", "right"):
                mask, shape = model.regions[f"eye_{side}"], nodes[f"eye_{side}Shape"]
                centre = np.array(next(r for a, f, r in nodes[f"eye_{side}"]["attributes"] if a == ".t"), float)
                turn = Rotation.from_euler("xyz", [at(f"eye_{side}.r{a}") for a in "xyz"], degrees=True).as_matrix()
                np.testing.assert_allclose((ma_values(shape, ".vt", 3) @ turn.T + centre) @ R.T + t, truth[mask], atol=1e-3)


def test_maya_camera_projects_as_the_footage(tmp_path):
    scene = moving_scene(3)
    camera = scene.track.camera
    K = camera.K + [[0, 0, 7.0], [0, 0, -4.0], [0, 0, 0]]
    scene = type(scene)(scene.track.replace(camera=type(camera)(K, camera.world_to_camera, camera.width, camera.height)), "x", scene.model)
    export_scene(scene, tmp_path / "a.ma", "maya")
    nodes = parse_ma((tmp_path / "a.ma").read_text())[0]
    get = lambda name: np.array(next(r for a, f, r in nodes["cameraShape"]["attributes"] if a == name), float)  # noqa: E731
    wide, high = get(".cap") * 25.4
    offset = get(".fio") * 25.4
    point = np.array([30.0, -20.0, -500.0])  # before the camera, which looks along -z
    film = get(".fl")[0] * point[:2] / -point[2]
    # Film offsets move the film: what lay in its middle comes to lie beside it.
    pixel = np.array([(film[0] - offset[0]) / wide * 128 + 64, 64 - (film[1] - offset[1]) / high * 128])
    truth = K @ (FRONTAL @ point)
    np.testing.assert_allclose(pixel, truth[:2] / truth[2], atol=1e-3)


def test_chan_has_one_row_a_frame(scene, tmp_path):
    export_scene(scene, tmp_path / "a.chan", "chan", ExportOptions(start_frame=1001))
    data = np.array([[float(x) for x in line.split(" ")] for line in (tmp_path / "a.chan").read_text().splitlines()])
    assert data.shape == (FRAMES, 7)
    R, t = head(scene.track)
    np.testing.assert_array_equal(data[:, 0], 1001 + np.arange(FRAMES))
    np.testing.assert_allclose(data[:, 1:4], t / 1000, atol=1e-6)
    np.testing.assert_allclose(Rotation.from_euler("xyz", data[:, 4:], degrees=True).as_matrix(), R, atol=1e-6)


def test_clip_has_named_channels(scene, tmp_path):
    export_scene(scene, tmp_path / "a.clip", "clip")
    text = (tmp_path / "a.clip").read_text()
    assert re.match(r"\{\s+rate = 25\s+start = 0\s+tracklength = 40\s+tracks = 64\s+\{", text) and text.count("{") == text.count("}") == 65
    tracks = {name: np.array(data.split(), float) for name, data in re.findall(r"name = (\S+)\s+data = ([^}\n]+)", text)}
    assert len(tracks) == 64 and set(scene.track.expression_names) <= tracks.keys()
    np.testing.assert_allclose(tracks["jawOpen"], scene.track.column("jawOpen"), atol=1e-6)
    np.testing.assert_allclose(tracks["tz"], head(scene.track)[1][:, 2] / 1000, atol=1e-6)
    np.testing.assert_allclose(np.deg2rad(tracks["eye_left_ry"]), scene.track.gaze[:, 0, 0], atol=1e-6)


@pytest.mark.parametrize("up", ["y", "z"])
def test_bvh_poses_head_and_eyes(scene, tmp_path, up):
    export_scene(scene, tmp_path / "a.bvh", "bvh", ExportOptions(up=up))
    joints, step = parse_bvh((tmp_path / "a.bvh").read_text())
    assert [j["name"] for j in joints] == ["head", "eye_left", "eye_right"] and [j["parent"] for j in joints] == [None, 0, 0]
    assert step == pytest.approx(0.04)
    turn = Rotation.from_euler("x", 90 if up == "z" else 0, degrees=True).as_matrix()
    R, t = head(scene.track)
    np.testing.assert_allclose(joints[0]["rotation"], turn @ R @ turn.T, atol=1e-6)
    np.testing.assert_allclose(joints[0]["position"], t @ turn.T / 10, atol=1e-5)
    looks = (turn.T @ joints[1]["rotation"] @ turn)[:, :, 2]  # where the left eye's z axis goes
    np.testing.assert_allclose(np.arctan2(looks[:, 0], looks[:, 2]), scene.track.gaze[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(turn.T @ joints[1]["offset"], scene.model.eyes(scene.track.shape)[0] / 10, atol=1e-5)


def test_audio2face_files(scene, tmp_path):
    export_scene(scene, tmp_path / "a.json", "a2f")
    value = json.loads((tmp_path / "a.json").read_text())
    assert value["numPoses"] == 52 and value["numFrames"] == FRAMES and value["exportFps"] == 25 and value["facsNames"] == list(scene.track.expression_names)
    np.testing.assert_allclose(value["weightMat"], scene.track.expression, atol=1e-6)
    export_scene(scene, tmp_path / "a.csv", "a2f-csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    np.testing.assert_allclose([float(r["blendShapes.JawOpen"]) for r in rows], scene.track.column("jawOpen"), atol=1e-6)
    np.testing.assert_allclose([float(r["timeCode"]) for r in rows], np.arange(FRAMES) / 25, atol=1e-6)


def test_csv_holds_any_face_model(tmp_path):
    track = moving_track(6).replace(model_id="basel", expression_names=tuple(f"expression_{k}" for k in range(52)))
    scene = type(moving_scene(2))(track, "x")
    export_scene(scene, tmp_path / "a.csv", "csv")
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    np.testing.assert_allclose([float(r["expression_3"]) for r in rows], track.column("expression_3"), atol=1e-6)
    np.testing.assert_allclose([[float(r[f"translation_{a}"]) for a in "xyz"] for r in rows], track.translation, atol=1e-4)
    with pytest.raises(InputError, match="--model"):
        export_scene(scene, tmp_path / "a.ma", "maya")


# ---- and back ----

@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(start_frame=12, up="z", units="mm", sides="viewer", signs="subject")], ids=["plain", "all"])
@pytest.mark.parametrize("name", EXACT)
def test_two_way_formats_come_back(scene, subject, tmp_path, name, options):
    """Coefficients to 1e-3, pose to 0.05°, gaze to 0.05°, not a frame shifted, against a subject whose own motion is another."""
    path = tmp_path / f"a{FORMATS[name].suffixes[0]}"
    export_scene(scene, path, name, options)
    other = small_subject(tmp_path / "other", moving_track(30, seed=5))
    track, report = import_track(path, other, told(options, 25.0))
    want = scene.track
    assert report["format"] == name and len(track) == len(want) and track.fps == 25 and not report["missing"] and not report["unknown"]
    np.testing.assert_allclose(track.expression, want.expression, atol=1e-4)
    assert np.rad2deg(angle_between(track.rotation, want.rotation)).max() < 0.01
    np.testing.assert_allclose(track.gaze, want.gaze, atol=1e-5)
    if name != "livelink":
        np.testing.assert_allclose(track.translation, want.translation, atol=2e-2)


@pytest.mark.parametrize("name", ["chan", "bvh"])
def test_pose_formats_come_back(scene, tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffixes[0]}"
    export_scene(scene, path, name)
    other = small_subject(tmp_path / "other", moving_track(30, seed=5))
    track, _ = import_track(path, other, ExportOptions(fps=25))
    assert len(track) == FRAMES and np.rad2deg(angle_between(track.rotation, scene.track.rotation)).max() < 0.01
    np.testing.assert_allclose(track.translation, scene.track.translation, atol=1e-2)
    neutral = np.median(other.track.expression[other.frames("train")], 0)
    np.testing.assert_allclose(track.expression, np.repeat(neutral[None], FRAMES, 0), atol=0.7)  # the lids follow the gaze
    k = track.expression_names.index("jawOpen")
    np.testing.assert_allclose(track.expression[:, k], neutral[k], atol=1e-6)


@pytest.mark.parametrize("name", ["a2f", "a2f-csv"])
def test_audio2face_files_come_back(scene, tmp_path, name):
    path = tmp_path / f"a{FORMATS[name].suffixes[0]}"
    export_scene(scene, path, name)
    other = small_subject(tmp_path / "other", moving_track(30, seed=5))
    track, report = import_track(path, other)
    assert report["format"] == name and track.fps == 25
    np.testing.assert_allclose(track.expression, scene.track.expression, atol=1e-4)
    assert np.ptp(track.rotation, axis=0).max() < 1e-6  # a still head: the file has no pose


def test_an_edit_keeps_what_the_file_does_not_carry(scene, subject, tmp_path):
    """Torso, translation and camera of the subject, frame by frame, when the file is its own motion with one curve changed."""
    edited = scene.track.expression.copy()
    k = scene.track.expression_names.index("mouthSmileLeft")
    edited[:, k] = np.linspace(0, 1, FRAMES)
    export_scene(type(scene)(scene.track.replace(expression=edited), "x", scene.model), tmp_path / "a.csv", "livelink")
    track, _ = import_track(tmp_path / "a.csv", subject, ExportOptions(fps=25))
    np.testing.assert_allclose(track.expression, edited, atol=1e-6)
    for part in ("torso", "translation"):
        np.testing.assert_array_equal(getattr(track, part), getattr(subject.track, part))


def test_missing_and_unknown_names_are_listed(subject, tmp_path):
    (tmp_path / "a.csv").write_text("time,jaw_open,Head.MouthSmile_L,wiggle\n" + "".join(f"{i / 30},0.25,{i / 10},1\n" for i in range(10)))
    track, report = import_track(tmp_path / "a.csv", subject)
    assert track.fps == 30 and report["unknown"] == ["wiggle"] and report["matched"] == 2 and len(report["missing"]) == 50
    np.testing.assert_allclose(track.column("jawOpen"), 0.25)
    np.testing.assert_allclose(track.column("mouthSmileLeft"), np.arange(10) / 10, atol=1e-6)
    neutral = np.median(subject.track.expression[subject.frames("train")], 0)
    np.testing.assert_allclose(track.column("cheekPuff"), neutral[track.expression_names.index("cheekPuff")], atol=1e-6)
    assert any("wiggle" in note for note in report["notes"])


def test_a_base_gives_what_is_missing(scene, subject, tmp_path):
    (tmp_path / "a.csv").write_text("time,jawOpen\n" + "".join(f"{i / 25},0.5\n" for i in range(FRAMES)))
    base = moving_track(FRAMES, seed=9)
    track, _ = import_track(tmp_path / "a.csv", subject, base=base)
    np.testing.assert_allclose(track.column("jawOpen"), 0.5)
    for part in ("rotation", "translation", "torso", "gaze"):
        np.testing.assert_array_equal(getattr(track, part), getattr(base, part))
    np.testing.assert_allclose(track.column("mouthPucker"), base.column("mouthPucker"))
    with pytest.raises(InputError, match="base track has 39"):
        import_track(tmp_path / "a.csv", subject, base=base[1:])


def test_a_head_without_translation_turns_about_its_neck(tmp_path):
    """A subject that turns about a known point: poses that it never showed turn about the same point."""
    track, pivot = moving_track(60), np.array([3.0, -90.0, -40.0])
    R = axis_angle_to_matrix(track.rotation)
    subject = small_subject(tmp_path, track.replace(translation=np.array([0, 0, 700.0]) - R @ pivot))
    export_scene(moving_scene(FRAMES, seed=4), tmp_path / "a.csv", "livelink")
    found, _ = import_track(tmp_path / "a.csv", subject, ExportOptions(fps=25))
    neck = axis_angle_to_matrix(found.rotation) @ pivot + found.translation
    assert np.abs(neck - [0, 0, 700]).max() < 3


def test_a_file_without_rate_asks_for_one(subject, tmp_path):
    export_scene(moving_scene(5), tmp_path / "a.chan", "chan")
    with pytest.raises(InputError, match="--fps"):
        import_track(tmp_path / "a.chan", subject)
    export_scene(moving_scene(70), tmp_path / "a.csv", "livelink")  # more than a second: its timecodes tell
    track, report = import_track(tmp_path / "a.csv", subject)
    assert track.fps == 25 and any("count to 25" in note for note in report["notes"])


def test_lost_frames_of_a_recording_are_interpolated(scene, subject, tmp_path):
    export_scene(scene, tmp_path / "a.csv", "livelink")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "a.csv").write_text("\n".join(lines[:10] + lines[12:]) + "\n")
    track, report = import_track(tmp_path / "a.csv", subject, ExportOptions(fps=25))
    assert len(track) == FRAMES and any("2 frames are missing" in note for note in report["notes"])
    np.testing.assert_allclose(track.expression[12:], scene.track.expression[12:], atol=1e-6)


def test_columns_may_come_in_any_order(scene, subject, tmp_path):
    export_scene(scene, tmp_path / "a.csv", "livelink")
    table = list(csv.reader((tmp_path / "a.csv").open(newline="")))
    order = np.random.default_rng(0).permutation(63)
    (tmp_path / "a.csv").write_text("\n".join(",".join(row[i] for i in order) for row in table) + "\n")
    track, _ = import_track(tmp_path / "a.csv", subject, ExportOptions(fps=25), format="livelink")
    np.testing.assert_allclose(track.expression, scene.track.expression, atol=1e-6)


def test_sparse_maya_curves_are_sampled(subject, tmp_path):
    """Three keys with linear, stepped and flat tangents; a static key; weight[k] without alias."""
    curve = lambda node, name, keys: f"anim {name} {name} {node} 0 0 0;\nanimData {{\n  input time;\n  output unitless;\n  keys {{\n{keys}  }}\n}}\n"  # noqa: E731
    jaw = subject.track.expression_names.index("jawOpen")
    (tmp_path / "a.anim").write_text(
        "animVersion 1.1;\nmayaVersion 2024;\ntimeUnit film;\nlinearUnit cm;\nangularUnit deg;\nstartTime 1;\nendTime 9;\n"
        + curve("bs", f"weight[{jaw}]", "1 0 linear linear 1 1 0;\n5 1 linear linear 1 1 0;\n9 0 linear linear 1 1 0;\n")
        + curve("bs", "cheekPuff", "1 0.2 step step 1 1 0;\n6 0.8 step step 1 1 0;\n")
        + curve("bs", "mouthPucker", "1 0 flat flat 1 1 0;\n9 1 flat flat 1 1 0;\n") + curve("bs", "jawForward", "4 0.3 auto auto 1 1 0;\n"))
    track, report = import_track(tmp_path / "a.anim", subject)
    assert track.fps == 24 and len(track) == 9
    np.testing.assert_allclose(track.column("jawOpen"), np.r_[0:1:5j, 0.75:0:4j], atol=1e-6)
    np.testing.assert_allclose(track.column("cheekPuff"), [0.2] * 5 + [0.8] * 4, atol=1e-6)
    s = np.linspace(0, 1, 9)
    np.testing.assert_allclose(track.column("mouthPucker"), 3 * s**2 - 2 * s**3, atol=1e-6)
    np.testing.assert_allclose(track.column("jawForward"), 0.3, atol=1e-6)
    assert any("bake" in note for note in report["notes"])


def test_run_lengths_of_a_clip(subject, tmp_path):
    (tmp_path / "a.clip").write_text("{\n rate = 30\n start = 0\n tracklength = 6\n tracks = 1\n {\n  name = jawOpen\n  data_rle = 0.5 @3 0.25 @2 0\n }\n}\n")
    track, _ = import_track(tmp_path / "a.clip", subject)
    np.testing.assert_allclose(track.column("jawOpen"), [0.5, 0.25, 0.25, 0.25, 0, 0])


def test_the_commands_make_the_artists_loop(scene, tmp_path, capsys):
    """Export, change one curve, import: that curve is new, all others are as they were, and what nobody knows is said."""
    from recon.track import Track
    from thnerf.cli import main

    subject = small_subject(tmp_path / "subject", scene.track)
    assert main(["export", str(subject.path), "--to", "csv", "-o", str(tmp_path / "a.csv"), "--json"]) == 0
    table = list(csv.reader((tmp_path / "a.csv").open(newline="")))
    k = table[0].index("jawOpen")
    for row in table[1:]:
        row[k] = "0.125"
    table = [row + [extra] for row, extra in zip(table, ["tail_wag"] + ["1"] * FRAMES)]
    (tmp_path / "b.csv").write_text("\n".join(",".join(row) for row in table) + "\n")
    capsys.readouterr()
    assert main(["import", str(tmp_path / "b.csv"), "--subject", str(subject.path), "-o", str(tmp_path / "b.npz"), "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["unknown"] == ["tail_wag"] and report["frames"] == FRAMES and "tail_wag" in captured.err
    track = Track.load(tmp_path / "b.npz")
    np.testing.assert_allclose(track.column("jawOpen"), 0.125)
    rest = [i for i, n in enumerate(track.expression_names) if n != "jawOpen"]
    np.testing.assert_allclose(track.expression[:, rest], scene.track.expression[:, rest], atol=1e-6)
    np.testing.assert_allclose(track.torso, scene.track.torso)


@pytest.mark.parametrize("arguments, words", [
    (["import", "{}/a.txt", "--subject", "{}/s", "-o", "{}/o.npz"], "has no ending that says what it is"),
    (["import", "{}/none.csv", "--subject", "{}/s", "-o", "{}/o.npz"], "cannot be read"),
    (["import", "{}/a.csv", "--subject", "{}/s", "-o", "{}/o.csv"], "written as .npz"),
    (["import", "{}/a.csv", "--subject", "{}/s", "-o", "{}/o.npz", "--fps", "0"], "--fps"),
    (["export", "--to", "csv", "-o", "{}/o.csv"], "name what to export"),
    (["export", "{}/s", "--to", "livelink", "-o", "{}/o.csv", "--timecode", "1:2"], "no timecode"),
    (["export", "{}/s", "--to", "livelink", "-o", "{}/o.csv", "--timecode", "00:00:01:00", "--start-frame", "3"], "give one of them")])
def test_bad_commands_end_in_one_sentence(scene, tmp_path, capsys, arguments, words):
    from thnerf.cli import main

    small_subject(tmp_path / "s", scene.track)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.csv").write_text("time,jawOpen\n0,0\n0.04,1\n")
    capsys.readouterr()
    assert main([a.format(tmp_path) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o.npz").exists() and not (tmp_path / "o.csv").exists()


def test_timecode_of_the_first_frame(tmp_path):
    export_scene(moving_scene(3), tmp_path / "a.csv", "livelink", ExportOptions(timecode="01:00:00:24"))
    rows = list(csv.DictReader((tmp_path / "a.csv").open(newline="")))
    assert [r["Timecode"] for r in rows] == ["01:00:00:24.000", "01:00:01:00.000", "01:00:01:01.000"]


# ---- names ----

@pytest.mark.parametrize("spelt, meant", [("JawOpen", "jawOpen"), ("jaw_open", "jawOpen"), ("JAWOPEN", "jawOpen"), ("head_blendShape.jawOpen", "jawOpen"),
                                          ("browDown_L", "browDownLeft"), ("eyeBlink_r", "eyeBlinkRight"), ("blendShapes.MouthSmileLeft", "mouthSmileLeft")])
def test_spellings_of_a_name(spelt, meant):
    pairs, unknown = match([spelt, "nonsense"], ARKIT)
    assert pairs == {ARKIT.index(meant): 0} and unknown == ["nonsense"]


def test_no_two_arkit_names_are_alike():
    assert len(ARKIT) == 52 and len({plain(n) for n in ARKIT}) == 52
    assert all(swap_side(swap_side(n)) == n and swap_side(n) in ARKIT for n in ARKIT) and swap_side("jawLeft") == "jawRight"


def test_an_exact_name_beats_a_spelling_of_it():
    pairs, unknown = match(["JawOpen", "jawOpen"], ["jawOpen"])
    assert pairs == {0: 1} and unknown == ["JawOpen"]
