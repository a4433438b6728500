"""Laws of direction: asked for nothing nothing changes, more is more, and what is asked for is what happens."""

import dataclasses

import numpy as np
import pytest

from recon.model import load_model
from recon.track import Track
from render.files import InputError
from render.rotations import axis_angle_to_matrix
from thnerf.direction import Direction, camera_gaze, direct
from thnerf.emotions import EASE, EMOTIONS, TimedEmotion, add_emotions, parse_emotion
from thnerf.manner import Manner, lid_columns, mouth_columns
from thnerf.phantom import motion, scene

LIPS = (13, 14)


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def track(model) -> Track:
    samples, rate, phonemes = scene.utterance("Bob may pay my puppy. Five very fine vans. Mum poured more! Where were you all this long, warm summer?", "en-us", 150, 25)
    return motion.phantom_track(phonemes, samples, rate, model, scene.identity_shape(model, 0), seed=0, size=256)


@pytest.fixture(scope="module")
def manner(track, model):
    return Manner.of(track, model)


def lip_gap(model, track):
    """Distance (T,) mm between the inner lips of the mesh."""
    points = model.points(model.vertices(track.shape, track.expression), "mediapipe478")
    return np.linalg.norm(points[:, LIPS[0]] - points[:, LIPS[1]], axis=-1)


def longer(track: Track, times: int) -> Track:
    index = np.arange(len(track) * times) % len(track)
    parts = {n: getattr(track, n)[index] for n in ("expression", "rotation", "translation", "gaze", "torso", "valid")}
    return track.replace(camera=track.camera.at(index), **parts)


def test_asked_for_nothing_nothing_changes(track, model):
    assert direct(track, Direction(), track, model) is track
    for wish in (Direction(emotion="happy:0"), Direction(emotion="neutral"), Direction(expression_offset=("jawOpen=0",))):
        np.testing.assert_allclose(direct(track, wish, track, model).expression, track.expression, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in EMOTIONS if n != "neutral"])
def test_emotions_stay_in_bounds_and_lips_keep_articulating(track, model, manner, name):
    before, closed = lip_gap(model, track), np.abs(manner.gap(track.expression)) < 0.03 * manner.reach
    last = track.expression.astype(float)
    for strength in (0.5, 1.0, 2.0):
        felt = direct(track, Direction(emotion=f"{name}:{strength}"), track, model)
        assert felt.expression.min() >= 0 and felt.expression.max() <= 1
        for coefficient, offset in EMOTIONS[name].items():
            i = track.expression_names.index(coefficient)
            if offset > 0 and manner.opening[i] < 0.2:
                assert (felt.expression[:, i] >= last[:, i] - 1e-6).all()
        last = felt.expression
        if strength <= 1:
            after = lip_gap(model, felt)
            assert np.corrcoef(before, after)[0, 1] > 0.9
            assert closed.sum() > 5 and (after - before)[closed].max() < 1.2  # mm
    assert np.abs(last - track.expression).max() > 0.2


def test_timed_emotions_come_and_go(track, manner, tmp_path):
    (tmp_path / "e.csv").write_text("start,end,emotion,strength\n# the middle\n1.0, 3.0, happy, 0.8\n2.0,3.0,surprised\n")
    found = parse_emotion(str(tmp_path / "e.csv"))
    assert found == [TimedEmotion(1, 3, "happy", 0.8), TimedEmotion(2, 3, "surprised", 1)]
    t = np.linspace(0, 4, 4001)
    w = found[0].weight(t)
    assert (w[(t <= 1) | (t >= 3)] == 0).all() and (w[(t >= 1 + EASE) & (t <= 3 - EASE)] > 0.8 - 1e-6).all() and np.abs(np.diff(w)).max() < 0.004
    felt = add_emotions(track.expression, found, track.fps, manner)
    frames = (np.arange(len(track)) + 0.5) / track.fps
    np.testing.assert_array_equal(felt[(frames < 1) | (frames > 3)], track.expression[(frames < 1) | (frames > 3)])
    assert TimedEmotion(0, 0.2, "sad").weight(np.array([0.1]))[0] == 1


@pytest.mark.parametrize("line, words", [
    ("1,2", "line 2.*values"), ("x,2,happy", "line 2.*seconds"), ("2,1,happy", "line 2.*after"), ("-1,1,happy", "line 2"), ("0,nan,happy", "line 2"),
    ("1,2,joy", "line 2.*joy"), ("1,2,hapy", "did you mean happy"), ("1,2,happy,much", "line 2.*much"), ("1,2,happy,3", "line 2.*strength"), ("1,2,happy,1,1", "line 2")])
def test_malformed_timings_name_their_line(tmp_path, line, words):
    (tmp_path / "e.csv").write_text(f"0,1,sad\n{line}\n")
    with pytest.raises(InputError, match=words):
        Direction(emotion=str(tmp_path / "e.csv"))


