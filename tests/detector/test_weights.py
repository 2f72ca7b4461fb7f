"""Where weights come from, and that a file is read whole, as tensors, or not at all."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import vgg16, vgg16_bn

from ssdlib.common.errors import CheckpointError, ConfigError
from ssdlib.config import SMALL_PRIORS, ModelConfig, PriorConfig
from ssdlib.detector import model as detector
from ssdlib.detector import model_file, weights
from ssdlib.detector.model import SSD300
from ssdlib.detector.model_file import load_model, read_metadata, save_model
from ssdlib.detector.weights import COCO_MEAN, COCO_STD, build_model, convert_torchvision_ssd, load_imagenet
from tests.core_cases import fill, seeded, torchvision_ssd

NARROW = ModelConfig(width=0.125)


def equal(a: nn.Module, b: nn.Module, prefix: str = "") -> bool:
    one, other = a.state_dict(), b.state_dict()
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return all(torch.equal(one[name], other[name]) for name in names)


# --- from scratch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_scratch_depends_on_the_seed_alone(batch_norm):
    config = NARROW.replace(batch_norm=batch_norm)
    torch.manual_seed(1)
    first = build_model(config, seed=5)
    torch.rand(100)
    assert equal(first, build_model(config, "scratch", seed=5))
    assert not equal(first, build_model(config, seed=6))


def test_scratch_keeps_the_variance():
    """He's initialization: thirteen layers later the features are neither gone nor huge."""
    model = build_model(ModelConfig(width=0.5)).eval()
    with torch.inference_mode():
        maps = model.feature_maps(torch.rand(1, 3, 300, 300, generator=seeded(1)))
    assert all(0.05 < m.square().mean().sqrt() < 10 for m in maps)


# --- ImageNet --------------------------------------------------------------------------------------------


def vgg_state(batch_norm: bool, fc6: Tensor | None = None, fc7: Tensor | None = None) -> dict[str, Tensor]:
    """A random vgg16 state dict, with fully connected layers of small integers to save memory."""
    with torch.device("meta"):
        network = (vgg16_bn if batch_norm else vgg16)(weights=None, init_weights=False)
    state = {f"features.{k}": v for k, v in fill(network.features).state_dict().items()}
    small = torch.zeros(1, dtype=torch.int8)
    state["classifier.0.weight"] = small.expand(4096, 25088) if fc6 is None else fc6
    state["classifier.0.bias"] = torch.arange(4096.0)
    state["classifier.3.weight"] = small.expand(4096, 4096) if fc7 is None else fc7
    state["classifier.3.bias"] = -torch.arange(4096.0)
    state["classifier.6.weight"] = small.expand(1000, 4096)
    state["classifier.6.bias"] = small.expand(1000)
    return state


