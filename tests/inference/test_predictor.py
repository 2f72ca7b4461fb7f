"""The predictor: the same results whatever the batch, the kind of input and the folding of BatchNorm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import tv_tensors

from ssdlib.common.errors import CheckpointError, ConfigError, DataError
from ssdlib.config import ModelConfig
from ssdlib.data.dataset import DetectionDataset, Sample
from ssdlib.data.images import write_image
from ssdlib.data.transforms import eval_transform
from ssdlib.detector.model_file import save_model
from ssdlib.detector.nms import detect_objects
from ssdlib.detector.weights import build_model
from ssdlib.evaluation.evaluate import evaluate_model
from ssdlib.inference.detections import Detections
from ssdlib.inference.predictor import Predictor, fold_batch_norm

WIDTH = 0.125
SIZES = ((640, 480), (300, 300), (97, 211), (1, 1), (640, 480), (333, 48), (300, 301), (50, 60), (480, 640))


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth random colors, so that a resized pixel is not pure noise."""
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(rng.uniform(0, 255, (1, 3, 7, 9)).astype(np.float32))
    high = nn.functional.interpolate(low, (height, width), mode="bicubic")
    return high[0].permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()


PICTURES = [picture(*size, seed=seed) for seed, size in enumerate(SIZES)]


def lively_model(batch_norm: bool = True):
    """A little network, untrained, whose BatchNorm statistics and heads are far from their start values."""
    model = build_model(ModelConfig(batch_norm=batch_norm, width=WIDTH), seed=3)
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.5),
            ):
                values.uniform_(low, high, generator=generator)
    for conv in model.class_heads.convs:
        conv.weight.data.normal_(0, 0.05, generator=generator)
    return model


@pytest.fixture(scope="module")
def model():
    return lively_model()


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model, device="cpu", precision="fp32", top_k=50)


@pytest.fixture(scope="module")
def expected(predictor):
    """Each picture alone."""
    found = [predictor.detect([image])[0] for image in PICTURES]
    assert all(len(one) == 50 for one in found)  # or the comparisons below would be vacuous
    return found


def assert_close(a, b, atol=0.05):
    """Each of `a` is in `b` and the reverse, but for those at the top-k cut, where rounding decides."""
    assert (a.image_size, len(a)) == (b.image_size, len(b))
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    same = (a.labels[:, None] == b.labels) & (np.abs(a.scores[:, None] - b.scores) < 1e-4)
    same &= np.abs(a.boxes[:, None] - b.boxes).max(axis=2) < atol
    for one, found in ((a, same.any(axis=1)), (b, same.any(axis=0))):
        assert found[one.scores > one.scores.min() + 1e-4].all()


def test_no_images(predictor):
    assert predictor.detect([]) == []
    assert list(predictor.stream(iter(()))) == []


@pytest.mark.parametrize("batch_size", [2, 8, 100])
def test_the_batch_changes_nothing(model, expected, batch_size):
    batched = Predictor(model, device="cpu", precision="fp32", top_k=50, batch_size=batch_size)
    found = batched.detect(PICTURES)
    assert len(found) == len(PICTURES)
    for own, alone in zip(found, expected, strict=True):
        assert_close(own, alone)


def test_boxes_are_pixels_of_the_original_image(model, expected):
    for image, found, (width, height) in zip(PICTURES, expected, SIZES, strict=True):
        assert found.image_size == (width, height)
        assert (found.boxes >= 0).all()
        assert (found.boxes <= [width, height, width, height]).all()
        pixels = eval_transform()(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)))
        with torch.no_grad():
            outputs = model.eval()(pixels[None])
        ((boxes, scores, labels),) = detect_objects(*outputs, model.priors, top_k=50)
        boxes = boxes * torch.tensor([width, height, width, height])
        assert_close(found, Detections(boxes, scores, labels, (width, height), found.class_names))


def test_files_and_arrays_mixed(predictor, expected, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, PICTURES, strict=False):
        write_image(path, image)
    found = predictor.detect([str(paths[0]), PICTURES[1], paths[2]])
    assert [one.image for one in found] == [str(paths[0]), "", str(paths[2])]
    for own, alone in zip(found, expected, strict=False):
        assert_close(own, alone)
    assert_close(predictor.detect(paths[1])[0], expected[1])


def test_views_with_odd_strides_are_fine(predictor):
    image = picture(80, 60)
    view = image[::-1, :, ::-1]
    view.flags.writeable = False
    assert_close(predictor.detect([view])[0], predictor.detect([view.copy()])[0])


def test_a_long_source_is_read_as_needed(predictor):
    taken = []
    stream = predictor.stream(taken.append(index) or PICTURES[3] for index in range(400))
    for _ in range(3):
        next(stream)
    stream.close()
    assert len(taken) <= 3 * predictor.batch_size


