"""The page at the end of a fit: whole, self-contained, made again when missing, honest about what is not known."""

import re
from html.parser import HTMLParser
from itertools import islice

import numpy as np
import pytest

from recon import charts, report
from recon.assets import asset
from recon.config import FitConfig
from recon.doctor import Finding, coverage, merged, mouth_classes, sync_finding
from recon.fit import fit_subject
from recon.subject import Subject
from recon.sync import RATE, Sync
from render.video import VideoWriter, read_audio_track, read_frames


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """(clip, subject folder) of four seconds of the built-in subject."""
    folder = tmp_path_factory.mktemp("report")
    with VideoWriter(folder / "clip.mp4", 256, 256, 25, audio=(read_audio_track(asset("demo/video.mp4"), 48000, 4.0), 48000)) as writer:
        for frame in islice(read_frames(asset("demo/video.mp4")), 100):
            writer.write(frame)
    fit_subject([folder / "clip.mp4"], folder / "me", CONFIG)
    return folder / "clip.mp4", folder / "me"


CONFIG = FitConfig(size=128, shape_components=10, keyframes=8)
VOID = {"meta", "img", "path", "rect", "circle", "line", "br"}


class Balanced(HTMLParser):
    """Every opened element is closed, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_fit_ends_with_one_whole_page_that_asks_nothing_of_the_network(fitted):
    page = (fitted[1] / "report.html").read_text()
    reader = Balanced()
    reader.feed(page)
    assert not reader.open and reader.links and all(link.startswith("data:") for link in reader.links)
    assert not re.search(r"https?://|@import|url\(|\$[a-z_]+", page) and len(page) < 6e6
    assert page.count("data:video/mp4") == 1 and page.count("data:image/jpeg") == report.WORST + report.MATTES + 1
    assert page.count('class="timeline"') == 6 and "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().split()


def test_a_missing_page_is_made_again_and_nothing_else_is(fitted):
    clip, out = fitted
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "report.html"}
    (out / "report.html").unlink()
    fit_subject([clip], out, CONFIG)
    assert (out / "report.html").exists() and before == {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.name != "report.html"}


def test_subjects_without_kept_curves_get_a_page_too(fitted, tmp_path):
    import shutil

    old = tmp_path / "old <me>"
    shutil.copytree(fitted[1], old)
    (old / "fit_curves.npz").unlink()
    page = report.write_report(Subject.open(old)).read_text()
    assert "fit again" in page and "old &lt;me&gt;" in page and "old <me>" not in page


def test_the_findings_of_the_doctor_are_in_fit_json(fitted):
    from recon.doctor import diagnose
    from render.files import read_json

    names = [f["name"] for f in read_json(fitted[1] / "fit.json")["findings"]]
    asked = {f.name: f for f in diagnose(fitted[0]).findings}
    assert set(asked) - set(names) <= {"sound in time with the lips"}
    found = {f["name"]: f["severity"] for f in read_json(fitted[1] / "fit.json")["findings"]}
    assert all(found[n] == asked[n].severity for n in found)


def test_several_clips_show_their_worst_and_their_summed_length():
    ok, poor = Finding("light", "ok", "good"), Finding("light", "warn", "dark", "use a lamp")
    length, light = merged([[ok], [poor], [ok]], 30.0)
    assert (length.name, length.severity) == ("length", "ok")
    assert light.severity == "warn" and "dark" in light.value and "1 of 3" in light.value and light.advice == "use a lamp"


@pytest.mark.parametrize("offset, moved, severity", [(0.4, 0, "ok"), (4.2, 0, "warn"), (4.2, 4, "ok"), (-3.0, 0, "warn"), (None, 0, "warn")])
def test_sound_out_of_time_is_a_warning_until_it_is_moved(offset, moved, severity):
    (finding,) = sync_finding(Sync(offset, 0.9 if offset is not None else 0.1), 20.0, moved)
    assert finding.severity == severity and bool(finding.advice) == (severity == "warn")
    assert not sync_finding(Sync(None, 0.1), 3.0), "a short clip is no reproach"


def test_coverage_names_what_is_missing():
    t = np.arange(500)
    opening, width = 0.08 + 0.09 * np.sin(t / 5), 1 + 0.15 * np.sin(t / 7)
    assert [f.severity for f in coverage(opening, width, 5, np.radians(5 * np.sin(t / 50)), 25)] == ["ok"] * 3
    shut = coverage(np.full(500, 0.01), np.ones(500), 0, np.zeros(500), 25)
    assert all(f.severity == "warn" and f.advice for f in shut) and "wide open" in shut[0].value and "closed" not in shut[0].value
    assert set(mouth_classes(opening, width)) == {"closed", "open", "wide open", "rounded", "spread"}


def test_silence_hiss_and_voice_are_told_apart():
    rng, t = np.random.default_rng(0), np.arange(RATE) / RATE
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 12)) * 0.1
    hiss = np.diff(rng.normal(size=RATE + 1)) * 0.1
    kind = report.sound_classes(np.concatenate([voice, hiss, np.zeros(RATE)]), 75, 25.0)
    assert [np.bincount(kind[a : a + 23], minlength=3).argmax() for a in (0, 26, 51)] == [2, 1, 0]


def test_blinks_and_worst_frames_are_counted_apart():
    lids = np.full(200, 0.3)
    lids[[20, 21, 80, 150]] = 0.05
    assert report.count_blinks(lids) == 3
    error = np.ones(100)
    error[[10, 11, 12, 60]] = [3, 5, 4, 2]
    valid = np.ones(100, bool)
    valid[60] = False
    chosen = report._worst(error, valid, 10)
    assert chosen[0] == 11 and 60 not in chosen and np.diff(np.sort(chosen)).min() >= 10


@pytest.mark.parametrize("low, high", [(0, 1), (-9.3, 8.7), (0.02, 0.021), (0, 255), (3, 3)])
def test_ticks_are_round_inside_and_few(low, high):
    found = charts.ticks(low, high)
    assert 1 <= len(found) <= 9 and min(found) >= low - 1e-9 and max(found) <= high + 1e-6 * max(1, abs(high)) and "-0" not in [f"{v:g}" for v in found]


def test_long_curves_keep_their_peaks_and_gaps_break_the_line():
    values = np.zeros(20000)
    values[[777, 15000]] = 1, -2
    at, kept = charts.envelope(values)
    assert len(at) <= charts.MOST_POINTS and kept.max() == 1 and kept.min() == -2 and (np.diff(at) >= 0).all()
    assert charts.path(np.arange(4.0), np.array([0, np.nan, 1, 2])).count("M") == 2
