"""The fields that the benchmark compares ours with train and render; how much sooner is read off the curves."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("av", reason="the toy subject is a video")
sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from bm_baseline import FIELDS, begin, sooner  # noqa: E402
from synthetic import make_subject, toy_model  # noqa: E402
from thnerf.config import FieldConfig, TrainConfig  # noqa: E402
from thnerf.dataset import load_training_set  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    return load_training_set(make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=22, size=32), toy_model(), 2, 100)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_learns_and_sees_the_expression(name: str, data) -> None:
    config = TrainConfig(samples_per_step=2000, device="cpu", head=FieldConfig(levels=4, log2_entries=10, width=16, expression_modes=2, occupancy=32, step_mm=9))
    trainer = begin(name, data, SimpleNamespace(model=toy_model()), config)
    trainer.steps = 298  # pose and warp join at 300
    losses = [trainer.advance(0.0)["loss"] for _ in range(16)]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    track = data.track.replace(expression=data.track.expression + 0.5 * np.arange(len(data.track))[:, None].astype(np.float32) / len(data.track))
    still = track.replace(expression=np.zeros_like(track.expression))
    seen = [trainer.avatar.render(t, len(track) - 1, data.background) for t in (track, still)]
    assert np.isfinite(seen).all() and np.abs(seen[0] - seen[1]).max() > 0


def test_sooner_is_read_between_looks() -> None:
    curve = lambda *rows: [{"seconds": s, "face": p} for s, p in rows]  # noqa: E731
    other = curve((300, 20.0), (600, 25.0))
    assert sooner(curve((10, 20.0), (20, 30.0)), other, "face") == pytest.approx(600 / 15)
    assert sooner(curve((10, 26.0)), other, "face") == pytest.approx(60)
    assert sooner(curve((10, 20.0), (600, 24.0)), other, "face") is None
