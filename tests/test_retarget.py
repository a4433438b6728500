"""Re-expressing a track: there and back is the same track, clips stay apart, the picture stays where it was."""

import json
from pathlib import Path

import foreign
import numpy as np
import pytest
from test_cli import run

from recon.model import Embedding, MorphableModel, load_model, save_model
from recon.retarget import dense_points, retarget
from recon.gaze import looks_of
from recon.surface import closest_points
from recon.track import Track
from render.camera import Camera
from render.rotations import angle_between, axis_angle_to_matrix, from_head_angles


@pytest.fixture(scope="module")
def flame(tmp_path_factory) -> MorphableModel:
    return load_model(foreign.write_flame(tmp_path_factory.mktemp("flame")))


def remeshed(scale: float = 1.07, turn: float = 0.05, seed: int = 0, named: bool = True) -> MorphableModel:
    """The default head without neck and back, its vertices shuffled, larger and slightly nodding: other numbers, same faces.

    named: whether its expressions say what they are."""
    default, rng = load_model(), np.random.default_rng(seed)
    kept = rng.permutation(np.flatnonzero(~default.regions["neck"] & (default.mean[:, 2] > -60)))
    where = np.full(len(default.mean), -1)
    where[kept] = np.arange(len(kept))
    faces = where[default.faces]
    faces = rng.permutation(faces[(faces >= 0).all(1)])
    R = axis_angle_to_matrix(np.array([turn, 0, 0])).astype(np.float32)
    move = lambda x: scale * x @ R.T  # noqa: E731
    mean = (move(default.mean[kept]) + [2, -3, 4]).astype(np.float32)
    landmarks = {}
    for scheme in default.landmarks:
        at, _ = closest_points(move(default.points(default.mean, scheme)) + [2, -3, 4], mean, faces)
        landmarks[scheme] = Embedding(at.faces, at.barycentric)
    return MorphableModel("remeshed", mean, move(default.shape_basis[:, kept]), move(default.expression_basis[:, kept]), faces,
                          default.expression_names if named else tuple(f"w{i}" for i in range(52)), landmarks, bounds=None if named else np.tile([0.0, 1.0], (52, 1)))


def speech(frames: int = 50, starts: tuple[int, ...] = (0,), seed: int = 1) -> Track:
    """A moving head of the default model; eyeLook follows the gaze, as fit leaves it."""
    model, rng, s = load_model(), np.random.default_rng(seed), np.arange(frames)[:, None] / 25
    wave = lambda n, low, high: low + (high - low) * (0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.2, n) * s + rng.random(n))))  # noqa: E731
    expression = np.zeros((frames, 52))
    for name, top in (("jawOpen", 0.6), ("mouthSmileLeft", 0.5), ("mouthSmileRight", 0.4), ("mouthPucker", 0.5), ("mouthFunnel", 0.3), ("browInnerUp", 0.6),
                      ("eyeBlinkLeft", 0.9), ("eyeBlinkRight", 0.9), ("cheekPuff", 0.2), ("mouthUpperUpLeft", 0.3), ("noseSneerRight", 0.3), ("tongueOut", 0.0)):
        expression[:, model.index(name)] = wave(1, 0, top)[:, 0]
    expression[:, model.index("mouthClose")] = 0.3 * expression[:, model.index("jawOpen")]
    gaze = np.repeat(wave(2, -0.2, 0.2)[:, None], 2, 1)
    looks = looks_of(model.expression_names, gaze)
    expression = np.where(np.isfinite(looks), looks, expression)
    return Track(25, model.model_id, Camera.simple(640, 256, 256, frames), rng.normal(size=80) * 0.8 * (np.arange(80) < 30), expression,
                 from_head_angles(wave(3, -0.2, 0.2)), wave(3, -15, 15) + [0, 0, 640], gaze, rng.normal(size=(frames, 4)) * 0.01,
                 rng.random(frames) > 0.05, model.expression_names, starts, {"detector": "mediapipe"})


