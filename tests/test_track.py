"""The Track: round trips, slicing and resampling laws, and refusals."""

import numpy as np
import pytest

from recon.track import Track, concatenate
from render.camera import Camera
from render.files import InputError
from render.rotations import angle_between, from_head_angles

RNG = np.random.default_rng(0)


def make(frames=40, starts=(0,), fps=25.0, **changes):
    """A smooth track with two coefficients."""
    t = np.arange(frames) / 25
    angles = 0.2 * np.stack([np.sin(t), np.cos(1.3 * t), np.sin(0.7 * t)], -1)
    parts = dict(
        fps=fps, model_id="m", camera=Camera.simple(500, 64, 64, frames), shape=np.ones(3), expression=np.stack([t / t.max(), np.sin(t) ** 2], -1),
        rotation=from_head_angles(angles), translation=np.stack([t, 2 * t, 700 + t], -1), gaze=np.zeros((frames, 2, 2)), torso=t[:, None],
        valid=np.ones(frames), expression_names=("a", "b"), clip_starts=starts, meta={"note": "x"})
    return Track(**{**parts, **changes})


def test_save_and_load_is_the_identity_without_pickle(tmp_path):
    track = make(starts=(0, 15))
    track.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as data:
        assert {"version", "fps", "model_id", "camera", "shape", "expression", "rotation", "translation", "gaze", "torso", "valid",
                "expression_names", "clip_starts", "meta"} == set(data.files)
    loaded = Track.load(tmp_path / "t.npz")
    for name in ("shape", "expression", "rotation", "translation", "gaze", "torso", "valid"):
        assert np.array_equal(getattr(loaded, name), getattr(track, name))
    assert (loaded.fps, loaded.model_id, loaded.expression_names, loaded.clip_starts, loaded.meta) == (25, "m", ("a", "b"), (0, 15), {"note": "x"})
    assert np.array_equal(loaded.camera.K, track.camera.K) and len(loaded.camera) == 40


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x80\x04pickle", b"some text"])
def test_damaged_files_are_refused_with_a_sentence(tmp_path, content):
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(InputError, match="t.npz") as caught:
        Track.load(tmp_path / "t.npz")
    assert "pickle" not in str(caught.value), "numpy's advice to let it run is none for a user"


@pytest.mark.parametrize("changes, words", [({"fps": 1e9}, "1e.09 frames per second"), ({"expression": np.full((40, 2), 1e6)}, "expression has values up to 1e.06"),
                                            ({"translation": np.full((40, 3), 1e8)}, "translation has values")])
def test_motion_that_cannot_be_is_refused_when_it_is_read(tmp_path, changes, words):
    make(**changes).save(tmp_path / "t.npz")
    with pytest.raises(InputError, match=words):
        Track.load(tmp_path / "t.npz")


def test_a_truncated_file_and_a_newer_version_are_refused(tmp_path):
    make().save(tmp_path / "t.npz")
    whole = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "new.npz", version=99)
    for name in ("half.npz", "new.npz", "absent.npz"):
        with pytest.raises(InputError):
            Track.load(tmp_path / name)


def test_slices_join_to_the_whole_and_keep_clip_starts():
    track = make(starts=(0, 15, 30))
    assert track[10:35].clip_starts == (0, 5, 20)
    joined = concatenate([track[0:15], track[15:30], track[30:40]])
    assert joined.clip_starts == track.clip_starts and np.array_equal(joined.rotation, track.rotation)
    with pytest.raises(TypeError):
        track[::2]


def test_resampling_keeps_duration_and_endpoints_and_undoes_itself():
    track = make(starts=(0, 15))
    up = track.resample(50)
    assert len(up) == 80 and up.clip_starts == (0, 30) and up.fps == 50
    back = up.resample(25)
    assert np.allclose(back.expression, track.expression, atol=1e-5)
    assert angle_between(back.rotation, track.rotation).max() < 1e-5
    assert len(track.resample(30)) == pytest.approx(40 * 30 / 25, abs=2)


def test_resampling_does_not_interpolate_across_a_clip_start():
    values = np.zeros((40, 2))
    values[20:] = 1
    up = make(starts=(0, 20), expression=values).resample(60)
    assert set(np.unique(up.expression)) == {0.0, 1.0}


def test_mixing_models_is_an_error():
    with pytest.raises(ValueError, match="different face models"):
        concatenate([make(), make(model_id="other")])


@pytest.mark.parametrize("changes", [
    {"expression": np.zeros((40, 3))}, {"rotation": np.full((40, 3), np.nan)}, {"fps": 0}, {"clip_starts": (0, 0)}, {"clip_starts": (5,)},
    {"camera": Camera.simple(500, 64, 64, 3)}, {"valid": np.ones(3)}])
def test_inconsistent_tracks_cannot_be_made(changes):
    with pytest.raises(ValueError):
        make(**changes)