@pytest.mark.parametrize("batch_norm", [False, True])
def test_imagenet_features_equal_torchvisions(batch_norm, monkeypatch):
    """conv1_1 to conv5_3; with BatchNorm the biases that our convolutions lack are in its means."""
    state = vgg_state(batch_norm)
    monkeypatch.setattr(weights, "download_weights", lambda _: state)
    model = build_model(ModelConfig(batch_norm=batch_norm), "imagenet", seed=3).eval()

    with torch.device("meta"):
        theirs = (vgg16_bn if batch_norm else vgg16)(weights=None, init_weights=False).features
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if "features." in k})
    pools = [i for i, m in enumerate(theirs) if isinstance(m, nn.MaxPool2d)]
    theirs[pools[2]].ceil_mode = True  # SSD's pool3
    image = torch.randn(1, 3, 124, 124, generator=seeded(4))
    with torch.inference_mode():
        expected = theirs[: pools[3]](image)
        conv4_3 = model.backbone.to_conv4_3(image)
        torch.testing.assert_close(conv4_3, expected, rtol=1e-4, atol=1e-4)
        assert conv4_3.shape[-1] == 16 and conv4_3.std() > 0.1
        expected = theirs[pools[3] : pools[4]](expected)
        for name, layer in model.backbone.to_conv7.named_children():
            if name == "pool5":
                break
            conv4_3 = layer(conv4_3)
        torch.testing.assert_close(conv4_3, expected, rtol=1e-4, atol=1e-4)

    scratch = build_model(ModelConfig(batch_norm=batch_norm), seed=3)
    for part in ("extras.", "loc_heads.", "class_heads.", "norm4_3."):
        assert equal(model, scratch, part)
    assert (model.config.mean, model.config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_fc6_and_fc7_are_subsampled():
    """Each number tells its place: output, channel, row and column (in int16, where overflow wraps)."""

    def code(output: Tensor, channel: Tensor, row: Tensor, column: Tensor) -> Tensor:
        place = output[:, None, None, None] * 311 + channel[:, None, None] * 57
        return (place + row[:, None] * 7 + column).short()

    def some(stop: int, step: int = 1) -> Tensor:
        return torch.arange(0, stop, step, dtype=torch.int16)

    fc6 = code(some(4096), some(512), some(7), some(7)).reshape(4096, 25088)
    fc7 = code(some(4096), some(4096), some(1), some(1)).reshape(4096, 4096)
    model = SSD300(ModelConfig())
    load_imagenet(model, vgg_state(False, fc6, fc7))
    conv6, conv7 = model.backbone.to_conv7.conv6, model.backbone.to_conv7.conv7
    assert torch.equal(conv6.weight, code(some(4096, 4), some(512), some(7, 3), some(7, 3)).float())
    assert torch.equal(conv7.weight, code(some(4096, 4), some(4096, 4), some(1), some(1)).float())
    assert torch.equal(conv6.bias, torch.arange(0, 4096.0, 4))
    assert torch.equal(conv7.bias, -torch.arange(0, 4096.0, 4))


def test_imagenet_weights_of_another_network_are_refused():
    with torch.device("meta"):
        plain, normed = SSD300(ModelConfig()), SSD300(ModelConfig(batch_norm=True))
        plain_state = vgg16(weights=None, init_weights=False).state_dict()
        normed_state = vgg16_bn(weights=None, init_weights=False).state_dict()
    for model, state in ((plain, {}), (plain, normed_state), (normed, plain_state)):
        with pytest.raises(CheckpointError, match="not the weights of torchvision's vgg16"):
            load_imagenet(model, state)
    headless = {k: v for k, v in plain_state.items() if k.startswith("features.")}
    with pytest.raises(CheckpointError, match="no classifier"):
        load_imagenet(plain, headless)


# --- COCO ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 90])
def test_coco_start(classes, monkeypatch):
    """All but the class heads: COCO's 91 mean something else even where ours are as many."""
    theirs = torchvision_ssd(91)
    monkeypatch.setattr(weights, "download_weights", lambda _: theirs.state_dict())
    names = tuple(map(str, range(classes)))
    model = build_model(ModelConfig(class_names=names), "coco", seed=2)
    assert (model.config.mean, model.config.std) == (COCO_MEAN, COCO_STD)
    expected = convert_torchvision_ssd(theirs.state_dict())
    state = model.state_dict()
    assert set(expected) == set(state)
    for name, tensor in state.items():
        if not name.startswith("class_heads."):
            assert torch.equal(tensor, expected[name]), name
    assert state["class_heads.convs.0.weight"].std() == pytest.approx(0.01, rel=0.1)


def test_unknown_tensors_are_refused():
    assert convert_torchvision_ssd({}) == {}
    with pytest.raises(CheckpointError, match=r"backbone\.layer4"):
        convert_torchvision_ssd({"backbone.layer4.weight": torch.zeros(1)})


def test_weights_that_lack_the_backbone_are_refused(monkeypatch):
    state = {"head.regression_head.module_list.0.bias": torch.zeros(16)}
    monkeypatch.setattr(weights, "download_weights", lambda _: state)
    with pytest.raises(CheckpointError, match="lack"):
        build_model(ModelConfig(), "coco")


# --- what cannot go together -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "source", "message"),
    [
        (NARROW, "imagenet", "width"),
        (NARROW, "coco", "width"),
        (ModelConfig(batch_norm=True), "coco", "BatchNorm"),
    ],
)
def test_wrong_combinations(config, source, message, monkeypatch):
    def never(_):
        raise AssertionError("nothing may be downloaded for a configuration that cannot use it")

    monkeypatch.setattr(weights, "download_weights", never)
    with pytest.raises(ConfigError, match=message):
        build_model(config, source)