def test_timings_that_are_no_text_or_empty(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "b.csv").write_text("start,end,emotion\n")
    for name in ("a.csv", "b.csv", "none.csv"):
        with pytest.raises(InputError, match=name):
            Direction(emotion=str(tmp_path / name))


def test_the_mouth_opens_further_with_its_amplitude(track, model, manner):
    gaps = np.stack([lip_gap(model, direct(track, Direction(mouth_amplitude=a), track, model)) for a in (0, 0.5, 1, 1.5, 2)])
    speaking = manner.gap(track.expression) > 0.2 * manner.reach
    assert speaking.sum() > 40 and (np.diff(gaps, axis=0)[:, speaking] > -0.02).all()
    assert np.ptp(gaps[0]) < 0.01  # closed all along
    assert gaps[3].std() > 1.2 * gaps[2].std() > 2 * gaps[1].std()
    other = np.setdiff1d(np.arange(len(track.expression_names)), mouth_columns(track.expression_names))
    np.testing.assert_array_equal(direct(track, Direction(mouth_amplitude=0), track, model).expression[:, other], track.expression[:, other])


def test_offsets_are_added_within_bounds(track, model):
    moved = direct(track, Direction(expression_offset=("browouterup=0.3", "jawOpen=-2", "cheekPuff=0.1", "cheekPuff=0.1")), track, model)
    for name in ("browOuterUpLeft", "browOuterUpRight"):
        np.testing.assert_allclose(moved.column(name), np.clip(track.column(name) + 0.3, 0, 1), atol=1e-6)
    assert (moved.column("jawOpen") == 0).all() and (moved.column("mouthClose") == 0).all()
    np.testing.assert_allclose(moved.column("cheekPuff"), np.clip(track.column("cheekPuff") + 0.2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("text, words", [("jawOpenn=1", "jawOpen"), ("smile=1", "mouthSmileLeft"), ("jawOpen", "NAME=VALUE"), ("jawOpen=wide", "NAME=VALUE"), ("jawOpen=inf", "NAME=VALUE")])
def test_offsets_that_mean_nothing(track, model, text, words):
    with pytest.raises(InputError, match=words):
        direct(track, Direction(expression_offset=(text,)), track, model)


@pytest.mark.parametrize("rate", [0, 6, 20, 40])
def test_as_many_blinks_as_asked_for(track, model, rate):
    long = longer(track, 40)
    seen = direct(long, Direction(blink=str(rate)), track, model)
    lids = seen.expression[:, lid_columns(seen.expression_names)].mean(1)
    up = lids > 0.4
    count, minutes = int((np.diff(up.astype(int)) == 1).sum()), len(long) / long.fps / 60
    assert abs(count / minutes - rate) <= max(0.5, 0.2 * rate)
    rest = np.setdiff1d(np.arange(long.expression.shape[1]), lid_columns(long.expression_names))
    np.testing.assert_array_equal(seen.expression[:, rest], long.expression[:, rest])
    again = direct(long, Direction(blink=str(rate)), track, model)
    np.testing.assert_array_equal(seen.expression, again.expression)
    if rate:
        assert not np.array_equal(seen.expression, direct(long, Direction(blink=str(rate), seed=1), track, model).expression)


def test_blinks_and_gaze_of_footage_and_of_tracks(track, model, tmp_path):
    home = track.replace(gaze=track.gaze + 0.1)
    back = direct(track.replace(expression=np.zeros_like(track.expression), gaze=np.zeros_like(track.gaze)), Direction(blink="source", gaze="source"), home, model)
    lids = lid_columns(track.expression_names)
    np.testing.assert_array_equal(back.expression[:, lids], home.expression[:, lids])
    np.testing.assert_allclose(back.gaze, home.gaze, atol=1e-6)
    home.save(tmp_path / "t.npz")
    same = direct(track, Direction(blink=str(tmp_path / "t.npz"), gaze=str(tmp_path / "t.npz")), None, model)
    np.testing.assert_allclose(same.gaze, home.gaze, atol=1e-6)
    with pytest.raises(InputError, match="need a subject"):
        direct(track, Direction(blink="source"), None, model)


def test_eye_contact_goes_through_the_camera(track, model):
    looked = direct(track, Direction(gaze="camera"), track, model)
    yaw, pitch = np.moveaxis(looked.gaze.astype(float), -1, 0)
    ray = np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], -1)
    eyes = model.eyes(track.shape)
    turn = axis_angle_to_matrix(track.rotation)
    world = np.einsum("tij,tsj->tsi", turn, ray)
    at = np.einsum("tij,sj->tsi", turn, eyes) + track.translation[:, None]
    miss = np.linalg.norm(np.cross(world, -at), axis=-1)
    assert miss.max() < 0.5 and (np.einsum("tsi,tsi->ts", world, -at) > 0).all()  # mm, the camera is at the origin
    assert np.abs(camera_gaze(track) - camera_gaze(track, model)).max() < 0.1  # without eyeballs nearly the same


