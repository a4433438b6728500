"""Faces unroll the same way for everybody, and the shipped network brings landmarks nearer to where they are."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from recon import corrector
from recon.assets import asset
from recon.atlas import CHANNELS, SIDE, make_atlas, unroll
from recon.config import FitConfig
from recon.corrector import FILE, LANDMARKS, LOOKS, correct, load_corrector, seen, typical
from recon.landmarks import load_detector
from recon.model import load_model
from recon.photometric import Poses
from recon.solve import solve
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, matrix_to_axis_angle
from thnerf.phantom import motion, scene
from thnerf.phantom.appearance import draw_look

IDENTITY, FRAMES = 431, 10


@pytest.fixture(scope="module")
def phantom():
    """A person that nothing was trained or tuned on: the true Track and pictures of some frames."""
    model = load_model()
    samples, rate, phonemes = scene.utterance("Somebody moved the five blue boxes.", "en-us", 150, 25)
    track = motion.phantom_track(phonemes, samples, rate, model, scene.identity_shape(model, IDENTITY), seed=7, reach=(30.0, 18.0, 8.0))
    studio, chosen = scene.Studio(model, track, draw_look(IDENTITY)), np.linspace(5, len(track) - 6, FRAMES).astype(int)
    camera = replace(track.camera, world_to_camera=track.camera.world_to_camera[chosen])
    few = replace(track, camera=camera, clip_starts=(0,), **{n: getattr(track, n)[chosen] for n in ("expression", "rotation", "translation", "gaze", "torso", "valid")})
    return few, np.stack([studio.frame(int(i)) for i in chosen])


def landmarks(track):
    """True places (T,478,2) px of the embedded points."""
    model, R = load_model(), axis_angle_to_matrix(track.rotation.astype(float))
    points = model.points(model.vertices(track.shape, track.expression), "mediapipe478") @ R.swapaxes(1, 2) + track.translation[:, None]
    return track.camera.project(points)


def unrolled(track, pictures, index):
    atlas, model = make_atlas(load_model()), load_model()
    return unroll(atlas, pictures[index], model.vertices(track.shape, track.expression[index]), axis_angle_to_matrix(track.rotation[index : index + 1].astype(float))[0],
                  track.translation[index].astype(float), float(track.camera.K[0, 0]))


def disturbed(track, degrees=1.5, weights=0.1):
    """A Track whose poses and mouth are off, as those of a first fit are."""
    rng = np.random.default_rng(3)
    R = axis_angle_to_matrix(np.deg2rad(degrees) * rng.normal(0, 0.6, (len(track), 3))) @ axis_angle_to_matrix(track.rotation.astype(float))
    mouth = np.array([n.startswith(("mouth", "jaw")) for n in track.expression_names])
    expression = np.clip(track.expression + weights * mouth * rng.normal(size=track.expression.shape), 0, 1)
    return track.replace(rotation=matrix_to_axis_angle(R), expression=expression.astype(np.float32), shape=0.5 * track.shape)


def fit_of(track):
    """A Track as the solver hands it over."""
    poses = Poses(np.flatnonzero(track.valid), axis_angle_to_matrix(track.rotation.astype(float)), track.translation.astype(float), track.expression.astype(float))
    return load_model(), track.shape, float(track.camera.K[0, 0]), poses


def test_a_face_looks_the_same_unrolled_however_the_head_is_turned(phantom):
    track, pictures = phantom
    yaw = np.abs(track.rotation[:, 1])
    a, b = (unrolled(track, pictures, int(i)) for i in (yaw.argmin(), yaw.argmax()))
    assert a.shape == (CHANNELS, SIDE, SIDE) and a.dtype == np.int8
    both = (a[4] > 40) & (b[4] > 40) & (a[0] != 0) & (b[0] != 0)
    right = np.corrcoef(a[2][both], b[2][both])[0, 1]
    shifted = np.corrcoef(a[2][both], np.roll(b[2], 8, 0)[both])[0, 1]
    assert both.sum() > 1500 and right > 0.45 and right > shifted + 0.3


def test_what_is_typical_is_what_faces_show_and_nothing_where_all_hide_it(phantom):
    faces = np.zeros((3, CHANNELS, SIDE, SIDE), np.int8)
    faces[:, 4], faces[0, 4, :, :20] = 100, 50  # the first one turns its left away
    faces[0, :LOOKS, :, :40], faces[1, :LOOKS, :, :60] = 10, 30
    average = typical(faces)
    assert average.shape == (LOOKS, SIDE, SIDE) and average.dtype == np.int8
    np.testing.assert_array_equal(average[0, 0, [10, 30, 50, 80]], [26, 20, 30, 0])
    track, pictures = phantom
    shown = np.stack([unrolled(track, pictures, i) for i in range(FRAMES)])
    seen_often = (shown[:, 0] != 0).sum(0) > FRAMES // 2
    likeness = [np.corrcoef(typical(shown[1:])[1][seen_often], face[1][seen_often])[0, 1] for face in (shown[0], np.roll(shown[0], 8, 1))]
    assert likeness[0] > 0.5 and likeness[0] > likeness[1] + 0.3


def test_slopes_say_how_landmarks_move(phantom):
    track, _ = phantom
    model, R = load_model(), axis_angle_to_matrix(track.rotation[2:3].astype(float))
    heads = model.points(model.vertices(track.shape, track.expression[2:3]), "mediapipe478").astype(float)
    px, slope = (x[0] for x in seen(heads, R, track.translation[2:3].astype(float), float(track.camera.K[0, 0])))
    np.testing.assert_allclose(px + np.array([128, 128]), landmarks(track)[2], atol=0.02)
    step = np.array([0.5, -0.3, 0.4])
    turned = R[0] @ step
    moved = landmarks(track.replace(translation=track.translation + turned))[2] - landmarks(track)[2]
    np.testing.assert_allclose(slope @ step, moved, atol=0.01)


def test_landmarks_come_nearer_to_the_truth(phantom):
    track, pictures = phantom
    off, truth = disturbed(track), landmarks(track)
    begun = landmarks(off)
    found, deviation = correct(*fit_of(off), begun, begun, pictures)
    before, after = (np.linalg.norm(p - truth, axis=-1)[:, :LANDMARKS] for p in (begun, found))
    assert np.median(after) < 0.6 * np.median(before)
    sure = deviation[:, :LANDMARKS] < np.median(deviation[:, :LANDMARKS])
    assert after[sure].mean() < after[~sure].mean()  # it knows where it does not know
    np.testing.assert_array_equal(found[:, LANDMARKS:], begun[:, LANDMARKS:])


def test_lips_that_turn_away_count_less(phantom, monkeypatch):
    track, pictures = phantom
    points, turned = landmarks(track), int(np.abs(track.rotation[:, 1]).argmax())
    plain = correct(*fit_of(track), points, points, pictures)[1][turned]
    monkeypatch.setattr(corrector, "EDGE", (0.4, 0.9))
    strict = correct(*fit_of(track), points, points, pictures)[1][turned]
    nearer = np.argsort(np.abs(points[turned, [61, 291], 0] - points[turned, 4, 0]))  # corners of the mouth by their distance from the nose: the hidden one first
    added = (strict - plain)[[61, 291]][nearer]
    assert added[0] > added[1] + 0.3
    others = np.setdiff1d(np.arange(LANDMARKS), corrector.LIPS)
    np.testing.assert_allclose(strict[others], plain[others])


def test_frames_without_a_face_stay_as_they_are(phantom):
    track, pictures = phantom
    valid = np.arange(FRAMES) != 4
    points = landmarks(track)
    found, deviation = correct(*fit_of(track.replace(valid=valid)), points, points, pictures)
    np.testing.assert_array_equal(found[4], points[4])
    assert not deviation[4].any() and (deviation[valid][:, :LANDMARKS] > 0).all() and np.isfinite(found).all()


def test_a_fit_is_better_with_it(phantom):
    track, pictures = phantom
    detected = load_detector("mediapipe").detect(pictures)
    assert detected.valid.all()
    errors = {}
    for on in (False, True):
        fitted = solve(detected.points, detected.valid, (0,), 25, 256, 256, load_model(), FitConfig(corrector=on, photometric=False, pose_smoothing=0), pictures=lambda: pictures)
        errors[on] = np.degrees(np.median(angle_between(fitted.rotation, track.rotation))), np.abs(fitted.column("jawOpen") - track.column("jawOpen")).mean()
    assert errors[True][0] < errors[False][0] and errors[True][1] < errors[False][1]


def test_a_clip_with_a_gap_is_fitted_with_it(phantom):
    track, pictures = phantom
    valid, points = np.arange(FRAMES) != 3, landmarks(track)
    points[3] = np.nan
    fitted = solve(points, valid, (0, 5), 25, 256, 256, load_model(), FitConfig(photometric=False), pictures=lambda: pictures)
    assert all(np.isfinite(x).all() for x in (fitted.rotation, fitted.translation, fitted.expression)) and not fitted.valid[3]


@pytest.mark.parametrize("damage", ["cut", "other", "shape"])
def test_a_damaged_network_is_refused_in_one_sentence(tmp_path, damage):
    path = tmp_path / FILE
    tensors = load_file(asset(FILE))
    if damage == "shape":
        tensors["heads"] = tensors["heads"][:5]
    save_file({"a": np.zeros(3, np.float16)} if damage == "other" else tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="landmark corrector"):
        load_corrector(path)
