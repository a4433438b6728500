"""What a render becomes: files with and without alpha, sizes and views beyond the fitted crop, backgrounds."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from render.camera import Camera
from render.exr import read_exr, write_exr
from render.files import InputError
from render.light import coded, linear
from render.outputs import open_output, output_kind, premultiplied
from render.plane import hang, plane_homography
from render.rotations import axis_angle_to_matrix
from render.video import VideoWriter, load_video, probe, read_audio_track
from synthetic import make_subject, toy_model
from thnerf.background import resolve_background
from thnerf.config import FieldConfig, TorsoConfig, TrainConfig
from thnerf.synthesis import parse_size, render_track, sized
from thnerf.trainer import load_renderer, train

SMALL = TrainConfig(
    steps=200, samples_per_step=12000, preview_seconds=1e9, save_seconds=1e9,
    head=FieldConfig(levels=6, log2_entries=12, finest_resolution=64, width=16, expression_modes=2, occupancy=48, step_mm=6),
    torso=TorsoConfig(levels=4, log2_entries=10, finest_resolution=48, width=16))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """(subject, renderer) of the toy, trained for seconds."""
    subject = make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=44, size=64)
    return subject, load_renderer(train(subject, dataclasses.replace(SMALL), toy_model()), subject)


def cutout(width=48, height=34, seed=0):
    """A straight RGBA picture: smooth colours, alpha from 0 to 1."""
    v, u = np.mgrid[0:height, 0:width]
    shift = 0.3 * seed
    rgb = np.stack([0.5 + 0.4 * np.sin(u / 9 + shift), 0.5 + 0.4 * np.cos(v / 7 + shift), 0.3 + 0.4 * u / width], -1)
    alpha = np.clip(1.6 - np.hypot(u - width / 2, v - height / 2) / 10, 0, 1)
    return np.concatenate([rgb, alpha[..., None]], -1).astype(np.float32)


def psnr(a, b):
    return -10 * np.log10(np.mean((np.asarray(a, float) - b) ** 2))


@pytest.mark.parametrize("name, kind", [("a.mp4", "mp4"), ("a.MOV", "mov"), ("frames", "png"), ("f/%05d.png", "png"), ("f/shot_%04d.exr", "exr")])
def test_the_name_says_the_kind(tmp_path, name, kind):
    assert output_kind(tmp_path / name) == kind


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.exr", "%02d/%05d_%03d.png"])
def test_names_that_say_no_kind(tmp_path, name):
    with pytest.raises(InputError):
        output_kind(tmp_path / name)


def write(path, frames, **options):
    with open_output(path, frames[0].shape[1], frames[0].shape[0], 25, **options) as writer:
        for frame in frames:
            writer.write(frame)


def movie_frames(path):
    """Straight RGBA (T,H,W,4) in [0,1] of a movie, alpha included."""
    import av

    with av.open(str(path)) as source:
        return np.stack([f.reformat(format="rgba64le", src_colorspace=1, src_color_range=1, dst_color_range=2).to_ndarray() for f in source.decode(video=0)]) / 65535


def test_prores_keeps_colour_alpha_and_sound(tmp_path):
    frames = [cutout(seed=i) for i in range(6)]
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    write(tmp_path / "a.mov", frames, audio=(tone, 48000), synthetic=True)
    back = movie_frames(tmp_path / "a.mov")
    assert back.shape == (6, 34, 48, 4)
    for seen, frame in zip(back, frames):
        assert np.abs(seen[..., 3] - frame[..., 3]).max() < 0.004
        assert psnr(seen[..., :3], frame[..., :3]) > 40
    info = probe(tmp_path / "a.mov")
    assert (info.codec, info.audio_codec, info.sample_rate) == ("prores", "pcm_s16le", 48000)
    sound = read_audio_track(tmp_path / "a.mov")
    assert len(sound) == 6 * 1920 and np.abs(sound - tone[: len(sound)]).max() < 1e-4  # PCM: to the last bit
    assert b"trainedAlgorithmicMedia" in (tmp_path / "a.mov").read_bytes()


def test_png_sequence_is_exact_and_replaces_an_earlier_one(tmp_path):
    frames = [cutout(seed=i) for i in range(5)]
    (tmp_path / "f").mkdir()
    for name in ("00009.png", "00001.png", "other.png", "00001.txt"):
        (tmp_path / "f" / name).write_bytes(b"earlier")
    write(tmp_path / "f" / "%05d.png", frames, synthetic=True)
    assert sorted(p.name for p in (tmp_path / "f").iterdir()) == ["00001.png", "00001.txt", "00002.png", "00003.png", "00004.png", "00005.png", "other.png"]
    for i, frame in enumerate(frames):
        seen = np.asarray(Image.open(tmp_path / "f" / f"{i + 1:05d}.png"))
        assert seen.shape == (34, 48, 4) and np.abs(seen / 255 - frame).max() <= 0.5 / 255 + 1e-6
    assert b"trainedAlgorithmicMedia" in (tmp_path / "f" / "00001.png").read_bytes()


@pytest.mark.parametrize("name", ["f/%05d.png", "f/%05d.exr", "f/a.mov"])
def test_an_interrupted_output_leaves_the_earlier_one(tmp_path, name):
    write(tmp_path / name, [cutout()] * 2)
    before = {p.name: p.read_bytes() for p in (tmp_path / "f").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        with open_output(tmp_path / name, 48, 34, 25) as writer:
            writer.write(cutout(seed=3))
            raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in (tmp_path / "f").iterdir()} == before


@pytest.mark.parametrize("shape", [(1, 1, 4), (16, 5, 3), (33, 40, 4), (50, 7, 1), (17, 3, 2)])
def test_exr_round_trip_is_exact(tmp_path, shape):
    rng = np.random.default_rng(1)
    image = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, shape)).astype(np.float32)  # noise does not compress: both branches are met
    image[: shape[0] // 2] = 0.25
    write_exr(tmp_path / "a.exr", image)
    back, names = read_exr(tmp_path / "a.exr")
    order = [names.index(c) for c in {1: "Z", 2: "ZA", 3: "RGB", 4: "RGBA"}[shape[2]]]
    np.testing.assert_array_equal(back[..., order], image)
    (tmp_path / "b.exr").write_bytes((tmp_path / "a.exr").read_bytes()[:60])
    with pytest.raises(InputError):
        read_exr(tmp_path / "b.exr")


def test_exr_is_what_the_library_reads(tmp_path):
    library = pytest.importorskip("OpenEXR", reason="the OpenEXR bindings are not installed (extra: test)")
    image = premultiplied(cutout())
    write_exr(tmp_path / "a.exr", image, {"DigitalSourceType": "x"}, 25)
    with library.File(str(tmp_path / "a.exr")) as source:
        np.testing.assert_array_equal(source.channels()["RGBA"].pixels, image)
        assert source.header()["DigitalSourceType"] == "x"


def test_exr_sequence_is_premultiplied_linear_light(tmp_path):
    frame = cutout()
    write(tmp_path / "%03d.exr", [frame])
    back, names = read_exr(tmp_path / "001.exr")
    assert names == "ABGR"
    alpha, rgb = back[..., 0], back[..., :0:-1]
    np.testing.assert_allclose(alpha, frame[..., 3], atol=1e-6)
    np.testing.assert_allclose(rgb, ((frame[..., :3] + 0.055) / 1.055) ** 2.4 * frame[..., 3:], atol=1e-5)
    shown = alpha > 0.1
    np.testing.assert_allclose(coded(rgb / np.maximum(alpha, 1e-6)[..., None])[shown], frame[..., :3][shown], atol=1e-4)


def test_linear_and_coded_are_inverse():
    x = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(coded(linear(x)), x, atol=1e-6)


@pytest.mark.parametrize("name, tolerance", [("f/%05d.png", 2 / 255), ("f/%05d.exr", 1e-4), ("a.mov", 0.06)])
def test_a_cutout_over_a_background_is_the_opaque_render(toy, tmp_path, name, tolerance):
    subject, renderer = toy
    track, plate = subject.track[20:22], np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    render_track(renderer, track, tmp_path / name, transparent=True)
    if name == "a.mov":
        seen = movie_frames(tmp_path / name)[1]
    elif name.endswith("png"):
        seen = np.asarray(Image.open(tmp_path / "f" / "00002.png")) / 255
    else:
        light = read_exr(tmp_path / "f" / "00002.exr")[0][..., ::-1]
        seen = np.concatenate([coded(light[..., :3] / np.maximum(light[..., 3:], 1e-6)), light[..., 3:]], -1)
    opaque = renderer.frame(track, 1, plate)
    assert 0.2 < seen[..., 3].mean() < 0.8
    assert np.quantile(np.abs(seen[..., :3] * seen[..., 3:] + (1 - seen[..., 3:]) * plate - opaque), 0.995) < tolerance


def test_twice_the_size_averaged_is_the_picture(toy):
    subject, renderer = toy
    track = subject.track
    for index in (0, 30):
        plain = renderer.frame(track, index)
        large = renderer.frame(sized(track, 128, "a.mp4"), index)
        assert large.shape == (128, 128, 3)
        averaged = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert psnr(averaged, plain) > 35
        assert psnr(np.roll(averaged, 1, 1), plain) < 30  # half a pixel of misplacement would show


@pytest.mark.parametrize("size, left, top", [("160x96", 32, 0), ("96x160", 0, 64), ("98x96", 1, 0)])
def test_other_shapes_show_the_fitted_crop_whole(toy, size, left, top):
    subject, renderer = toy
    track = subject.track
    square = renderer.frame_rgba(sized(track, 96, "a.mp4"), 12)
    wide = renderer.frame_rgba(sized(track, size, "a.mp4"), 12)
    inside = wide[top : top + 96, left : left + 96]
    np.testing.assert_allclose(np.quantile(np.abs(inside - square), 0.99), 0, atol=2e-3)
    opaque = renderer.frame(sized(track, size, "a.mp4"), 12)[top : top + 96, left : left + 96]
    assert np.quantile(np.abs(opaque - renderer.frame(sized(track, 96, "a.mp4"), 12)), 0.99) < 2e-3
    assert np.isfinite(wide).all() and wide.shape == (top + 96, *wide.shape[1:])


def test_a_camera_that_steps_aside_moves_what_is_near(toy):
    """Head and torso move together, by parallax."""
    subject, renderer = toy
    track = subject.track[:1]
    here = renderer.frame_rgba(track, 0)[..., 3]
    aside = track.camera.world_to_camera.copy()
    aside[0, 0, 3] -= 40.0
    there = renderer.frame_rgba(track.replace(camera=Camera(track.camera.K, aside, 64, 64)), 0)[..., 3]
    pixels = 40 * track.camera.K[0, 0] / (track.translation[0, 2] + 30)
    edge = [np.median(np.argmax(a[10:30] > 0.5, axis=1)) for a in (here, there)]
    assert edge[0] - edge[1] == pytest.approx(pixels, abs=1.5)
    view = renderer._view(track.replace(camera=Camera(track.camera.K, aside, 64, 64)))  # the torso hangs somewhat behind the face
    assert view.homography[0, 2] == pytest.approx(-40 * track.camera.K[0, 0] / (track.translation[0, 2] + 60), abs=1e-3) and not view.whole


def test_plane_homography_agrees_with_projection():
    rng = np.random.default_rng(0)
    source = Camera.simple(300, 64, 48)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = axis_angle_to_matrix(np.array([0.1, -0.3, 0.05])), (40, -20, 15)
    target = Camera(np.array([[200, 0, 30], [0, 210, 33], [0, 0, 1.0]]), pose[None], 80, 60)
    points = np.concatenate([rng.uniform(-60, 60, (9, 2)), np.full((9, 1), 500.0)], 1)[None]
    homography = plane_homography(source, target, 0, 500.0)
    seen = np.concatenate([source.project(points)[0], np.ones((9, 1))], 1) @ homography.T
    np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], target.project(points)[0], atol=1e-6)


def test_hanging_a_picture_straight_or_bent_is_the_same():
    picture = cutout()[..., :3]
    moved = np.array([[1, 0, 10.0], [0, 1, 4], [0, 0, 1]])
    exact, bent = hang(picture, moved, 70, 50), hang(picture, moved @ np.diag([1 + 1e-5, 1, 1]), 70, 50)
    np.testing.assert_allclose(exact[6:36, 12:56], bent[6:36, 12:56], atol=2e-2)
    np.testing.assert_array_equal(exact[4:38, 10:58], picture)
    np.testing.assert_array_equal(exact[:4, 10:58], np.repeat(picture[:1], 4, 0))


@pytest.mark.parametrize("text, size", [("512", (512, 512)), (300, (300, 300)), ("1280x720", (1280, 720)), ("64X48", (64, 48)), (None, None)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "12", "0", "axb", "640x", "99999", "-64", "1280x720x3"])
def test_sizes_that_cannot_be(text):
    with pytest.raises(InputError, match="--size"):
        parse_size(text)


def test_odd_sizes_are_for_formats_that_have_them(toy, tmp_path):
    track = toy[0].track[:2]
    with pytest.raises(InputError, match="even"):
        sized(track, "65x63", tmp_path / "a.mp4")
    assert sized(track, "65x63", tmp_path / "a.mov").camera.width == 65
    render_track(toy[1], sized(track, "65x63", "a.mov"), tmp_path / "a.mov", transparent=True)
    assert movie_frames(tmp_path / "a.mov").shape == (2, 63, 65, 4)


def test_backgrounds(tmp_path):
    ask = lambda text, out="a.mp4": resolve_background(text, out, 32, 24, 25.0)  # noqa: E731
    assert ask(None) == (None, False) and ask(None, "a.mov") == (None, True) and ask("own", "a.mov") == (None, False) and ask("none", "f") == (None, True)
    for text, colour in (("green", (0, 177, 64)), ("#102030", (16, 32, 48))):
        np.testing.assert_allclose(next(ask(text)[0])[3, 5] * 255, colour, atol=1e-3)
    with VideoWriter(tmp_path / "room.mp4", 64, 64, 25) as writer:
        for level in (40, 120, 200):
            writer.write(np.full((64, 64, 3), level, np.uint8))
    frames, transparent = ask(tmp_path / "room.mp4")
    levels = [next(frames).mean() * 255 for _ in range(5)]
    assert not transparent and levels == pytest.approx([40, 120, 200, 40, 120], abs=3)
    for text in ("#12", "#gggggg", "nothing.png", "nothing.mp4"):
        with pytest.raises(InputError):
            ask(text)
    with pytest.raises(InputError, match="transparent"):
        ask("none")


def test_a_moving_background_moves(toy, tmp_path):
    subject, renderer = toy
    levels = iter([np.full((64, 64, 3), v, np.float32) for v in (0.1, 0.5, 0.9)])
    render_track(renderer, subject.track[:3], tmp_path / "a.mp4", background=levels)
    corner = load_video(tmp_path / "a.mp4")[:, 2:10, 2:10].mean((1, 2, 3)) / 255
    np.testing.assert_allclose(corner, [0.1, 0.5, 0.9], atol=0.04)
