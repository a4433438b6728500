"""Atomic writes, the subject folder, the split, and the demo's comparison with the truth."""

import errno
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from recon.subject import Subject, make_split
from render.files import InputError, StageError, atomic_path, check_numbers, check_place, read_json, write_failure, write_json
from render.rotations import from_head_angles, head_angles
from thnerf.demo import compare_tracks


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("earlier")
    with pytest.raises(RuntimeError):
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("died")
    assert target.read_text() == "earlier" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_sentence(tmp_path):
    with pytest.raises(StageError, match="free some space"):
        with atomic_path(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_only_a_full_disk_is_told_to_free_space():
    import av

    full = av.error.classes[errno.ENOSPC](errno.ENOSPC, "No space left on device")
    refused = av.error.classes[errno.EINVAL](errno.EINVAL, "Invalid argument")
    assert "free some space" in str(write_failure("a.mp4", full)) and "free some space" in str(write_failure("a.mp4", OSError(errno.ENOSPC, "No space left on device")))
    assert str(write_failure("a.mp4", refused)).startswith("cannot encode a.mp4: ffmpeg says 'Invalid argument'")
    assert "space" not in str(write_failure("a.mp4", PermissionError(errno.EACCES, "Permission denied")))


@dataclass(frozen=True)
class Inner:
    step_mm: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str = "nan"
    on: bool = True
    rate: float = 1.0
    steps: int | None = None
    head: Inner = Inner()


@pytest.mark.parametrize("config, words", [
    (Outer(rate=math.nan), "--rate must be a finite number, not nan"), (Outer(rate=math.inf), "--rate must be a finite"), (Outer(steps=-1), "--steps must be a number of at least 0, not -1"),
    (Outer(head=Inner(math.nan)), "--head.step-mm must lie between 0.5 and 20, not nan"), (Outer(head=Inner(21)), "--head.step-mm must lie")])
def test_a_number_that_cannot_be_is_refused_by_the_name_of_its_option(config, words):
    limits = {"steps": (0, math.inf), "head.step_mm": (0.5, 20)}
    check_numbers(Outer(), limits)
    with pytest.raises(InputError) as caught:
        check_numbers(config, limits)
    assert str(caught.value).startswith(words)


def test_a_place_where_nothing_can_be_written_is_refused_and_others_are_left_alone(tmp_path):
    (tmp_path / "file").touch()
    check_place(tmp_path / "file")
    check_place(tmp_path / "new" / "deeper" / "a.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    for bad in (tmp_path / "file" / "a.mp4", "/proc/none/a.mp4"):
        with pytest.raises(InputError, match="choose another place"):
            check_place(bad)


def test_json_holds_no_infinity(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("inf"), "y": np.float32(1.5), "z": [float("nan"), np.arange(2)]})
    assert read_json(tmp_path / "a.json") == {"x": None, "y": 1.5, "z": [None, [0, 1]]}
    (tmp_path / "b.json").write_text("{")
    for name in ("b.json", "none.json"):
        with pytest.raises(InputError):
            read_json(tmp_path / name)


@pytest.mark.parametrize("frames, starts", [(110, (0,)), (1259, (0,)), (5, (0,)), (300, (0, 75, 150, 225)), (4500, tuple(range(0, 4500, 75)))])
def test_the_split_tiles_the_frames_and_holds_back_about_an_eleventh(frames, starts):
    split = make_split(starts, frames)
    cover = np.zeros(frames, int)
    for a, b in split["train"] + split["test"]:
        cover[a:b] += 1
    assert (cover == 1).all() and split["train"]
    held = sum(b - a for a, b in split["test"])
    longest = max(np.diff([*starts, frames]))
    assert abs(held - frames / 11) <= (longest if len(starts) > 1 else 0.5) or frames < 11
    if len(starts) > 1:
        assert all(a in starts for a, _ in split["test"]), "whole clips only"


def test_run_names_cannot_leave_the_subject(tmp_path):
    for name in ("", "..", "a/b", "/tmp/x"):
        with pytest.raises(InputError):
            Subject(tmp_path).run(name)


def test_unfinished_subjects_say_what_to_do(tmp_path):
    for prepare in (lambda: None, lambda: (tmp_path / "subject.json").write_text(json.dumps({"split": {}}))):
        prepare()
        with pytest.raises(InputError, match="thnerf fit"):
            Subject.open(tmp_path)


def test_comparison_with_the_truth_is_exact_on_the_truth_and_sees_an_offset():
    from recon.track import Track
    from render.camera import Camera

    t = np.arange(30) / 25
    angles = 0.1 * np.stack([np.sin(t), np.cos(t), t], -1)
    truth = Track(25, "m", Camera.simple(500, 64, 64, 30), np.zeros(1), np.stack([np.sin(9 * t) ** 2, 0 * t], -1), from_head_angles(angles),
                  np.zeros((30, 3)), np.zeros((30, 2, 2)), np.zeros((30, 0)), np.ones(30), ("jawOpen", "mouthPucker"))
    same = compare_tracks(truth, truth)
    assert same["rotation_error_deg"] < 1e-3 and same["correlation"] == {"jawOpen": pytest.approx(1)}
    turned = truth.replace(rotation=from_head_angles(head_angles(truth.rotation) + [np.radians(3), 0, 0]), expression=1 - truth.expression)
    worse = compare_tracks(turned, truth)
    assert worse["rotation_error_deg"] == pytest.approx(3, abs=0.05) and worse["correlation"]["jawOpen"] == pytest.approx(-1)
    with pytest.raises(ValueError):
        compare_tracks(truth.replace(model_id="other"), truth)
