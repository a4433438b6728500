"""Pictures of a fit: the mesh lies where the track says, and the files are what a player and a reader expect."""

import numpy as np
import pytest

from recon.model import load_model
from recon.overlay import draw_points, posed_vertices, write_curves, write_overlay
from recon.track import Track
from render.camera import Camera
from render.rotations import from_head_angles
from render.video import load_video, probe

SIDE, FRAMES = 96, 6


@pytest.fixture(scope="module")
def model():
    return load_model("default")


@pytest.fixture(scope="module")
def track(model):
    """A head that moves 60 mm from left to right in the picture; the last frame is invalid."""
    names = tuple(model.expression_names)
    translation = np.stack([np.linspace(-30, 30, FRAMES), np.zeros(FRAMES), np.full(FRAMES, 700)], -1)
    centre = model.vertices(np.zeros(len(model.shape_basis)), np.zeros(len(names))).mean(0)
    rotation = from_head_angles(np.zeros((FRAMES, 3)))
    return Track(25, "default", Camera.simple(200, SIDE, SIDE, FRAMES), np.zeros(len(model.shape_basis)), np.zeros((FRAMES, len(names))), rotation,
                 translation + centre * [-1, 1, 1], np.zeros((FRAMES, 2, 2)), np.zeros((FRAMES, 4)), np.arange(FRAMES) < FRAMES - 1, names, (0, 3))


def test_posed_vertices_follow_the_track_rigidly(model, track):
    first, last = posed_vertices(model, track, 0), posed_vertices(model, track, FRAMES - 1)
    assert np.allclose(last - first, [60, 0, 0], atol=1e-3)


def test_points_are_drawn_where_they_are_and_nowhere_else():
    frame = np.zeros((20, 30, 3), np.uint8)
    draw_points(frame, np.array([[4.5, 7.5], [29.9, 19.9], [-1, 5], [30, 5], [np.nan, 3], [np.inf, 3]]), (9, 8, 7))
    assert sorted(map(tuple, np.argwhere(frame.any(-1)))) == [(7, 4), (19, 29)] and tuple(frame[7, 4]) == (9, 8, 7)


def test_the_overlay_shows_the_frame_the_points_and_the_mesh_side_by_side(tmp_path, model, track):
    frames = np.full((FRAMES, SIDE, SIDE, 3), 100, np.uint8)
    points = np.full((FRAMES, 478, 2), np.nan)
    points[:, :40] = np.stack(np.meshgrid(np.arange(8) + 10, np.arange(5) + 60), -1).reshape(-1, 2) + 0.5
    write_overlay(tmp_path / "o.mp4", frames, track, model, points)
    info = probe(tmp_path / "o.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (3 * SIDE, SIDE, FRAMES, 25)
    clean, marked, meshed = np.split(load_video(tmp_path / "o.mp4").astype(int), 3, axis=2)
    assert np.abs(clean[:, :, : SIDE - 4] - 100).max() < 12, "the first column is the footage itself"
    assert (np.abs(marked - 100).max(-1)[:, 60:65, 10:18] > 25).all()
    changed = np.abs(meshed - 100).max(-1) > 25
    columns = [np.flatnonzero(changed[t, :, 4:].any(0)).mean() for t in (0, FRAMES - 2)]
    # 48 mm of motion at about 700 mm with a focal length of 200 px, less where the silhouette is nearer or cut
    assert 8 < columns[1] - columns[0] < 20, "the mesh moves with the track"
    assert meshed[FRAMES - 1].mean() < 60, "an invalid frame is darkened"


def test_curves_are_drawn_for_any_track(tmp_path, track):
    from PIL import Image

    error = np.full(FRAMES, 1.5)
    error[-1] = np.nan
    write_curves(tmp_path / "a.png", track, error, {"train": [[0, 4]], "test": [[4, 6]]})
    write_curves(tmp_path / "b.png", track[:1], error[:1])
    for name in "ab":
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert min(picture.shape[:2]) > 400 and picture.std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
