"""Metrics against their definitions, spelt out slowly, and on pictures and motions whose answer is known."""

import math

import numpy as np
import pytest

from thnerf import metrics
from thnerf.metrics import KEYS, Measurement


def picture(seed=0, size=48):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(size, size, 3)).cumsum(0).cumsum(1)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return (smooth * 255).astype(np.uint8)


def noisy(image, sigma=12, seed=1):
    return np.clip(image + np.random.default_rng(seed).normal(0, sigma, image.shape), 0, 255).astype(np.uint8)


def face(opening, shift=0.0, scale=1.0):
    """(T,68,2) px points of a face 60 px between the outer eye corners whose inner lips are `opening` (T,) px apart."""
    rng = np.random.default_rng(7)
    base = rng.uniform(20, 110, (68, 2))
    base[36], base[45] = (30, 50), (90, 50)
    points = np.repeat(base[None], len(opening), 0)
    for upper, lower in ((61, 67), (62, 66), (63, 65)):
        points[:, upper] = (55 + upper - 62, 90)
        points[:, lower, 0] = 55 + upper - 62
        points[:, lower, 1] = 90 + np.asarray(opening)
    return points * scale + np.asarray(shift).reshape(-1, 1, 1)


def talk(frames=120, seed=3):
    rng = np.random.default_rng(seed)
    return np.abs(np.convolve(rng.normal(size=frames + 8), np.hanning(9), "valid")) + 1


def measured(truth, render):
    m = Measurement()
    image = picture(size=128)
    for a, b in zip(truth, render):
        m.add(image, image, a, b)
    return m


def jaw_face(size=128):
    """(68,2) px points with a jaw line of 17 points on a half circle around the middle."""
    points = face([6.0])[0]
    angle = np.linspace(0, np.pi, 17)
    points[:17] = size / 2 + 0.35 * size * np.stack([-np.cos(angle), np.sin(angle)], 1)
    return points


def blinking(opening):
    """(T,68,2) px points whose lid gap is `opening` (T,) of an eye 20 px wide."""
    points = np.repeat(face([3.0]), len(opening), 0)
    for corner, other, uppers, lowers in ((36, 39, (37, 38), (41, 40)), (42, 45, (43, 44), (47, 46))):
        points[:, corner], points[:, other] = (30 + 2 * (corner - 36), 50), (50 + 2 * (corner - 36), 50)
        for k, (u, l) in enumerate(zip(uppers, lowers)):
            points[:, u] = points[:, l] = (36 + 2 * (corner - 36) + 6 * k, 50)
            points[:, u, 1] -= 20 * np.asarray(opening) / 2
            points[:, l, 1] += 20 * np.asarray(opening) / 2
    return points


def test_psnr_is_its_definition():
    a, b = picture(), noisy(picture())
    expected = 20 * math.log10(255) - 10 * math.log10(np.mean((a.astype(float) - b.astype(float)) ** 2))
    assert metrics.psnr(a, b) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr(a, a) == math.inf
    assert metrics.psnr(np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)) == pytest.approx(0)


def test_ssim_is_its_definition():
    """Window by window, with explicit weights (Wang et al. 2004, equations 14–17)."""
    a, b = picture(size=20), noisy(picture(size=20))
    w = np.exp(-0.5 * (np.arange(11) - 5.0) ** 2 / 1.5**2)
    w = np.outer(w, w) / np.outer(w, w).sum()
    slow = np.zeros((10, 10, 3))
    for r, c, k in np.ndindex(slow.shape):
        x, y = (im[r : r + 11, c : c + 11, k].astype(float) for im in (a, b))
        mx, my = (w * x).sum(), (w * y).sum()
        vx, vy, vxy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
        slow[r, c, k] = (2 * mx * my + 2.55**2) * (2 * vxy + 7.65**2) / ((mx**2 + my**2 + 2.55**2) * (vx + vy + 7.65**2))
    np.testing.assert_allclose(metrics.ssim_map(a, b), slow.mean(-1), atol=1e-9)
    assert metrics.ssim(a, a) == pytest.approx(1)


def test_ssim_equals_scikit_image():
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = picture(), noisy(picture())
    full = skimage.structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)[1]
    np.testing.assert_allclose(metrics.ssim_map(a, b), full.mean(-1)[5:-5, 5:-5], atol=1e-9)