@pytest.mark.parametrize(
    "error",
    [
        URLError("no network"),
        OSError(errno.ENOSPC, "no space"),
        RuntimeError("invalid hash value"),
        pickle.UnpicklingError("weights only"),
    ],
)
def test_a_failed_download_says_what_to_do(error):
    class Unreachable:
        def get_state_dict(self, **_):
            raise error

        def __str__(self) -> str:
            return "VGG16_Weights.IMAGENET1K_V1"

    with pytest.raises(CheckpointError, match=r"VGG16_Weights.*scratch"):
        weights.download_weights(Unreachable())


# --- our own files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_round_trip(tmp_path, batch_norm):
    config = NARROW.replace(batch_norm=batch_norm, class_names=("blast", "RBC"), priors=SMALL_PRIORS)
    model = build_model(config, seed=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=seeded(1))
            module.num_batches_tracked += 7
    path = tmp_path / "deep" / "model.safetensors"
    save_model(model.to(memory_format=torch.channels_last), path, epoch=3, map_50=0.5, note="grün", none=None)
    stored = load_model(path)
    assert stored.config == config and not stored.training
    assert equal(model, stored)
    metadata = {"epoch": 3, "map_50": 0.5, "note": "grün", "none": None, "config": config.to_dict()}
    assert read_metadata(path) == read_metadata(str(path)) == metadata
    image = torch.rand(1, 3, 300, 300, generator=seeded(2))
    with torch.inference_mode():
        for a, b in zip(model.eval()(image), stored(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_half_is_half_as_large_and_close(tmp_path):
    model = build_model(NARROW.replace(batch_norm=True))
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "half", half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    stored = load_model(tmp_path / "half")
    for name, tensor in stored.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    save_model(build_model(NARROW), path, epoch=1)
    return path.read_bytes()


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


DAMAGE = {
    "empty": lambda good: b"",
    "a few bytes": lambda good: good[:5],
    "half a header": lambda good: good[:300],
    "half the tensors": lambda good: good[: len(good) // 2],
    "one byte short": lambda good: good[:-1],
    "one byte long": lambda good: good + b"\0",
    "wild length": lambda good: b"\xff" * 8 + good[8:],
    "broken header": lambda good: good[:8] + b"#" + good[9:],
    "zeros": lambda good: bytes(len(good)),
    "text": lambda good: b"these are not the weights you are looking for",
    "json": lambda good: b'{"format": "ssdlib-1"}',
    "zip": lambda good: b"PK\x03\x04" + good,
}


@pytest.mark.parametrize("read", [load_model, read_metadata, lambda p: build_model(NARROW, p)])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(tmp_path, good, damage, read):
    path = tmp_path / "half-written.safetensors"
    path.write_bytes(DAMAGE[damage](good))
    with pytest.raises(CheckpointError, match=r"half-written\.safetensors"):
        read(path)


@pytest.mark.parametrize("read", [load_model, read_metadata, lambda p: build_model(NARROW, p)])
def test_a_pickle_never_runs(tmp_path, read):
    path, sign = tmp_path / "model.pt", tmp_path / "it ran"
    for write in (torch.save, lambda evil, file: file.write_bytes(pickle.dumps(evil))):
        write(Evil(sign), path)
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            read(path)
        assert not sign.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert sign.exists()


@pytest.mark.parametrize("read", [load_model, read_metadata, lambda p: build_model(NARROW, p)])
def test_a_missing_file_is_named(tmp_path, read):
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            read(path)


CONFIG = json.dumps(NARROW.to_dict())


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"format": "pt"},
        {"format": "ssdlib-1"},
        {"format": "ssdlib-1", "config": CONFIG},
        {"format": "ssdlib-1", "config": "{", "metadata": "{}"},
        {"format": "ssdlib-1", "config": "[]", "metadata": "{}"},
        {"format": "ssdlib-1", "config": "null", "metadata": "{}"},
        {"format": "ssdlib-1", "config": '{"depth": 16}', "metadata": "{}"},
        {"format": "ssdlib-1", "config": '{"width": "wide"}', "metadata": "{}"},
        {"format": "ssdlib-1", "config": '{"width": NaN}', "metadata": "{}"},
        {"format": "ssdlib-1", "config": '{"priors": 3}', "metadata": "{}"},
        {"format": "ssdlib-1", "config": CONFIG.replace("[38,", "[37,"), "metadata": "{}"},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": "[1]"},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": '{"recipe": [1]}'},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": '{"data": {"sources": 1}}'},
        {"format": "ssdlib-1", "config": "[" * 10**5, "metadata": "{}"},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": "[" * 10**5},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": '{"a": ' + "9" * 9000 + "}"},
        # Networks that would fill the memory: they are compared with the tensors before they are built.
        {
            "format": "ssdlib-1",
            "config": json.dumps({"class_names": [f"c{k}" for k in range(10**5)]}),
            "metadata": "{}",
        },
        {
            "format": "ssdlib-1",
            "config": json.dumps({"class_names": [f"c{k}" for k in range(10**6)]}),
            "metadata": "{}",
        },
        {
            "format": "ssdlib-1",
            "config": json.dumps({"priors": {"aspect_ratios": 6 * [[2.0 + k for k in range(10**4)]]}}),
            "metadata": "{}",
        },
        # A header without fault, but not for these tensors.
        {"format": "ssdlib-1", "config": '{"width": 0.25}', "metadata": "{}"},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": "{}", "drop": "one"},
        {"format": "ssdlib-1", "config": CONFIG, "metadata": "{}", "add": "one"},
    ],
)
def test_files_that_are_not_ours_are_named(tmp_path, header, monkeypatch):
    tensors = dict(build_model(NARROW).state_dict())
    if header and "drop" in header:
        tensors.pop("norm4_3.scale")
    if header and "add" in header:
        tensors["surplus"] = torch.zeros(1)
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(tensors, path, header)
    built = []
    monkeypatch.setattr(detector, "SSD300", lambda config: built.append(config.num_classes) or SSD300(config))
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        load_model(path)
    assert max(built, default=0) < 10
    with path.open("r+b") as stream:
        stream.truncate(10**10)
    with pytest.raises(CheckpointError, match="larger than 500 MB"):
        load_model(path)