def picture(model: MorphableModel, track: Track) -> np.ndarray:
    """Where the camera sees the dense points of the face, (T,N,2) px."""
    at, _ = dense_points(model)
    vertices = model.vertices(track.shape, track.expression)
    points = (vertices[:, model.faces[at.faces]] * at.barycentric[..., None]).sum(-2)
    return track.camera.project(points @ np.swapaxes(axis_angle_to_matrix(track.rotation), -1, -2) + track.translation[:, None])


def test_there_and_back_gives_the_same_weights():
    default, other, track = load_model(), remeshed(named=False), speech()
    there, report = retarget(track, default, other, smoothing=0)
    assert there.model_id == "remeshed" and report["residual_p95_mm"] < 0.05 and report["identity_mm"] < 0.05
    np.testing.assert_allclose(there.expression, track.expression, atol=0.05)
    shared = dense_points(other)[1] > 0.9  # not the rim that this mesh lacks
    gap = np.linalg.norm(picture(other, there) - picture(default, track), axis=-1)[:, shared]
    assert gap.mean() < 0.06 and gap.max() < 0.6
    back, report = retarget(there, other, default, smoothing=0)
    assert report["residual_p95_mm"] < 0.05 and len(report["frame_mean_mm"]) == len(report["frame_p95_mm"]) == 50
    np.testing.assert_allclose(back.expression, track.expression, atol=0.025)
    assert np.degrees(angle_between(back.rotation, track.rotation)).max() < 0.1
    np.testing.assert_allclose(back.gaze, track.gaze, atol=2e-3)
    # Depth and size trade places in a picture; what is seen stays. The remaining fields are the same.
    gap = np.linalg.norm(picture(default, back) - picture(default, track), axis=-1)
    assert gap.mean() < 0.06 and gap.max() < 0.6
    np.testing.assert_array_equal(back.torso, track.torso)
    np.testing.assert_array_equal(back.valid, track.valid)
    assert back.meta["retarget"]["source"] == "remeshed" and back.meta["detector"] == "mediapipe" and json.dumps(dict(back.meta))


def test_names_that_both_models_have_settle_what_geometry_leaves_open():
    """Two models whose mouths differ: pucker is made of other shapes in one, yet stays pucker."""
    default, other, track = load_model(), remeshed(1.0, 0.0), speech(20)
    basis = other.expression_basis.copy()
    basis[other.index("mouthPucker")] = 0.7 * basis[other.index("mouthPucker")] + 0.3 * basis[other.index("mouthFunnel")]
    there, report = retarget(track, default, MorphableModel(**{**vars(other), "expression_basis": basis}), smoothing=0)
    assert np.corrcoef(there.column("mouthPucker"), track.column("mouthPucker"))[0, 1] > 0.99 and report["residual_p95_mm"] < 0.5
    back, _ = retarget(there, MorphableModel(**{**vars(other), "expression_basis": basis}), default, smoothing=0)
    np.testing.assert_allclose(back.expression, track.expression, atol=0.1)


def test_a_model_onto_itself_changes_nothing():
    default, track = load_model(), speech(20)
    same, report = retarget(track, default, default, smoothing=0)
    np.testing.assert_allclose(same.expression, track.expression, atol=0.01)
    np.testing.assert_allclose(same.rotation, track.rotation, atol=1e-3)
    gap = np.linalg.norm(picture(default, same) - picture(default, track), axis=-1)
    assert gap.mean() < 0.06 and gap.max() < 0.6 and abs(report["scale"] - 1) < 5e-3


def test_joints_are_turned_exactly_and_come_back_as_arkit_weights(flame):
    default, track = load_model(), speech()
    there, report = retarget(track, default, flame)
    assert report["residual_mm"] < 0.4
    assert np.corrcoef(there.column("jawPitch"), track.column("jawOpen"))[0, 1] > 0.97
    assert np.abs(there.expression[:, [i for i, n in enumerate(flame.expression_names) if n.startswith(("neck", "eye"))]]).max() == 0
    back, report = retarget(there, flame, default)
    assert report["residual_mm"] < 0.4 and (back.expression >= 0).all() and (back.expression <= 1).all()
    for name in ("jawOpen", "eyeBlinkLeft", "mouthSmileLeft", "mouthPucker", "browInnerUp"):
        assert np.corrcoef(back.column(name), track.column(name))[0, 1] > 0.95, name
    assert (back.column("mouthClose") <= back.column("jawOpen") + 1e-6).all()


