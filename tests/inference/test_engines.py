"""Engines by name."""

import pytest

from ssdlib.common.errors import ConfigError
from ssdlib.inference.engines import ENGINES, open_predictor
from ssdlib.inference.predictor import Predictor


@pytest.mark.parametrize("engine", ["", "Torch", "tensorrt"])
def test_an_unknown_engine_is_refused_with_the_known_ones(tmp_path, engine):
    with pytest.raises(ConfigError, match=", ".join(ENGINES)):
        open_predictor(engine, tmp_path / "any.safetensors")


def test_the_torch_engine_is_the_predictor_with_its_settings(weights):
    predictor = open_predictor("torch", weights, batch_size=3, score_threshold=0.3)
    assert isinstance(predictor, Predictor)
    assert (predictor.batch_size, predictor.score_threshold) == (3, 0.3)
