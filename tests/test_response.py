"""The measured response of a detector: stored exactly enough, and taken out of what the solver finds."""

import dataclasses

import numpy as np
import pytest
from test_solve import NAMES, linear_head, truth

from recon.config import FitConfig
from recon.model import Embedding, MorphableModel, load_model, save_model
from recon.response import Response, turned
from recon.solve import solve
from recon.track import Track
from render.files import InputError
from render.rotations import angle_between, axis_angle_to_matrix, from_head_angles, head_angles


def lagging(model: MorphableModel, seed: int = 3) -> MorphableModel:
    """The same model under a detector that follows three quarters of the pitch and sees lips and shapes elsewhere."""
    rng = np.random.default_rng(seed)
    tilt = np.stack([0 * model.mean, 0.25 * np.cross([1, 0, 0], model.mean - model.mean.mean(0))]).astype(np.float32)  # pitch up turns about -x
    response = Response(rng.normal(0, 1, model.mean.shape).astype(np.float32), tilt, 0.1 * model.shape_basis, -0.3 * model.expression_basis)
    e = model.landmarks["mediapipe478"]
    return dataclasses.replace(model, landmarks={"mediapipe478": Embedding(e.faces, e.barycentric, response)})


def seen_by(model: MorphableModel, track: Track) -> np.ndarray:
    """Landmarks (T,N,2) px where a detector with the model's response puts them."""
    e = model.landmarks["mediapipe478"]
    points = model.points(model.vertices(track.shape, track.expression), "mediapipe478") + e.response.offset
    points = points + np.tensordot(track.shape, e.response.shape, 1) + np.tensordot(track.expression, e.response.expression, 1)
    R = axis_angle_to_matrix(track.rotation)
    world = np.einsum("tij,tnj->tni", R, points + turned(e.response.angles, R)) + track.translation[:, None]
    return track.camera.project(world)


def test_the_solver_sees_through_a_known_response_and_not_without_it():
    plain = linear_head()
    model, made = lagging(plain), truth(plain)
    seen = seen_by(model, made)
    knowing, naive = (solve(seen, made.valid, (0,), 25, 256, 256, m, FitConfig(focal=640)) for m in (model, plain))
    pitch = lambda track: head_angles(track.rotation)[:, 1]  # noqa: E731
    slope = lambda track: np.polyfit(pitch(made), pitch(track), 1)[0]  # noqa: E731
    assert abs(slope(knowing) - 1) < 0.05 and abs(slope(naive) - 1) > 0.12
    error = lambda track: np.degrees(np.median(angle_between(track.rotation, made.rotation)))  # noqa: E731
    assert error(knowing) < 0.8 and error(knowing) < 0.6 * error(naive)
    assert np.corrcoef(knowing.column(NAMES[0]), made.column(NAMES[0]))[0, 1] > 0.95


def test_a_response_survives_saving_and_must_fit_the_model(tmp_path):
    model = lagging(linear_head())
    save_model(tmp_path / "m.npz", model)
    back = load_model(tmp_path / "m.npz").landmarks["mediapipe478"].response
    for name in ("offset", "angles", "shape", "expression"):
        assert np.allclose(getattr(back, name), getattr(model.landmarks["mediapipe478"].response, name), atol=0.02, rtol=1e-3)
    e = model.landmarks["mediapipe478"]
    odd = dataclasses.replace(e.response, offset=e.response.offset[:-1])
    save_model(tmp_path / "odd.npz", dataclasses.replace(model, landmarks={"mediapipe478": Embedding(e.faces, e.barycentric, odd)}))
    with pytest.raises(InputError, match="response"):
        load_model(tmp_path / "odd.npz")


def test_beyond_its_reach_the_response_stays_put():
    far = axis_angle_to_matrix(from_head_angles(np.array([[1.2, 0.0, 0.0], [0.8, 0.0, 0.0]])))
    a, b = turned(np.ones((2, 4, 3)), far)
    assert np.allclose(a, b, atol=1e-6)
