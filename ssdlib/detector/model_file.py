"""The file of a trained network: safetensors with its settings in the header. Reading one runs no code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ssdlib.common.errors import CheckpointError, ConfigError
from ssdlib.common.files import parse_json, sha256_of, write_bytes
from ssdlib.config import ModelConfig

if TYPE_CHECKING:  # PyTorch takes seconds to import, and the header of a file can be read without it
    from torch import Tensor

    from ssdlib.detector.model import SSD300

_WEIGHTS = Path(__file__).resolve().parents[2] / "data" / "weights"
SHIPPED = _WEIGHTS / "ssd300-blood.safetensors"
"""The detector that comes with the project, trained on several microscopes; its card lies beside it (.md)."""
SHIPPED_INT8 = _WEIGHTS / "ssd300-blood-int8.onnx"
"""The same for ONNX Runtime, in 8 bits; the file of sums beside it (.sha256) says from which weights."""
BENCHMARK = _WEIGHTS / "ssd300-bccd.safetensors"
"""The detector of BCCD's official figures, trained to find what BCCD labels; its card lies beside it, too."""
SHIPPED_NAMES = ("shipped", "blood", "bccd")
"""What `--weights` and `--init` call the files of the project; the first two are the same."""


def shipped_path(name: str = "shipped") -> Path:
    """Where weights of the project, one of `SHIPPED_NAMES`, lie."""
    return BENCHMARK if name == "bccd" else SHIPPED


def shipped_weights(name: str = "shipped") -> Path:
    """The path of weights of the project, one of `SHIPPED_NAMES`. Raises CheckpointError with the remedies if
    they are missing."""
    path = shipped_path(name)
    if not path.is_file():
        raise CheckpointError(
            f"the shipped weights are missing: {path}. They are part of the repository, not of the "
            "installed package: restore the file (git restore data/weights), install from a checkout "
            "(pip install --editable .), name others (--weights), or train without them "
            "(--set recipe.initial_weights=scratch)."
        )
    return path


@cache
def is_shipped_int8(path: str | Path) -> bool:
    """Whether a file is the one of the project that its sums say, made from the shipped weights as they are.

    The sums are in the format of `sha256sum`, which checks them, too: of the weights and of this file.
    """
    path = Path(path).resolve()
    if path != SHIPPED_INT8 or not path.is_file():
        return False
    with suppress(OSError, ValueError):
        sums = path.with_suffix(".sha256").read_text(encoding="ascii")
        return sums == int8_sums(path)
    return False


def int8_sums(path: Path) -> str:
    """The sums of the shipped weights and of their int8 file `path`, as `sha256sum` prints them."""
    return "".join(f"{sha256_of(file)}  {file.name}\n" for file in (SHIPPED, path))


FORMAT = "ssdlib-1"


class _Recipe(TypedDict, total=False):
    augment: dict[str, Any] | None


class _Data(TypedDict, total=False):
    fingerprint: str | None
    sources: list[dict[str, Any]]


class _Metadata(TypedDict, total=False):
    """Of what `save_model` is given by a training, the parts that are read as more than text."""

    recipe: _Recipe | None
    data: _Data | None


def parse_config(text: str) -> ModelConfig:
    """The network's config in the header of a file. Raises ValueError or ConfigError if it is none."""
    if len(text) > _MAX_CONFIG:
        raise ValueError(f"its config has {len(text):,} characters")
    return ModelConfig.from_dict(parse_json(text, dict[str, Any]))


def save_model(model: SSD300, path: str | Path, *, half: bool = False, **metadata: Any) -> None:
    """Write the weights to a safetensors file, atomically; `half` keeps floating-point ones as fp16.

    The header carries the model's config and `metadata` (JSON values), so that the file alone rebuilds the
    network. Raises SsdError where the disk refuses (what was there before then stays), CheckpointError for
    a number too large for fp16.
    """
    import torch

    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor
        if half and torch.isinf(tensors[name]).any() and not torch.isinf(tensor).any():
            raise CheckpointError(f"{path}: {name} is too large for fp16. Keep these weights in fp32.")
    header = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "metadata": json.dumps(metadata, allow_nan=False),
    }
    write_bytes(path, _serialized(tensors, header))


def _serialized(tensors: dict[str, Tensor], header: dict[str, str]) -> bytes:
    """The bytes of a safetensors file, equal for equal content: the library orders headers at random."""
    from safetensors.torch import save

    content = memoryview(save(tensors, header))
    size = int.from_bytes(content[:8], "little")
    parts = json.loads(bytes(content[8 : 8 + size]))
    parts["__metadata__"] = dict(sorted(parts["__metadata__"].items()))
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows
    return b"".join((len(text).to_bytes(8, "little"), text, content[8 + size :]))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save_model` was given, and `config`. Raises CheckpointError as `load_model` does."""
    config, metadata, _ = _read(Path(path), tensors=False)
    return {**metadata, "config": config.to_dict()}


def load_model(path: str | Path) -> SSD300:
    """The network in a file of `save_model`, on the CPU, in float32 and evaluation mode.

    Raises CheckpointError that names the file if it is missing, damaged, half written, or not ours.
    """
    from ssdlib.detector.model import SSD300

    config, _, tensors = _read(Path(path))
    try:
        check_tensors(config, tensors)
        model = SSD300(config)
        own = model.state_dict()
        model.load_state_dict({name: t.to(own[name].dtype) for name, t in tensors.items()})
    except (ConfigError, ValueError, RuntimeError, NotImplementedError) as error:
        # The last two: of types that torch converts to no other.
        raise CheckpointError(f"{path}: {error}. Use another checkpoint.") from error
    return model.eval()


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless these tensors, by name, are those of a network of the config.

    So a network is never built larger than the file that it comes from; nor is one built here.
    """
    import torch

    from ssdlib.detector.model import SSD300

    with torch.device("meta"):
        own = SSD300(config).state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    if wrong or len(tensors) != len(own):
        raise ValueError(f"its tensors are not those of its own config ({', '.join(wrong[:3])} ...)")


MAX_BYTES = 500_000_000
"""No file of weights is larger: it could hold a network for 600 classes."""
_MAX_CONFIG = 1_000_000


def _read(path: Path, *, tensors: bool = True) -> tuple[ModelConfig, dict[str, Any], dict[str, Tensor]]:
    """The config, the metadata and, if wanted, the tensors of a file."""
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path}. Check the path, or train some: python -m ssdlib run --profile quick"
        )
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES // 10**6} MB: no weights of this detector.")
    try:
        with safetensors.safe_open(path, framework="pt" if tensors else "numpy") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
    except (safetensors.SafetensorError, OSError, struct.error, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}). Use another checkpoint of the run."
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds tensors, but was not written by ssdlib (format {FORMAT})")
    try:
        config = parse_config(header["config"])
        metadata = parse_json(header["metadata"], _Metadata)
    except (KeyError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: its header cannot be read ({error}). Use another checkpoint."
        ) from error
    return config, metadata, state
