"""Training data: rays agree with projection, boxes with landmarks, statistics with the training frames alone."""

import numpy as np
import pytest

from recon.subject import Subject
from render.camera import Camera
from render.files import InputError
from render.rotations import axis_angle_to_matrix
from synthetic import make_subject, toy_frame, toy_model, toy_track
from thnerf.dataset import LIMIT, PATCH, Condition, head_rays, landmark_boxes, load_training_set, pixel_directions, typical_meshes


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=44, size=64)


def test_head_rays_invert_projection_under_a_moving_camera() -> None:
    track = toy_track(6, 64)
    world = np.repeat(np.eye(4)[None], 6, 0)
    world[:, :3, :3] = axis_angle_to_matrix(np.random.default_rng(0).normal(0, 0.05, (6, 3)))
    world[:, :3, 3] = [5, -3, 20]
    track = track.replace(camera=Camera(track.camera.K, world, 64, 64))
    points = np.random.default_rng(1).normal(0, 60, (9, 3))
    posed = np.einsum("tij,nj->tni", axis_angle_to_matrix(track.rotation), points) + track.translation[:, None]
    pixels = track.camera.project(posed)
    origins, matrices = head_rays(track, np.arange(6))
    for t in range(6):
        directions = pixel_directions(np.linalg.inv(track.camera.K), pixels[t, :, 0] - 0.5, pixels[t, :, 1] - 0.5) @ matrices[t].T
        to_point = points - origins[t]
        cosine = (to_point * directions).sum(1) / np.linalg.norm(to_point, axis=1) / np.linalg.norm(directions, axis=1)
        assert np.allclose(cosine, 1, atol=1e-6)


def test_set_holds_exactly_the_valid_training_frames(subject: Subject) -> None:
    data = load_training_set(subject, toy_model(), 3, 1000)
    assert np.array_equal(data.index, np.arange(40))
    truth = toy_frame(subject.track, 7)[0]
    assert np.abs(data.images[7] / 255 - truth).mean() < 0.03
    thinned = load_training_set(subject, toy_model(), 3, 10)
    assert len(thinned.index) == 10 and np.array_equal(thinned.images[-1], data.images[39])


def test_statistics_do_not_see_the_held_out_frames(subject: Subject) -> None:
    track, model = subject.track, toy_model()
    expression, torso = track.expression.copy(), track.torso.copy()
    expression[40:], torso[40:] = 0.123, 9.0
    changed = track.replace(expression=expression, torso=torso)
    a, b = (Condition.fit(t, np.arange(40), model, 3) for t in (track, changed))
    for name, value in a.arrays().items():
        assert np.array_equal(value, b.arrays()[name]), name


def test_conditions_are_white_and_separate_blinks(subject: Subject) -> None:
    track, model = subject.track, toy_model()
    condition = Condition.fit(track, np.arange(44), model, 2)
    psi = condition.expression(track)
    assert psi.shape == (44, 2 + 2 + 2)
    assert np.allclose(psi.mean(0), 0, atol=0.2) and np.allclose(psi[:, 0].std(), 1, atol=0.15)
    only_blink = np.repeat(track.expression[:1], 2, 0)
    only_blink[1, 1] = only_blink[0, 1] + 0.3
    pair = condition.expression(track[0:2].replace(expression=only_blink))
    assert np.abs(pair[1] - pair[0])[2] > 0.5 and np.abs(pair[1] - pair[0])[[0, 1, 3, 4, 5]].max() < 1e-5
    still = track.replace(expression=track.expression * np.float32(0.05))  # with hardly a blink in the footage
    only_blink[1, 1] = 1.0
    assert Condition.fit(still, np.arange(44), model, 2).expression(track[0:2].replace(expression=only_blink))[1, 2] > LIMIT  # a whole one is not cut off
    with pytest.raises(InputError, match="expression names"):
        condition.expression(track.replace(expression_names=("a", "b", "c", "d")))


def test_boxes_hold_the_landmarks_and_the_mouth_lies_in_the_face(subject: Subject) -> None:
    face, mouth, _ = landmark_boxes(subject.track, toy_model(), np.arange(44))
    assert (mouth[:, :2] >= face[:, :2]).all() and (mouth[:, 2:] <= face[:, 2:]).all()
    image = toy_frame(subject.track, 5)[0]
    dark = np.argwhere(np.abs(image - [0.25, 0.05, 0.08]).sum(-1) < 1e-6)
    x0, y0, x1, y1 = mouth[5]
    assert len(dark) and x0 <= dark[:, 1].mean() < x1 and y0 <= dark[:, 0].mean() < y1


def test_sampling_returns_the_pixels_it_names(subject: Subject) -> None:
    data = load_training_set(subject, toy_model(), 3, 1000)
    batch = data.sample(np.random.default_rng(0), 3, 500)
    for i in (0, 250, 499):
        frame = batch.frames[batch.slot[i]]
        assert np.allclose(batch.colour[i] * 255, data.images[frame, batch.v[i], batch.u[i]])
    x0, y0, x1, y1 = data.mouth_boxes.mean(0)
    inside = (batch.u >= x0) & (batch.u < x1) & (batch.v >= y0) & (batch.v < y1)
    assert inside.mean() > 3 * (x1 - x0) * (y1 - y0) / 64**2


def test_patches_are_squares_of_one_frame(subject: Subject) -> None:
    data = load_training_set(subject, toy_model(), 3, 1000)
    batch = data.sample(np.random.default_rng(0), 3, 2000, patches=6)
    assert len(batch.u) == 2000 and batch.patches.shape == (6, PATCH, PATCH) and (np.diff(batch.slot) >= 0).all()
    for square in batch.patches:
        assert len(np.unique(batch.slot[square])) == 1
        assert (np.diff(batch.u[square], axis=1) == 1).all() and (np.diff(batch.v[square], axis=0) == 1).all()
    frame = batch.frames[batch.slot[batch.patches[0, 3, 4]]]
    assert np.allclose(batch.colour[batch.patches[0, 3, 4]] * 255, data.images[frame, batch.v[batch.patches[0, 3, 4]], batch.u[batch.patches[0, 3, 4]]])


def test_frames_are_drawn_by_their_weight(subject: Subject) -> None:
    data = load_training_set(subject, toy_model(), 3, 1000)
    weight = np.zeros(len(data.index))
    weight[[3, 7]] = 1, 3
    drawn = data.sample(np.random.default_rng(0), 400, 1000, weight=weight).frames
    assert set(drawn) == {3, 7} and 0.65 < (drawn == 7).mean() < 0.85


def test_typical_meshes_reach_the_extremes(subject: Subject) -> None:
    model, track = toy_model(), subject.track
    meshes = typical_meshes(track, np.arange(40), model, 4)
    lowest = model.vertices(track.shape, track.expression[:40])[..., 1].min()
    assert meshes.shape == (5, len(model.mean), 3) and meshes[..., 1].min() == pytest.approx(lowest, abs=2)


def test_video_that_is_too_short_says_so(subject: Subject, tmp_path) -> None:
    longer = toy_track(80, 64)
    copy = make_subject(tmp_path / "short", frames=22, size=64)
    longer.save(copy.track_path)
    copy.json_path.write_text(copy.json_path.read_text().replace("20", "70"))
    with pytest.raises(InputError, match="ends after"):
        load_training_set(Subject.open(copy.path), toy_model(), 3, 1000)