def test_a_turning_neck_becomes_head_pose(flame):
    default, frames = load_model(), 12
    expression = np.zeros((frames, len(flame.expression_names)))
    expression[:, flame.index("neckYaw")] = np.linspace(0, 0.5, frames)
    track = Track(25, flame.model_id, Camera.simple(640, 256, 256, frames), np.zeros(300), expression, np.tile([np.pi, 0, 0], (frames, 1)), np.tile([0, 0, 640.0], (frames, 1)),
                  np.zeros((frames, 2, 2)), np.zeros((frames, 0)), np.ones(frames, bool), flame.expression_names)
    found, report = retarget(track, flame, default, smoothing=0)
    turned = angle_between(found.rotation, np.repeat(found.rotation[:1], frames, 0))
    np.testing.assert_allclose(turned, np.linspace(0, 0.5, frames), atol=0.02)
    assert np.abs(found.expression).max() < 0.1 and report["residual_mm"] < 0.3


def test_smoothing_calms_and_crosses_no_clip_border():
    default, other = load_model(), remeshed(1.0, 0.0)
    track = speech(40, (0, 20))
    a, b = track[:20], track[20:]
    rough = track.replace(expression=np.clip(track.expression + np.random.default_rng(3).normal(size=track.expression.shape) * 0.05, 0, 1))
    raw, calm = (retarget(rough, default, other, smoothing=s)[0].expression for s in (0.0, 1.0))
    jerk = lambda e: np.abs(np.diff(e, 2, axis=0)).mean()  # noqa: E731
    assert jerk(calm[:20]) < 0.6 * jerk(raw[:20])
    whole = retarget(track, default, other, smoothing=1.0)[0]
    assert whole.clip_starts == (0, 20)
    for part, frames in ((a, slice(0, 20)), (b, slice(20, 40))):
        alone = retarget(part, default, other, smoothing=1.0)[0]
        np.testing.assert_allclose(alone.expression, whole.expression[frames], atol=2e-3)


def test_expressions_that_move_no_face_are_copied_by_name():
    track = speech(10)
    expression = track.expression.copy()
    expression[:, track.expression_names.index("tongueOut")] = 0.4
    found, _ = retarget(track.replace(expression=expression), load_model(), remeshed(), smoothing=0)
    np.testing.assert_allclose(found.column("tongueOut"), 0.4, atol=1e-6)


def test_wrong_models_are_refused():
    default, other = load_model(), remeshed()
    with pytest.raises(ValueError, match="belongs to the face model"):
        retarget(speech(5), other, default)


def test_the_command(tmp_path, capfd):
    save_model(tmp_path / "other.npz", remeshed())
    speech(12).save(tmp_path / "track.npz")
    code, out, _ = run("retarget", tmp_path / "track.npz", "--model", tmp_path / "other.npz", "-o", tmp_path / "there.npz", "--json", capfd=capfd)
    report = json.loads(out)
    assert code == 0 and report["frames"] == 12 and len(report["frame_mean_mm"]) == 12 and report["residual_mm"] < 0.2
    code, _, err = run("retarget", tmp_path / "there.npz", "--model", "default", "-o", tmp_path / "back.npz", capfd=capfd)
    assert code == 2 and "--source" in err
    code, _, err = run("retarget", tmp_path / "there.npz", "--source", tmp_path / "other.npz", "--model", "default", "-o", tmp_path / "back.npz", capfd=capfd)
    assert code == 0, err
    np.testing.assert_allclose(Track.load(tmp_path / "back.npz").expression, speech(12).expression, atol=0.06)
    for bad in (["--source", "default", "--model", "default", "-o", tmp_path / "x.npz"], ["--source", tmp_path / "other.npz", "--model", tmp_path / "no.pkl", "-o", tmp_path / "x.npz"],
                ["--source", tmp_path / "other.npz", "--model", "default", "-o", tmp_path / "x.csv"]):
        code, _, err = run("retarget", tmp_path / "there.npz", *bad, capfd=capfd)
        assert code == 2 and err.count("thnerf: ") == 1 and not Path(tmp_path / "x.npz").exists()
