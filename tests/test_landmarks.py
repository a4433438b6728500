"""Landmarks: distances obey their definitions, one person is followed, bad input is named."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from recon.assets import asset
from recon.landmarks import (IRIS, LIDS, SCHEMES, _IBUG_FROM_478, FaceAlignmentDetector, MediaPipeDetector, StoredDetector, eye_opening, follow_largest, ibug68, inner_lip_gap,
                             interocular, load_detector, mouth_opening, outer_eye_corners)
from render.files import InputError
from render.video import load_video


def random_face(seed: int = 0, points: int = 478) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 256, (points, 2)).astype(np.float32)


def test_ibug68_picks_68_different_points_and_is_idempotent():
    face = random_face()
    assert len(set(_IBUG_FROM_478)) == 68
    assert np.array_equal(ibug68(ibug68(face)), ibug68(face))
    assert ibug68(np.stack([face, face])).shape == (2, 68, 2)


@pytest.mark.parametrize("measure", [interocular, inner_lip_gap])
def test_lengths_scale_and_ratios_do_not(measure):
    face = random_face(1)
    assert np.allclose(measure(face * 3), 3 * measure(face), rtol=1e-5)
    assert np.allclose(measure(face + 17), measure(face), rtol=1e-4)
    assert np.allclose(mouth_opening(face * 3), mouth_opening(face), rtol=1e-5)
    assert np.allclose(eye_opening(face * 3), eye_opening(face), rtol=1e-5)


def test_left_is_the_subjects_left_in_both_schemes():
    face = random_face(2)
    assert np.allclose(outer_eye_corners(face), outer_eye_corners(ibug68(face)))
    assert np.allclose(outer_eye_corners(face)[0], face[LIDS["left"][0]])
    assert not set(IRIS["left"]) & set(IRIS["right"])


def test_a_closed_mouth_and_closed_eyes_measure_zero():
    face = random_face(3)
    for upper, lower in ((13, 14), (82, 87), (312, 317)):
        face[upper] = face[lower]
    assert inner_lip_gap(face) == 0 and mouth_opening(face) == 0


def face_at(x: float, size: float, points: int = 68) -> np.ndarray:
    return random_face(4, points) / 256 * size + np.array([x, 100], np.float32)


def test_the_larger_person_is_followed_though_the_order_changes():
    stream = []
    for i in range(30):
        faces = [face_at(50 + i, 60), face_at(300 - i, 40)]
        stream.append(np.stack(faces[:: 1 if i % 2 else -1]) if i % 5 else np.stack([faces[1]]))  # every fifth frame only the small one
    with pytest.warns(UserWarning, match="more than one face"):
        found = follow_largest(stream, 68)
    assert np.array_equal(found.valid, np.arange(30) % 5 != 0)  # nobody else is taken for the one who was missed
    assert np.allclose(found.points[1], stream[1][0]) and np.allclose(found.points[2], stream[2][1])
    assert found.notes


def test_a_person_who_leaves_and_returns_elsewhere_is_the_same():
    stream = [face_at(50, 60)[None]] * 5 + [np.zeros((0, 68, 2), np.float32)] * 3 + [face_at(400, 60)[None]] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = follow_largest(stream, 68)
    assert found.valid.tolist() == [True] * 5 + [False] * 3 + [True] * 5 and np.isnan(found.points[5:8]).all()
    assert "3 of 13" in found.notes[0]


def test_no_face_at_all_gives_no_valid_frame():
    found = follow_largest([np.zeros((0, 478, 2), np.float32)] * 4, 478)
    assert not found.valid.any() and found.points.shape == (4, 478, 2) and found.scheme == SCHEMES[478]


def test_stored_landmarks_are_dealt_out_clip_by_clip(tmp_path):
    points = np.random.default_rng(0).random((5, 68, 2)).astype(np.float32)
    np.savez(tmp_path / "l.npz", points=points, valid=np.array([1, 1, 0, 1, 1], bool))
    detector = load_detector(str(tmp_path / "l.npz"))
    first, second = detector.detect([None] * 2), detector.detect([None] * 3)
    assert np.allclose(first.points, points[:2]) and second.valid.tolist() == [False, True, True]
    with pytest.raises(InputError, match="holds 5 frames"):
        detector.detect([None])


def test_bad_detectors_are_named(tmp_path):
    with pytest.raises(InputError, match="unknown detector"):
        load_detector("dlib")
    with pytest.raises(InputError, match="does not exist"):
        StoredDetector(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="readable"):
        StoredDetector(tmp_path / "bad.npz")
    np.savez(tmp_path / "shape.npz", points=np.zeros((3, 5, 2)))
    with pytest.raises(InputError, match="478"):
        StoredDetector(tmp_path / "shape.npz")


@pytest.mark.footage
def test_the_same_frame_gives_the_same_points_and_a_smaller_frame_scaled_ones(footage):
    from render.video import read_frames

    frame = next(read_frames(footage / "obama" / "obama.mp4"))
    detector = load_detector()
    a = detector.detect([frame, frame[:, ::-1], frame])
    assert a.valid.all() and np.array_equal(a.points[0], a.points[2])  # no state between frames
    b = detector.detect([np.repeat(np.repeat(frame, 2, 0), 2, 1)])
    assert np.abs(b.points[0] / 2 - a.points[0]).mean() < 0.01 * interocular(a.points[0])
    mirrored = detector.detect([np.zeros_like(frame)])
    assert not mirrored.valid.any()
    left, right = outer_eye_corners(a.points[0])
    assert left[0] > right[0]  # the subject's left is on the right of the picture


def test_several_networks_give_what_one_gives_frame_for_frame():
    frames = load_video(asset("demo") / "video.mp4")[:9]
    one, two = MediaPipeDetector().detect(frames), MediaPipeDetector(threads=2).detect(iter(frames))
    assert one.valid.all() and np.array_equal(one.points, two.points)
    assert np.abs(np.diff(one.points, axis=0)).max() > 0.1  # the frames differ, so their order shows


class FakeAlignment:
    """Stands in for the package face-alignment: loads its weights where PyTorch keeps downloads, as the real one does."""

    class LandmarksType:
        TWO_D = 1

    class FaceAlignment:
        def __init__(self, kind, device, flip_input, compile, face_detector_kwargs):
            import torch

            self.weights = [Path(p).read_text() for p in (face_detector_kwargs["path_to_detector"], Path(torch.hub.get_dir(), "checkpoints", FaceAlignmentDetector.WEIGHTS[1]))]

        def get_landmarks(self, frame):
            return [np.full((68, 2), 10.0)] if frame.any() else None


def test_face_alignment_finds_its_weights_in_the_folder_that_is_named(tmp_path, monkeypatch):
    import sys

    import torch

    monkeypatch.setitem(sys.modules, "face_alignment", FakeAlignment)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    folder, before = tmp_path / "my weights", torch.hub.get_dir()
    folder.mkdir()
    for name in (f"face-alignment:{folder}", "face-alignment"):
        with pytest.raises(InputError, match="face-alignment needs its weights s3fd.* and 2DFAN4.* in .*name their folder with --detector face-alignment:FOLDER"):
            load_detector(name)
    for i, name in enumerate(FaceAlignmentDetector.WEIGHTS):
        (folder / name).write_text(f"weights {i}")
    detector = load_detector(f"face-alignment:{folder}")
    assert detector._network.weights == ["weights 0", "weights 1"] and torch.hub.get_dir() == before
    found = detector.detect([np.ones((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)])
    assert found.valid.tolist() == [True, False] and np.allclose(found.points[0], 10.5)


def test_face_alignment_that_is_not_installed_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(InputError, match="pip install"):
        load_detector("face-alignment:anywhere")