def test_box_metrics_are_those_of_the_crop():
    a, b, points = picture(size=128), noisy(picture(size=128)), face([6.0])[0]
    values = dict(zip(metrics.IMAGE_KEYS, metrics.image_metrics(a, b, points)))
    for key, part, margin in (("face", points, 0.10), ("mouth", points[48:68], 0.25)):
        extent = np.ptp(part, axis=0) * margin
        x0, y0 = np.maximum(np.floor(part.min(0) - extent), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(part.max(0) + extent), 128).astype(int)
        crop = lambda im: im[y0:y1, x0:x1]  # noqa: E731
        assert values["psnr_" + key] == pytest.approx(metrics.psnr(crop(a), crop(b)))
        assert values["ssim_" + key] == pytest.approx(metrics.ssim(crop(a), crop(b)))


def test_an_error_outside_the_box_leaves_the_box_alone():
    a, points = picture(size=128), face([6.0])[0]
    left, top, right, bottom = metrics.landmark_box(points, 0.1, 128, 128)
    b = a.copy()
    b[: top - 1] = 255 - b[: top - 1]
    values = dict(zip(metrics.IMAGE_KEYS, metrics.image_metrics(a, b, points)))
    assert values["psnr_face"] == math.inf and values["psnr_full"] < 30


def test_no_landmarks_no_box():
    values = metrics.image_metrics(picture(size=128), noisy(picture(size=128)), np.full((68, 2), np.nan))
    assert np.isfinite(values[[0, 3]]).all() and np.isnan(values[[1, 2, 4, 5]]).all()
    assert metrics.landmark_box(face([3.0])[0] + 1000, 0.1, 128, 128) is None


def test_perfect_render():
    points = face(talk())
    block = measured(points, points).result()
    assert [block[k] for k in metrics.IMAGE_KEYS] == [None, None, None, pytest.approx(1), pytest.approx(1), pytest.approx(1)]
    assert (block["lmd_px"], block["lmd_iod"], block["jitter_ratio"], block["av_offset_frames"]) == (0, 0, None, 0)
    assert block["mouth_correlation"] == pytest.approx(1)
    assert block["landmark_frames"] == len(points) and set(KEYS) <= set(block)


def test_lmd_ignores_translation_and_scales_with_the_picture():
    truth, render = face(talk()), face(talk(seed=9))
    px, iod = metrics.landmark_distance(truth, render)
    assert px > 0 and iod == pytest.approx(px / 60)
    assert metrics.landmark_distance(truth, render + 25)[0] == pytest.approx(px)
    assert metrics.landmark_distance(truth * 2, render * 2) == (pytest.approx(2 * px), pytest.approx(iod))


def test_lmd_of_one_moved_point():
    truth = face([5.0])
    render = truth.copy()
    render[0, 48, 0] += 4  # the centroid moves by 4/20
    assert metrics.landmark_distance(truth, render)[0] == pytest.approx((3.8 + 19 * 0.2) / 20)


def test_mouth_correlation_of_frozen_scaled_and_mirrored_motion():
    motion = talk()
    assert metrics.mouth_correlation(face(motion), face(np.full(120, 3.0))) == 0
    assert metrics.mouth_correlation(face(motion), face(motion, scale=3.0)) == pytest.approx(1)
    assert metrics.mouth_correlation(face(motion), face(20 - motion)) == pytest.approx(-1)


def test_mouth_amplitude_is_a_ratio_of_deviations():
    motion = talk()
    assert metrics.mouth_amplitude(face(motion), face(motion, scale=3.0)) == pytest.approx(1)  # of the picture's own interocular distance
    assert metrics.mouth_amplitude(face(motion), face(2 + 0.5 * motion)) == pytest.approx(0.5)
    assert metrics.mouth_amplitude(face(motion), face(np.full(120, 3.0))) == pytest.approx(0, abs=1e-6)
    assert metrics.mouth_amplitude(face(np.full(120, 3.0)), face(motion)) is None
    assert metrics.mouth_amplitude(face(motion), np.full((120, 68, 2), np.nan)) is None


@pytest.mark.parametrize("late", [-4, -1, 0, 1, 3])
def test_offset_of_a_delayed_picture(late):
    motion = talk(140)
    truth, render = face(motion[10:130]), face(motion[10 - late : 130 - late])
    assert metrics.av_offset(truth, render) == late
    assert metrics.av_offset(truth, face(np.full(120, 3.0))) is None