def test_a_damaged_file_is_named_and_earlier_batches_are_delivered(model, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff no picture")
    stream = Predictor(model, device="cpu", precision="fp32", batch_size=1).stream([PICTURES[0], bad])
    assert next(stream).image_size == SIZES[0]
    with pytest.raises(DataError, match=r"bad\.jpg"):
        next(stream)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ],
)
def test_unusable_arrays_are_refused(predictor, image):
    with pytest.raises(DataError, match="uint8 RGB"):
        predictor.detect([image])


@pytest.mark.parametrize(
    "settings",
    [
        {"score_threshold": -0.1},
        {"iou_threshold": 1.1},
        {"top_k": 0},
        {"batch_size": 0},
        {"precision": "fp8"},
        {"device": "abacus"},
    ],
)
def test_impossible_settings_are_refused(model, settings):
    with pytest.raises(ConfigError):
        Predictor(model, **settings)


def test_thresholds_and_top_k_are_obeyed(model, expected):
    cut = float(expected[0].scores[9])
    strict = Predictor(model, device="cpu", precision="fp32", score_threshold=cut, top_k=5)
    found = strict.detect(PICTURES[:1])[0]
    assert len(found) == 5
    assert (found.scores > cut).all()
    loose = Predictor(model, device="cpu", precision="fp32", top_k=50, iou_threshold=0.95)
    assert not np.array_equal(loose.detect(PICTURES[:1])[0].boxes, expected[0].boxes)
    nothing = Predictor(model, device="cpu", precision="fp32", score_threshold=1.0).detect(PICTURES[:3])
    assert [len(one) for one in nothing] == [0, 0, 0]
    assert [one.image_size for one in nothing] == list(SIZES[:3])


def test_folding_batch_norm_changes_nothing(model):
    images = torch.randint(0, 256, (2, 3, 300, 300), dtype=torch.uint8)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        for own, plain in zip(folded(images), model.eval()(images), strict=True):
            torch.testing.assert_close(own, plain, atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])


def test_a_model_in_training_is_left_in_training():
    model = lively_model().train()
    Predictor(model, device="cpu", precision="bf16")
    assert model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_bf16_is_near_fp32(batch_norm):
    model = lively_model(batch_norm)
    pixels = torch.stack([eval_transform()(torch.from_numpy(PICTURES[0]).permute(2, 0, 1))])
    exact, near = (Predictor(model, device="cpu", precision=p).raw(pixels) for p in ("fp32", "bf16"))
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == torch.bfloat16
        assert 0 < (a - b.float()).abs().mean() < 0.02 * a.abs().max()
    found = Predictor(model, device="cpu", precision="bf16").detect(PICTURES[:1])[0]
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_results_may_be_changed_in_place(predictor):
    found = predictor.detect(PICTURES[:1])[0]
    for values in (found.boxes, found.scores, found.labels):
        values *= 2  # arrays of tensors made in inference mode might refuse


def test_from_checkpoint(model, expected, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    again = Predictor.from_checkpoint(
        tmp_path / "model.safetensors", device="cpu", precision="fp32", top_k=50
    )
    assert_close(again.detect(PICTURES[:1])[0], expected[0])
    with pytest.raises(CheckpointError, match="absent"):
        Predictor.from_checkpoint(tmp_path / "absent.safetensors")


def test_damaged_weights_do_not_pass_for_an_empty_image():
    model = lively_model()
    model.class_heads.convs[0].weight.data[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        Predictor(model, device="cpu", precision="fp32").detect(PICTURES[:1])


def dataset(folder, class_names=("WBC", "RBC", "Platelets"), count=3) -> DetectionDataset:
    samples = []
    for index in range(count):
        path = folder / f"field_{index}.png"
        write_image(path, PICTURES[index])
        width, height = SIZES[index]
        boxes = np.array([[0, 0, width / 2, height / 2]], np.float32)
        samples.append(Sample(f"field_{index}", path, width, height, boxes, np.array([2])))
    return DetectionDataset(samples, class_names)


def test_evaluate_model(predictor, expected, tmp_path, capsys):
    metrics, found = evaluate_model(predictor, dataset(tmp_path), progress=True)
    assert metrics.images == 3
    assert metrics.per_class["RBC"].ground_truth == 3
    assert metrics.per_class["WBC"].ap_50 is None
    assert [one.image for one in found] == ["field_0", "field_1", "field_2"]
    for own, alone in zip(found, expected, strict=False):
        assert_close(own, alone)
    streams = capsys.readouterr()
    assert streams.out == "" and "3/3" in streams.err


def test_evaluate_model_of_no_images(predictor, tmp_path):
    metrics, found = evaluate_model(predictor, dataset(tmp_path, count=0))
    assert (metrics.images, metrics.map_50, found) == (0, None, [])


def test_evaluate_model_of_other_classes(predictor, tmp_path):
    with pytest.raises(CheckpointError, match="RBC, WBC, Platelets"):
        evaluate_model(predictor, dataset(tmp_path, ("RBC", "WBC", "Platelets")))
