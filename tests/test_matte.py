"""Mattes and plates: the plate is the empty scene, without a ghost, and never invents detail where nothing was seen."""

import numpy as np
import pytest

from recon.matte import EdgeRefiner, Matter, background_plate, fill_smoothly, seen_background, sharpen


def scene():
    """A gradient scene with a person-sized block moving over it, and exact mattes."""
    v, u = np.mgrid[0:64, 0:64]
    plate = np.stack([u * 3, v * 3, 60 + 0 * u], -1).astype(np.uint8)
    frames, mattes = [], []
    for t in range(30):
        matte = (np.abs(u - 32 - 12 * np.sin(t / 3)) < 10) & (v > 12)
        frames.append(np.where(matte[..., None], np.uint8(250), plate))
        mattes.append(np.where(matte, 255, 0))
    return plate, np.stack(frames), np.stack(mattes).astype(np.uint8)


def test_the_plate_is_the_scene_wherever_it_was_seen_and_smooth_elsewhere():
    plate, frames, mattes = scene()
    found = background_plate(frames, mattes).astype(int)
    assert np.abs(found - plate).max() <= 30
    assert np.abs(found - plate)[:12].max() <= 1
    assert (np.abs(found - 250).max(-1) > 20).all(), "the person left a ghost"


def test_the_plate_reaches_up_to_a_person_who_never_moves():
    rng = np.random.default_rng(0)
    plate = rng.integers(0, 255, (128, 128, 3)).astype(np.uint8)
    matte = np.zeros((128, 128), np.uint8)
    matte[40:, 40:90] = 255
    frame = np.where(matte[..., None] > 0, 250, plate).astype(np.uint8)
    found = background_plate(np.repeat(frame[None], 20, 0), np.repeat(matte[None], 20, 0))
    rim = np.zeros((128, 128), bool)
    rim[37:, 37:93] = True  # further in only a guess is left
    assert np.array_equal(found[~rim], plate[~rim]) and not np.array_equal(found[rim], frame[rim])
    assert np.array_equal(seen_background(np.repeat(matte[None], 20, 0))[:38], np.ones((38, 128), bool))


def test_filling_keeps_known_pixels_and_stays_within_their_range():
    image = np.zeros((16, 16, 3), np.float32)
    image[:, :8] = 100
    known = np.zeros((16, 16), bool)
    known[:, :4] = known[:, 12:] = True
    filled = fill_smoothly(image, known)
    assert np.allclose(filled[known], image[known])
    assert filled.min() >= -1e-3 and filled.max() <= 100.001


def test_sharpening_is_monotone_and_reaches_both_ends():
    x = sharpen(np.linspace(0, 1, 50))
    assert (np.diff(x) >= 0).all() and x[0] == 0 and x[-1] == 1


def test_a_static_scene_gives_a_static_matte():
    frame = np.full((64, 64, 3), 127, np.uint8)
    mattes = Matter().matte(np.stack([frame] * 4))
    assert mattes.shape == (4, 64, 64) and (np.diff(mattes.astype(int), axis=0) == 0).all()


def hairy(dark=(40, 30, 25), light=(120, 180, 230)):
    """A dark blob with strands before a gradient: frame, true alpha, and a network-like mask that knows nothing of strands."""
    import cv2

    fine = np.zeros((512, 512), np.uint8)
    cv2.circle(fine, (256, 330), 150, 255, -1)
    blob = fine.copy()
    for angle in np.linspace(np.pi * 1.05, np.pi * 1.95, 40):
        direction = np.array([np.cos(angle), np.sin(angle)])
        cv2.line(fine, tuple(int(v) for v in (256, 330) + 140 * direction), tuple(int(v) for v in (256, 330) + 155 * direction), 255, 1)
    alpha = cv2.resize(fine, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    room = np.linspace(0.7, 1.0, 256)[:, None, None] * np.array(light)
    frame = np.clip(alpha * np.array(dark) + (1 - alpha) * room + np.random.default_rng(0).normal(0, 1.5, (256, 256, 3)), 0, 255).astype(np.uint8)
    mask = cv2.GaussianBlur(cv2.resize(blob, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32) / 255, (0, 0), 1.5)
    return frame, alpha[..., 0], mask


def test_colours_bring_strands_back_and_sharpen_the_outline():
    frame, alpha, mask = hairy()
    before, after = np.abs(sharpen(mask) - alpha), np.abs(EdgeRefiner()(frame, mask) - alpha)
    assert after.mean() < 0.6 * before.mean()
    far = mask < 1e-3
    assert after[far & (alpha == 0)].mean() < 1e-3


def test_where_colours_say_nothing_the_network_decides():
    mask = hairy()[2]
    flat = np.full((256, 256, 3), 128, np.uint8)
    inner = (mask > 0.06) & (mask < 0.94)
    assert np.allclose(EdgeRefiner()(flat, mask)[inner], sharpen(mask)[inner], atol=0.02)


def test_a_person_who_darkens_towards_the_outline_keeps_it():
    import cv2

    _, _, mask = hairy()
    solid = mask > 0.5
    depth = np.clip(cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 5) / 12, 0, 1)[..., None]
    frame = np.where(solid[..., None], (0.6 + 0.4 * depth) * np.array([200, 150, 120]), np.array([60, 60, 70])).astype(np.uint8)
    assert EdgeRefiner()(frame, mask)[mask > 0.85].min() > 0.9


def test_nothing_is_carried_across_a_clip_start():
    rng = np.random.default_rng(0)
    a, b = (np.repeat(np.repeat(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), 16, 0), 16, 1) for _ in range(2))
    matter = Matter()
    assert (matter.matte(np.stack([a, a, b, b]), (0, 2))[2:] == matter.matte(np.stack([b, b]))).all()


def test_a_plate_says_what_it_never_saw():
    _, _, mattes = scene()
    assert seen_background(mattes).all(), "the block leaves every place at some time"
    still = seen_background(np.repeat(mattes[:1], 30, 0))
    assert not still[mattes[0] > 0].any() and still[:10].all()


def test_the_phantoms_exact_alpha_is_met_more_closely_than_by_the_network():
    import cv2

    from recon.assets import asset
    from recon.model import load_model
    from recon.track import Track
    from thnerf.phantom.appearance import draw_look
    from thnerf.phantom.scene import Studio

    studio = Studio(load_model("default"), Track.load(asset("demo/track.npz"))[60:64], draw_look(8))
    room, frames = studio.room, [studio.frame(i) for i in range(4)]
    studio._develop = lambda image, index: cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
    covered = []
    for level in (0.0, 1.0):
        studio.room = np.full_like(room, level)
        covered.append(studio.frame(3).mean(-1))
    truth = np.clip(1 - (covered[1] - covered[0]), 0, 1)
    plain, refined = (np.abs(Matter(refine=r).matte(np.stack(frames))[3] / 255 - truth)[:110].mean() for r in (False, True))
    assert refined < 0.8 * plain


@pytest.mark.footage
def test_a_real_speaker_is_cut_out(footage):
    from render.video import load_video

    frames = load_video(footage / "silent" / "wojtek.mp4")[:40:8]
    mattes = Matter().matte(frames)
    height, width = mattes.shape[1:]
    assert (mattes[:, height // 2, width // 2] > 250).all()
    assert (mattes[:, : height // 10, : width // 10] < 5).all()
