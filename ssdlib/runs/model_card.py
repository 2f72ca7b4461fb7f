"""The model card of the shipped weights: a page beside the file, of what it is, can do, and cannot.

    python -m ssdlib model-card --smears                                  # measures the shipped file
    python -m ssdlib model-card --smears --ship runs/NAME --notes how.md  # ships a run's best weights first

Every figure on it is measured when it is written and stands as `ssdlib evaluate` prints it. The network, the
recipe and the data are read from the file itself; the command, hardware and time of the training are its
metadata `training`, which --notes gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssdlib.common.errors import ConfigError
from ssdlib.common.files import sha256_of, write_text
from ssdlib.evaluation.tables import results_text

if TYPE_CHECKING:
    from ssdlib.data.source import DataSource
    from ssdlib.detector.model import SSD300

_TEMPLATE = """\
# {name}

An SSD300 that finds and counts {classes} in photographs of stained blood smears. It is what `ssdlib detect`
and `ssdlib evaluate` use unless told otherwise, and what the profiles `smoke` and `quick` start from.

{network}

## Data

{data}

## Training

{training}

{recipe}

## Results

Measured in {precision}. AP50, and its mean over the classes in the last row, is COCO's average precision at
IoU 0.5; AP is COCO's over IoU 0.5 to 0.95; precision and recall are those at a score of 0.5. In brackets:
95 % percentile intervals from {samples} draws of as many images, with replacement. They show what the
choice of images does, not what another training or another microscope would.

{results}

To check them:

```
{commands}
```

Without `--precision fp32` a processor with bf16 uses that: faster, and the last digits differ.

## Limits

- This is not a medical device: no decision about a patient may rest on it.
- It knows one kind of picture: JPEG of 640 x 480 pixels, one magnification, one way of staining. On any
  other, count some fields by hand and compare before trusting it.
- Many red cells and some platelets of BCCD have no label, where it learnt as where it was measured: some
  finds that count as false are cells, and some cells it was taught to pass over.
- 11 of the 72 test images show cells that a train or val image shows too (`data/README.md`), so test is a
  little kinder than a field never seen.
- val chose the epoch and the recipe, so its figures are too kind; those of test were looked at once, at the
  end.
- Drawn smears are all alike and perfectly labeled: good figures there say nothing about real cells.

## License