def test_offset_pools_clips_and_never_pairs_across_their_starts():
    motions = [talk(60, seed) for seed in (1, 2, 3)]
    late = [np.concatenate([m[:2], m[:-2]]) for m in motions]  # each clip is 2 frames late on its own
    starts = (0, 60, 120)
    assert metrics.av_offset(face(np.concatenate(motions)), face(np.concatenate(late)), starts) == 2


def test_jitter_ratio_compares_second_differences():
    rng = np.random.default_rng(0)
    shake = rng.normal(0, 0.2, 100)
    truth = face(talk(100), shift=shake)
    assert metrics.jitter_ratio(truth, face(talk(100), shift=1.5 * shake)) == pytest.approx(1.5)
    assert metrics.jitter_ratio(truth, face(talk(100), shift=shake + 0.3 * np.arange(100))) == pytest.approx(1)


def test_jitter_does_not_cross_clip_starts():
    rng = np.random.default_rng(0)
    shake = rng.normal(0, 0.2, 100)
    jump = shake + np.where(np.arange(100) >= 50, 40, 0)
    truth, render = face(talk(100), shift=shake), face(talk(100), shift=jump)
    assert metrics.jitter_ratio(truth, render, (0, 50)) == pytest.approx(1)
    assert metrics.jitter_ratio(truth, render) > 10


def test_frames_without_a_face_are_left_out_and_counted():
    rng = np.random.default_rng(1)
    motion, shake = talk(), rng.normal(0, 0.2, 120)
    truth, render = face(motion, shift=shake), face(motion, shift=shake)
    render[10:20], truth[50] = np.nan, np.nan
    block = measured(truth, render).result()
    assert block["landmark_frames"] == 109 and block["box_frames"] == 119
    assert block["mouth_correlation"] == pytest.approx(1) and block["jitter_ratio"] == pytest.approx(1) and block["av_offset_frames"] == 0
    nothing = measured(truth, np.full_like(render, np.nan)).result()
    assert [nothing[k] for k in metrics.LANDMARK_KEYS] == [None] * 6 and nothing["ssim_full"] is not None


def test_table_has_a_line_for_each_setting():
    block = measured(face(talk()), face(talk(seed=4))).result()
    result = {"frames": 120, **{s: block for s in metrics.SETTINGS}, "audio": None, "notes": {"audio": "the footage has no sound"}}
    lines = metrics.format_table(result).splitlines()
    assert len(lines) == 7 and "no sound" in lines[4] and lines[1].startswith("truth")


def test_lpips_is_a_mean_over_frames_with_a_box():
    m, image = Measurement(), picture(size=128)
    for value in (0.1, math.nan, 0.3):
        m.add(image, image, face([6.0])[0], face([6.0])[0], lpips=value)
    assert m.result()["lpips"] == pytest.approx(0.2)
    lines = metrics.format_table({"frames": 3, "truth": {**m.result(), "lpips": None}, "reconstruct": m.result(), "notes": {}}).splitlines()
    assert lines[0].endswith("LPIPS") and lines[1].endswith("–") and lines[2].endswith("0.2000")


@pytest.mark.parametrize("size", [128, 256])
def test_the_seam_band_is_all_that_lies_near_the_jaw_line(size):
    points = jaw_face(size)
    band, line = metrics.seam_band(points, size, size), points[3:14]
    dense = np.concatenate([a + np.linspace(0, 1, 200)[:, None] * (b - a) for a, b in zip(line, line[1:])])
    rng = np.random.default_rng(0)
    for y, x in rng.integers(0, size, (400, 2)):
        distance = np.linalg.norm(dense - (x + 0.5, y + 0.5), axis=1).min()
        if abs(distance - 10 * size / 256) > 0.05:
            assert band[y, x] == (distance < 10 * size / 256)
    assert band.sum() == pytest.approx(2 * 10 * size / 256 * np.linalg.norm(np.diff(line, axis=0), axis=1).sum(), rel=0.2)


