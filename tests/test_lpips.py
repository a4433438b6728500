"""LPIPS against its definition, written with torch's own layers, on random weights of the real shapes; its files, damaged and hostile ones; its place in training."""

import dataclasses
import pickle
import warnings
from collections import OrderedDict
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from render.files import InputError
from synthetic import make_subject, toy_model
from test_trainer import SMALL
from thnerf.cli import main
from thnerf.config import TrainConfig
from thnerf.dataset import LARGE_PATCH, load_training_set
from thnerf.lpips import load_lpips
from thnerf.trainer import new_trainer

TAPS = {"AlexNet": (1, 4, 7, 9, 11), "VGG16": (3, 8, 15, 22, 29)}
CHANNELS = {"AlexNet": (64, 192, 384, 256, 256), "VGG16": (64, 128, 256, 512, 512)}


def layers(name: str) -> nn.Sequential:
    """`features` of torchvision's network, layer by layer."""
    if name == "AlexNet":
        return nn.Sequential(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
                             nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2))
    made, before = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        made += [nn.MaxPool2d(2, 2)] if width == "M" else [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = before if width == "M" else width
    return nn.Sequential(*made)


@lru_cache
def network(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return layers(name).requires_grad_(False)


@lru_cache
def convolutions(name: str) -> dict[str, torch.Tensor]:
    """As in torchvision's file, with a layer that LPIPS has no use for."""
    return OrderedDict({f"features.{k}": v for k, v in network(name).state_dict().items()} | {"classifier.6.bias": torch.zeros(1000)})


@lru_cache
def heads(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return OrderedDict({f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for k, c in enumerate(CHANNELS[name])})


@pytest.fixture(scope="module")
def alex(tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "alex"
    path.mkdir()
    torch.save(convolutions("AlexNet"), path / "alexnet-owt-7be5be79.pth")
    torch.save(heads("AlexNet"), path / "alex.pth")
    return path


@pytest.fixture(scope="module", params=["AlexNet", "VGG16"])
def lpips(request, alex, tmp_path_factory):
    if request.param == "AlexNet":
        return load_lpips(alex)
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file({**convolutions("VGG16"), **heads("VGG16")}, str(path))
    found = load_lpips(path)
    path.unlink()
    return found


def pictures(count: int = 2, height: int = 40, width: int = 37, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def definition(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, equation 1, for colours in [0,1]."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y, total = *(((z.permute(0, 3, 1, 2) * 2 - 1) - shift) / scale for z in (a, b)), 0
    for i, layer in enumerate(network(name)[: TAPS[name][-1] + 1]):
        x, y = layer(x), layer(y)
        if i in TAPS[name]:
            weight = heads(name)[f"lin{TAPS[name].index(i)}.model.1.weight"]
            unit = [z / (torch.linalg.vector_norm(z, dim=1, keepdim=True) + 1e-10) for z in (x, y)]
            total = total + nn.functional.conv2d((unit[0] - unit[1]) ** 2, weight).mean((1, 2, 3))
    return total


def test_it_is_its_definition(lpips) -> None:
    a, b = pictures(), pictures(seed=1)
    found = lpips(a, b)
    assert found.shape == (2,) and (found > 1e-3).all()
    assert torch.allclose(found, definition(lpips.name, a, b), rtol=1e-5)


def test_each_layer_counts_by_its_head(lpips) -> None:
    """The first term alone, from one or two convolutions and nothing else."""
    a, b = pictures(), pictures(seed=1)
    x, y = ((2 * z - 1 - lpips.shift) / lpips.scale for z in (a, b))
    weights = convolutions(lpips.name)
    for i, options in ((0, {"stride": 4, "padding": 2}),) if lpips.name == "AlexNet" else ((0, {"padding": 1}), (2, {"padding": 1})):
        x, y = (nn.functional.relu(nn.functional.conv2d(z.permute(0, 3, 1, 2), weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], **options)).permute(0, 2, 3, 1) for z in (x, y))
    x, y = (nn.functional.normalize(z, dim=-1) for z in (x, y))
    term = ((x - y) ** 2 @ heads(lpips.name)["lin0.model.1.weight"].flatten()).mean((1, 2))
    features = [f[:1] for f in (lpips.features(a), lpips.features(b))]
    assert torch.allclose(lpips.between(*features), term, rtol=1e-5)


def test_equal_pictures_are_at_distance_0_and_order_does_not_matter(lpips) -> None:
    a, b = pictures(), pictures(seed=1)
    assert torch.equal(lpips(a, a), torch.zeros(2))
    assert torch.allclose(lpips(a, b), lpips(b, a), rtol=1e-6)
    assert (lpips(a, 0.9 * a + 0.1 * b) < lpips(a, b)).all()


def test_gradients_are_finite_differences_and_reach_the_picture_alone(lpips, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        for name, buffer in list(lpips.named_buffers()):
            patched.setitem(lpips._buffers, name, buffer.double())
        a, b = pictures(1, 33, 32).double().requires_grad_(), pictures(1, 33, 32, seed=1).double()
        value = lpips(a, b).sum()
        value.backward()
        for v, u, c in ((16, 16, 0), (3, 20, 1), (30, 7, 2)):
            step = torch.zeros_like(b)
            step[0, v, u, c] = 1e-6
            with torch.no_grad():
                difference = (lpips(a + step, b) - lpips(a - step, b)).item() / 2e-6
            assert difference == pytest.approx(a.grad[0, v, u, c].item(), rel=1e-4, abs=1e-9)
    assert not list(lpips.parameters()) and not any(t.requires_grad for t in lpips.buffers())


def test_layers_without_any_response_give_no_gradient_and_no_nan(alex) -> None:
    lpips = load_lpips(alex)
    lpips.bias3.fill_(-1e6)
    a = pictures(1).requires_grad_()
    lpips(a, pictures(1, seed=1)).sum().backward()
    assert torch.isfinite(a.grad).all() and a.grad.abs().max() > 0


def test_pictures_that_are_too_small(lpips) -> None:
    side = {"AlexNet": 31, "VGG16": 16}[lpips.name]
    assert torch.isfinite(lpips(pictures(1, side, side), pictures(1, side, side, seed=1))).all()
    with pytest.raises(InputError, match=f"at least {side} px, not 40x{side - 1}"):
        lpips(pictures(1, side - 1, 40), pictures(1, side - 1, 40))


def test_boxes_of_pictures_are_measured_one_by_one(lpips) -> None:
    truth, other = ((pictures(1, 60, 50, seed=s)[0].numpy() * 255).astype(np.uint8) for s in (0, 1))
    found = lpips.measure(truth, [truth, other], (5, 10, 45, 52))
    cropped = [torch.from_numpy(x[10:52, 5:45])[None] / 255 for x in (truth, other)]
    assert found[0] == 0 and found[1] == pytest.approx(float(definition(lpips.name, *cropped)), rel=1e-5)
    assert np.isnan(lpips.measure(truth, [other], None)).all() and np.isnan(lpips.measure(truth, [other], (0, 0, 50, 12))).all()


def both() -> dict[str, torch.Tensor]:
    return {**convolutions("AlexNet"), **heads("AlexNet")}


def whole() -> dict[str, torch.Tensor]:
    """What the lpips package saves: convolutions in slices that keep torchvision's numbers, heads twice."""
    slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    net = {f"net.slice{slices[int(k.split('.')[1])]}.{k[9:]}": v for k, v in convolutions("AlexNet").items() if k.startswith("features")}
    return {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), **net, **heads("AlexNet"), **{f"lins.{k[3:]}": v for k, v in heads("AlexNet").items()}}


@pytest.mark.parametrize("form", ["pt", "old pt", "safetensors", "whole", "half", "parameters", "folder with others"])
def test_all_forms_of_the_files_give_the_same(form, alex, tmp_path) -> None:
    path = tmp_path / ("both.safetensors" if form == "safetensors" else "both.pt")
    if form == "folder with others":
        path = tmp_path
        for name, tensors in (("a.pth", heads("VGG16")), ("b.pth", convolutions("AlexNet")), ("c.pth", heads("AlexNet")), ("d.pth", {"x": torch.ones(3)})):
            torch.save(tensors, tmp_path / name)
        (tmp_path / "README.txt").write_text("where these are from")
    elif form == "safetensors":
        save_file(both(), str(path))
    else:
        change = {"half": torch.Tensor.half, "parameters": nn.Parameter}.get(form, lambda x: x)
        torch.save({k: change(v) for k, v in (whole() if form == "whole" else both()).items()}, path, _use_new_zipfile_serialization=form != "old pt")
    lpips, reference = load_lpips(path), load_lpips(alex)
    assert lpips.name == "AlexNet" and not any(t.requires_grad for t in lpips.buffers())
    assert torch.allclose(lpips(pictures(), pictures(seed=1)), reference(pictures(), pictures(seed=1)), rtol=2e-2 if form == "half" else 1e-6)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def bad_files(folder) -> dict[str, str]:
    """Make the files of every case, and say what the sentence of each contains."""
    net, lin = {k: v.half() for k, v in convolutions("AlexNet").items()}, heads("AlexNet")
    cases = {
        "empty": ({}, "no weights of AlexNet or VGG16"), "convolutions": ({"a.pth": net}, "the convolutions of AlexNet without its heads"),
        "heads": ({"b.pth": lin}, "the heads of AlexNet without its convolutions"), "mixed": ({"a.pth": net, "b.pth": heads("VGG16")}, "convolutions of AlexNet without its heads and the heads of VGG16"),
        "shapes": ({"a.pth": {**net, "features.3.weight": torch.zeros(192, 64, 3, 3)}, "b.pth": lin}, "the heads of AlexNet without its convolutions"),
        "integers": ({"a.pth": {**net, "features.3.bias": torch.zeros(192, dtype=torch.int64)}, "b.pth": lin}, "the heads of AlexNet without its convolutions"),
        "not finite": ({"a.pth": {**net, "features.3.bias": torch.full((192,), torch.nan)}, "b.pth": lin}, "not finite"),
        "below 0": ({"a.pth": net, "b.pth": {**lin, "lin2.model.1.weight": -lin["lin2.model.1.weight"]}}, "heads below 0"),
        "list": ({"a.pth": [1, 2]}, "no weights of AlexNet or VGG16"), "hostile": ({"a.pth": net, "b.pth": {"lin0.model.1.weight": Hostile()}}, "b.pth is damaged, cut short or holds more"),
    }
    for name, (files, _) in cases.items():
        (folder / name).mkdir()
        for file, tensors in files.items():
            torch.save(tensors, folder / name / file)
    for name in ("cut", "old cut", "bare pickle", "text"):
        (folder / name).mkdir()
    torch.save(both(), folder / "cut/both.pt")
    torch.save(both(), folder / "old cut/both.pt", _use_new_zipfile_serialization=False)
    for name in ("cut", "old cut"):
        path = folder / name / "both.pt"
        path.write_bytes(path.read_bytes()[:-5000])
    (folder / "bare pickle/both.pt").write_bytes(pickle.dumps(Hostile()))
    (folder / "text/both.safetensors").write_text("not a tensor")
    return {name: says for name, (_, says) in cases.items()} | {n: "is damaged, cut short" for n in ("cut", "old cut", "bare pickle", "text")} | {"nowhere": "does not exist"}


def test_other_files_end_in_one_sentence_that_says_what_belongs_there(tmp_path) -> None:
    for name, says in bad_files(tmp_path).items():
        with warnings.catch_warnings(), pytest.raises(InputError, match=says) as caught:
            warnings.simplefilter("error")
            load_lpips(tmp_path / name)
        assert "alexnet-owt-7be5be79.pth" in str(caught.value) and "alex.pth" in str(caught.value) and "\n" not in str(caught.value), name
        assert len(str(caught.value).replace(str(tmp_path), "")) < 300, name


def test_a_folder_with_both_networks_is_refused(tmp_path) -> None:
    for k, name in enumerate(TAPS):
        torch.save({k: v.half() for k, v in {**convolutions(name), **heads(name)}.items()}, tmp_path / f"{k}.pth")
    with pytest.raises(InputError, match="both AlexNet and VGG16"):
        load_lpips(tmp_path)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return make_subject(tmp_path_factory.mktemp("toy") / "subject", frames=33, size=96)


def test_training_looks_at_one_large_square_a_step(subject, alex, monkeypatch) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    trainer = new_trainer(data, toy_model(), dataclasses.replace(SMALL, lpips=str(alex)))
    plain = new_trainer(data, toy_model(), SMALL)
    seen, look = [], trainer.lpips.forward
    monkeypatch.setattr(trainer.lpips, "forward", lambda a, b: seen.append((a, b)) or look(a, b))
    reports = [trainer.advance(k / 10) for k in range(3)]
    assert all(a.shape == b.shape == (1, LARGE_PATCH, LARGE_PATCH, 3) and a.requires_grad and not b.requires_grad for a, b in seen) and len(seen) == 3
    assert all(r["lpips"] > 0 and np.isfinite(r["loss"]) for r in reports) and "lpips" not in plain.advance(0.0)
    assert not any("lpips" in k or "head0" in k for k in trainer.state()[0])  # the weights are the user's, and stay out of the run
    assert new_trainer(data, toy_model(), dataclasses.replace(SMALL, lpips=str(alex), lpips_weight=0.0)).lpips is None


def test_large_squares_are_squares_of_mouth_or_face(subject) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    heights = set()
    for seed in range(6):
        batch = data.sample(np.random.default_rng(seed), 2, 5000, patches=1, side=LARGE_PATCH)
        square = batch.patches[0]
        assert batch.patches.shape == (1, LARGE_PATCH, LARGE_PATCH) and len(batch.u) == 5000 and len(np.unique(batch.slot[square])) == 1
        assert (np.diff(batch.u[square], axis=1) == 1).all() and (np.diff(batch.v[square], axis=0) == 1).all()
        heights.add(int(batch.v[square[0, 0]]))
    assert len(heights) > 2


def test_the_structure_term_may_look_at_it_too(subject, alex) -> None:
    data = load_training_set(subject, toy_model(), 2, 1000)
    trainers = [new_trainer(data, toy_model(), dataclasses.replace(SMALL, lpips=str(alex), structure_weight=w)) for w in (0.0, 0.1)]
    plain, joined = (t.advance(0.0)["loss"] for t in trainers)
    assert joined > plain


def test_settings_and_pictures_that_cannot_be_trained(subject, alex, tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="--lpips-weight"):
        TrainConfig(lpips_weight=-1.0).check()
    data = load_training_set(make_subject(tmp_path / "small", frames=22, size=48), toy_model(), 2, 1000)
    with pytest.raises(InputError, match="at least 64 px, not 48x48"):
        new_trainer(data, toy_model(), dataclasses.replace(SMALL, lpips=str(alex)))
    with pytest.raises(InputError, match="does not exist, and LPIPS needs its weights"):
        new_trainer(data, toy_model(), dataclasses.replace(SMALL, lpips=str(tmp_path / "nowhere")))
    assert main(["evaluate", str(subject.path), "--lpips", str(tmp_path / "nowhere")]) == 2
    err = capsys.readouterr().err
    assert "alexnet-owt-7be5be79.pth" in err and err.count("thnerf: ") == 1
