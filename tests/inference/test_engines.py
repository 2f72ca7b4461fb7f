"""Engines by name."""

import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.config import ModelConfig
from ssdlib.detector.model_file import save_model
from ssdlib.detector.weights import build_model
from ssdlib.inference.engines import ENGINES, open_predictor
from ssdlib.inference.predictor import Predictor


@pytest.mark.parametrize("engine", ["", "Torch", "tensorrt"])
def test_an_unknown_engine_is_refused_with_the_known_ones(tmp_path, engine):
    with pytest.raises(ConfigError, match=", ".join(ENGINES)):
        open_predictor(engine, tmp_path / "any.safetensors")


def test_the_torch_engine_is_the_predictor_with_its_settings(tmp_path):
    save_model(build_model(ModelConfig(width=0.05), seed=1), tmp_path / "w.safetensors")
    predictor = open_predictor("torch", tmp_path / "w.safetensors", batch_size=3, score_threshold=0.3)
    assert isinstance(predictor, Predictor)
    assert (predictor.batch_size, predictor.score_threshold) == (3, 0.3)