def test_a_checkpoint_as_a_start(tmp_path):
    """The same classes, and all of it is taken over."""
    path = tmp_path / "model.safetensors"
    trained = build_model(NARROW.replace(mean=COCO_MEAN, std=COCO_STD), seed=1)
    save_model(trained, path)
    same = build_model(NARROW, path, seed=2)
    assert equal(same, trained)
    # The stored network knows images normalized its own way, and goes on seeing them so.
    assert (same.config.mean, same.config.std) == (COCO_MEAN, COCO_STD)
    image = torch.rand(1, 3, 300, 300, generator=seeded(2))
    torch.testing.assert_close(same.normalize(image), trained.normalize(image))


def class_rows(model: SSD300, name: str) -> list[Tensor]:
    """The filters and biases of one class, (priors of a cell, ...), map after map."""
    row = ("background", *model.config.class_names).index(name)
    return [
        tensor.unflatten(0, (-1, model.config.num_classes))[:, row]
        for tensor in model.class_heads.state_dict().values()
    ]


def assert_class_rows(model: SSD300, old: SSD300, fresh: SSD300) -> None:
    """Background and namesakes as in `old`, the others as in `fresh`."""
    for name in ("background", *model.config.class_names):
        source = old if name in ("background", *old.config.class_names) else fresh
        pairs = zip(class_rows(model, name), class_rows(source, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize(
    "names",
    [
        ("x",),
        ("WBC", "RBC", "Platelets", "Echinocyte"),
        ("Echinocyte", "Platelets", "RBC", "WBC"),
        ("RBC",),
        ("Platelets", "RBC", "WBC"),
    ],
    ids=["none known", "one more", "another order", "one alone", "permuted"],
)
def test_a_class_of_the_same_name_keeps_its_rows(tmp_path, names):
    """And says of an image what it said before, the new classes apart."""
    path = tmp_path / "model.safetensors"
    old = build_model(NARROW, seed=1)
    save_model(old, path)
    config = NARROW.replace(class_names=names)
    model, fresh = build_model(config, path, seed=2), build_model(config, seed=2)
    assert model.config.class_names == names
    for part in ("backbone.", "extras.", "norm4_3.", "loc_heads."):
        assert equal(model, old, part)
    assert_class_rows(model, old, fresh)
    with torch.inference_mode():
        image = torch.rand(1, 3, 300, 300, generator=seeded(2))
        (locs, logits), (old_locs, old_logits) = model.eval()(image), old.eval()(image)
    torch.testing.assert_close(locs, old_locs)
    for row, name in enumerate(("background", *names)):
        if name in ("background", *NARROW.class_names):
            before = ("background", *NARROW.class_names).index(name)
            torch.testing.assert_close(logits[..., row], old_logits[..., before])


def test_heads_of_other_priors_are_not_taken_for_ours_by_their_shape(tmp_path):
    """Six priors of four classes have as many outputs as four priors of six."""
    wide = PriorConfig(aspect_ratios=((2.0, 3.0), *PriorConfig().aspect_ratios[1:]))
    path = tmp_path / "model.safetensors"
    save_model(build_model(NARROW.replace(priors=wide), seed=1), path)
    config = NARROW.replace(class_names=("WBC", "RBC", "Platelets", "x", "y"))
    model, fresh = build_model(config, path, seed=2), build_model(config, seed=2)
    for kind in ("weight", "bias"):
        name = f"class_heads.convs.0.{kind}"
        assert torch.equal(model.state_dict()[name], fresh.state_dict()[name])


@pytest.mark.parametrize("change", [{"batch_norm": True}, {"width": 0.25}])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, change):
    path = tmp_path / "model.safetensors"
    save_model(build_model(NARROW), path)
    with pytest.raises(
        ConfigError,
        match=r"model\.safetensors.*batch_norm=False, width=0.125.*recipe.initial_weights=scratch",
    ):
        build_model(NARROW.replace(**change), path)


def test_the_shipped_weights_are_such_a_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "shipped.safetensors"
    save_model(build_model(NARROW.replace(mean=(0.5, 0.5, 0.5)), seed=3), path, half=True)
    monkeypatch.setattr(model_file, "SHIPPED", path)
    config = NARROW.replace(class_names=("WBC", "b", "c", "d"))
    model, same = build_model(config, "shipped", seed=4), build_model(config, path, seed=4)
    assert model.config == same.config and equal(model, same)
    assert model.config.mean == (0.5, 0.5, 0.5)


def test_missing_shipped_weights_name_the_remedies(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "SHIPPED", tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"none\.safetensors.*restore.*initial_weights=scratch"):
        build_model(NARROW, "shipped")


def test_numbers_too_large_for_fp16_are_not_lost(tmp_path):
    model = build_model(NARROW)
    model.loc_heads.convs[0].bias.data[0] = 1e5
    with pytest.raises(CheckpointError, match=r"loc_heads\.convs\.0\.bias is too large"):
        save_model(model, tmp_path / "model", half=True)
    assert list(tmp_path.iterdir()) == []
    save_model(model, tmp_path / "model")


def test_metadata_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_model(build_model(NARROW), tmp_path / "model", loss=float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_equal_networks_give_equal_files(tmp_path):
    model, about = build_model(NARROW), {"data": {"b": 1, "a": [1.5, "µ"]}, "epoch": 3}
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:
        save_model(model, file, **about)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_metadata(files[0])["data"] == about["data"]
    assert equal(load_model(files[0]), model)