def test_seam_psnr_sees_the_seam_and_nothing_else():
    a, points = picture(size=128), jaw_face()
    band = metrics.seam_band(points, 128, 128)
    elsewhere, torn = a.copy(), a.copy()
    elsewhere[~band] = 255 - elsewhere[~band]
    torn[band] = np.clip(torn[band].astype(int) + 20, 0, 255)
    assert metrics.psnr_seam(a, elsewhere, points) == math.inf
    assert metrics.psnr_seam(a, torn, points) == pytest.approx(metrics.psnr(a[band], torn[band])) and metrics.psnr_seam(a, torn, points) < 25
    assert math.isnan(metrics.psnr_seam(a, torn, np.full((68, 2), np.nan)))
    assert measured([points] * 3, [points] * 3).result()["psnr_seam"] is None  # equal pictures: infinite


def test_a_jaw_that_moves_away_does_not_take_the_band_along():
    a, points = picture(size=128), jaw_face()
    shifted = np.roll(a, 6, axis=0)
    m = Measurement()
    m.add(a, shifted, points, points + [0, 6])
    assert m.result()["psnr_seam"] == pytest.approx(metrics.psnr_seam(a, shifted, points)) and m.result()["psnr_seam"] < 40


def test_eye_correlation_of_blinks_missed_late_and_mirrored():
    rng = np.random.default_rng(2)
    lids = 0.3 - 0.28 * (np.convolve(rng.random(200) > 0.96, np.ones(5), "same") > 0) + rng.normal(0, 0.004, 200)
    assert metrics.eye_correlation(blinking(lids), blinking(0.1 + 0.5 * lids)) == pytest.approx(1)
    assert metrics.eye_correlation(blinking(lids), blinking(np.full(200, 0.3))) == 0
    assert metrics.eye_correlation(blinking(lids), blinking(np.roll(lids, 6))) < 0.5
    assert metrics.eye_correlation(blinking(lids), blinking(0.4 - lids)) == pytest.approx(-1)
    assert metrics.eye_correlation(blinking(lids), np.full((200, 68, 2), np.nan)) is None


def trembling(images, truth, matte, starts=(0,), key="jitter_outside"):
    m = Measurement()
    for a, b in zip(truth, images):
        m.add(a, b, face([3.0])[0], face([3.0])[0], matte)
    return m.result(starts)[key]


def test_jitter_is_the_ratio_of_second_differences_outside_the_person():
    rng = np.random.default_rng(0)
    matte = np.zeros((64, 64), np.uint8)
    matte[:, 32:] = 255
    noise = rng.integers(-8, 9, (12, 64, 64, 3))
    footage = (120 + noise).astype(np.uint8)
    for key in ("jitter_outside", "jitter_background", "jitter_edge"):
        assert trembling((120 + 3 * noise).astype(np.uint8), footage, matte, key=key) == pytest.approx(3)
        assert trembling(np.full_like(footage, 120), footage, matte, key=key) == 0
        assert trembling(footage, footage, matte, key=key) == pytest.approx(1)
        person = footage.copy()
        person[:, :, 32:] = rng.integers(0, 255, person[:, :, 32:].shape)  # what the person does is no matter
        assert trembling(person, footage, matte, key=key) == pytest.approx(1)
        assert trembling(footage, np.full_like(footage, 120), matte, key=key) is None and trembling(footage, footage, np.full_like(matte, 255), key=key) is None
    assert trembling(footage, footage, np.zeros_like(matte)) == pytest.approx(1) and trembling(footage, footage, np.zeros_like(matte), key="jitter_edge") is None


def test_a_halo_counts_at_the_edge_and_a_flicker_further_out_in_the_background():
    matte = np.zeros((256, 64), np.uint8)
    matte[:, 32:] = 255
    footage = (120 + np.random.default_rng(0).integers(-8, 9, (12, 256, 64, 3))).astype(np.uint8)
    for column, edge in ((31, True), (29, True), (27, False), (5, False)):
        halo = np.full_like(footage, 120)
        halo[::2, :, column] = 255
        at_edge, beyond = (trembling(halo, footage, matte, key=key) for key in ("jitter_edge", "jitter_background"))
        assert (at_edge > 3 and beyond == 0) if edge else (at_edge == 0 and beyond > 1)
        assert trembling(halo, footage, matte) > 1


def test_background_jitter_does_not_cross_clip_starts():
    rng = np.random.default_rng(1)
    footage = (120 + rng.integers(-8, 9, (12, 32, 32, 3))).astype(np.uint8)
    cut = footage.copy()
    cut[6:] += 60
    matte = np.zeros((32, 32), np.uint8)
    assert trembling(cut, footage, matte, (0, 6)) == pytest.approx(1) and trembling(cut, footage, matte) > 2