The weights: MIT, as the project (`LICENSE`). BCCD: MIT, by Shenggan; images and original annotations by
cosmicad and akshaylamba. The smears are drawn by the project.
"""
_UNTOLD = "The file does not say by which command, on what machine and how long."


class Measured(NamedTuple):
    """Where to measure: the data, what `--data` calls it, and its splits."""

    source: DataSource
    word: str
    splits: tuple[str, ...]


def write_card(
    weights: Path,
    sources: Sequence[Measured],
    *,
    ship: bool = False,
    training: str = "",
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = False,
) -> Path:
    """The page written beside `weights`; with `ship` they take the place of the shipped weights first.

    `training` says by which command, on what hardware and how long; it goes into the file that is shipped.
    Raises what `ship_weights` and `render_card` raise.
    """
    path = ship_weights(weights, training) if ship else weights
    text = render_card(
        path, sources, training=training, device=device, precision=precision, progress=progress
    )
    write_text(path.with_suffix(".md"), text)
    return path.with_suffix(".md")


def ship_weights(checkpoint: Path, training: str = "") -> Path:
    """Put a checkpoint, in fp16, in the place of the shipped weights and return that; its metadata stay.

    Raises CheckpointError for a bad checkpoint, SsdError where the disk refuses.
    """
    from ssdlib.detector import model_file

    about = model_file.read_metadata(checkpoint)
    del about["config"]  # save_model writes the network's own
    # Where the data lay on the machine that trained means nothing elsewhere.
    about["data"] = {key: value for key, value in (about.get("data") or {}).items() if key != "root"}
    if training:
        about["training"] = training
    model_file.save_model(model_file.load_model(checkpoint), model_file.SHIPPED, half=True, **about)
    return model_file.SHIPPED


def render_card(
    weights: Path,
    sources: Sequence[Measured],
    *,
    training: str = "",
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = False,
) -> str:
    """The page. `training` stands in for what the file's metadata say of it.

    Raises CheckpointError for a bad file or one of other classes than the data's, DataError for bad data.
    """
    from ssdlib.detector.model_file import SHIPPED, load_model, read_metadata
    from ssdlib.evaluation.evaluate import evaluate_split
    from ssdlib.inference.predictor import Predictor

    about, model = read_metadata(weights), load_model(weights)
    predictor = Predictor(model, device=device, precision=precision)
    named = "" if weights == SHIPPED else f" --weights {weights}"
    results, commands = [], []
    for source, word, splits in sources:
        for split in splits:
            report = evaluate_split(predictor, source, split, progress=progress)
            # In the very form in which `ssdlib evaluate` prints it.
            table = results_text({split: report, "data": report["data"]})
            results.append(f"{_name_of(source)}, {split}:\n\n```\n{table}\n```")
            commands.append(
                f"python -m ssdlib evaluate{named} --data {word} --split {split} --precision {precision}"
            )
    return _TEMPLATE.format(
        name=weights.stem,
        classes=", ".join(model.config.class_names),
        network=_table(_network_facts(weights, model)),
        data="\n".join(f"- {_data_line(source)}" for source, _, _ in sources),
        training=training.strip() or str(about.get("training", _UNTOLD)).strip(),
        recipe=_table(_recipe_facts(about)),
        precision=predictor.precision,
        samples=report["intervals"]["samples"],
        results="\n\n".join(results),
        commands="\n".join(commands),
    )


def _network_facts(weights: Path, model: SSD300) -> dict[str, Any]:
    config = model.config
    norm = "with BatchNorm" if config.batch_norm else "without BatchNorm"
    first, last = model.backbone.to_conv4_3.conv1_1, model.backbone.to_conv7.conv7
    return {
        "network": f"SSD300 on VGG16 {norm}, {config.width:g} of the paper's channels "
        f"({first.out_channels} in conv1_1, {last.out_channels} in conv7)",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "input": "RGB of any size, resized to 300 x 300; "
        f"mean {_numbers(config.mean)}, deviation {_numbers(config.std)} taken off inside",
        "priors": f"{config.priors.count}, scales {_numbers(config.priors.scales)}",
        "classes": ", ".join(config.class_names),
        "file": f"{weights.name}, fp16 tensors alone (safetensors), {weights.stat().st_size / 1e6:.1f} MB",
        "SHA-256": f"`{sha256_of(weights)}`",
    }


def _recipe_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of the trainer knows of its making; a dash where another wrote it."""
    recipe = about.get("recipe") or {}
    told = {key: recipe.get(key, "–") for key in ("name", "initial_weights", "schedule", "ema_decay")}
    augment = recipe.get("augment") or {}
    return {
        "recipe": told["name"],
        "initial weights": told["initial_weights"],
        "optimizer": " ".join(
            f"{word} {recipe.get(key, '–')}".strip()
            for word, key in (("", "optimizer"), ("rate", "learning_rate"), ("decay", "weight_decay"))
        ),
        "schedule": f"{told['schedule']}, {recipe.get('warmup_steps', '–')} steps of warm-up",
        "epochs": f"{recipe.get('epochs', '–')} of batch {recipe.get('batch_size', '–')}; "
        f"these weights are of epoch {about.get('epoch', '–')}",
        "synthetic smears": f"{recipe.get('smears', '–')} among the images of every epoch",
        "moving average": told["ema_decay"],
        "augmentation": ", ".join(f"{key} {_value(value)}" for key, value in augment.items()) or "–",
        "seed": about.get("seed", "–"),
        "precision": about.get("precision", "–"),
        "training data": f"fingerprint `{(about.get('data') or {}).get('fingerprint') or '–'}`",
    }


def _data_line(source: DataSource) -> str:
    counts = {split: len(ids) for split, ids in source.labels.splits.items()}
    sizes = ", ".join(f"{split} {counts.get(split, 0)}" for split in ("train", "val", "test"))
    use = "drawn by `ssdlib data smears`" if source.synthetic else "only train was trained on, val chose"
    return f"{_name_of(source)}: {sizes} images; {use}. Fingerprint `{source.fingerprint}`."


def _name_of(source: DataSource) -> str:
    return {"bccd": "BCCD", "smears": "Synthetic smears"}.get(source.kind, source.folder.name)


def _table(facts: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _value(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else f"{value}"


def read_notes(notes: Path | None) -> str:
    """The text of a Markdown file; empty for None. Raises ConfigError where it cannot be read."""
    if notes is None:
        return ""
    try:
        return notes.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the notes {notes}: {error}. Give a text file in UTF-8.") from error