def test_eyes_stay_within_what_the_field_has_seen(track, model):
    sent = direct(track, Direction(gaze="10,-5"), track, model)
    np.testing.assert_allclose(np.degrees(sent.gaze), np.broadcast_to([10, -5], sent.gaze.shape), atol=1e-4)
    assert sent.column("eyeLookOutLeft").min() > 0 and sent.column("eyeLookInRight").min() > 0
    with pytest.warns(UserWarning, match="the footage shows gaze"):
        kept = direct(track, Direction(gaze="35,0"), track, model, seen=True)
    assert np.degrees(kept.gaze[..., 0].max()) <= np.degrees(track.gaze[..., 0].max()) + 4.01


@pytest.mark.parametrize("wish", [{"blink": "often"}, {"blink": "-1"}, {"blink": "nan"}, {"gaze": "left"}, {"gaze": "1"}, {"gaze": "90,0"}, {"gaze": "nan,0"}, {"emotion": "joy"},
                                  {"emotion": "happy:"}, {"emotion": "happy:9"}, {"mouth_amplitude": -1}, {"mouth_amplitude": float("nan")}, {"liveliness": 9}, {"seed": -1},
                                  {"text": "Hello", "drive": "a.mp4"}])
def test_wishes_that_cannot_be(wish):
    with pytest.raises(InputError):
        Direction(**wish)


def test_face_models_without_arkit_weights(track):
    names = tuple(f"expression{i}" for i in range(8))
    flat = track.replace(expression=track.expression[:, :8], expression_names=names, model_id="other")
    with pytest.raises(InputError, match="ARKit"):
        direct(flat, Direction(emotion="happy"), flat)
    with pytest.raises(InputError, match="eyeBlinkLeft"):
        direct(flat, Direction(blink="10"), flat)
    assert direct(flat, Direction(expression_offset=("Expression3=0.5",)), flat).expression[0, 3] == pytest.approx(flat.expression[0, 3] + 0.5)


def test_every_option_says_what_it_does():
    import inspect

    from thnerf.direction import Direction as D

    source = "".join(inspect.getsource(c) for c in D.__mro__[:-1])
    for field in dataclasses.fields(D):
        following = source.split(f"\n    {field.name}:", 1)[1].split("\n", 1)[1].lstrip()
        assert following.startswith('"""'), field.name


def test_the_default_head_is_directed_without_a_subject(track, tmp_path):
    from thnerf.performance import animated

    plain = animated(None, Direction(text="Good morning to you all."))
    held = animated(None, Direction(text="Good morning to you all.", pose="still", mouth_amplitude=0.0, liveliness=0.5))
    assert len(plain.track) == len(held.track) == pytest.approx(25 * len(plain.sound[0]) / plain.sound[1], abs=1)
    assert np.ptp(held.track.rotation, axis=0).max() < 1e-5 < np.ptp(plain.track.rotation, axis=0).max()
    assert np.ptp(held.track.column("jawOpen")) < 1e-6 < np.ptp(plain.track.column("jawOpen"))
    track.save(tmp_path / "pose.npz")
    led = animated(None, Direction(text="Good morning to you all.", pose=str(tmp_path / "pose.npz"))).track
    np.testing.assert_allclose(axis_angle_to_matrix(led.rotation[:20]), axis_angle_to_matrix(track.rotation[:20]), atol=0.05)
    for wish in ({"drive": "a.mp4"}, {"text": "Hi", "pose": "source"}, {"text": "Hi", "pose": "a.mp4"}, {}):
        with pytest.raises(InputError):
            animated(None, Direction(**wish))


def test_the_command_line_hands_every_wish_over(monkeypatch, tmp_path, capsys):
    from recon.subject import Subject
    from thnerf import cli, synthesis

    got = {}
    monkeypatch.setattr(Subject, "open", classmethod(lambda cls, path: path))
    monkeypatch.setattr(synthesis, "render_speech", lambda subject, audio, out, **options: got.update(options, audio=audio) or {})
    argv = ["render", "me", "--text", "Hello", "--voice", "de", "--pose", "still", "--blink", "12", "--gaze=-10,5", "--emotion", "sad:0.5", "--mouth-amplitude", "1.2",
            "--expression-offset", "jawOpen=0.1", "--expression-offset", "cheekPuff=-0.2", "--liveliness", "0.5", "--seed", "3", "--dub"]
    assert cli.main(argv) == 0 and got["dub"] and got["audio"] is None
    assert got["direction"] == Direction(text="Hello", voice="de", pose="still", blink="12", gaze="-10,5", emotion="sad:0.5", mouth_amplitude=1.2,
                                         expression_offset=("jawOpen=0.1", "cheekPuff=-0.2"), liveliness=0.5, seed=3)
    assert cli.main(["render", "me", "--emotion", "hapy"]) == 2
    assert "did you mean happy" in capsys.readouterr().err
