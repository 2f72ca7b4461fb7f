"""Division of images into train, val and test where a folder leaves it open."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

PARTS = ("train", "val", "test")
SPLITS = (*PARTS, "trainval")
SHARES = {"train": 0.56, "val": 0.24, "test": 0.20}  # as BCCD's 205, 87 and 72
SHARES_TEXT = " / ".join(f"{share:.0%} {split}" for split, share in SHARES.items())
_SEED = 0


def divide(ids: Sequence[str]) -> dict[str, list[str]]:
    """Ids by split (trainval, too), shuffled by a fixed seed: the same ids are always divided alike."""
    ids = sorted(ids)
    random.Random(_SEED).shuffle(ids)
    first = round(len(ids) * SHARES["train"])
    second = first + round(len(ids) * SHARES["val"])
    parts = {"train": ids[:first], "val": ids[first:second], "test": ids[second:], "trainval": ids[:second]}
    return {split: sorted(part) for split, part in parts.items()}


def complete(given: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], str]:
    """Ids by split with none missing, and what was done about it ("" if nothing), to follow a folder's name.

    Without a train split, or with nothing else, all images are divided; else a missing val or test is taken
    out of train by a fixed seed.
    """
    parts = {split: sorted(given.get(split, ())) for split in SHARES}
    missing = [split for split, ids in parts.items() if not ids]
    if "train" in missing or len(missing) == 2:
        parts = divide([image_id for ids in given.values() for image_id in ids])
        return (
            parts,
            f"does not say which images are for what: they are divided by a fixed seed ({SHARES_TEXT}).",
        )
    done = ""
    if missing:
        rest = list(parts["train"])
        random.Random(_SEED).shuffle(rest)
        count = round(len(rest) * SHARES[missing[0]] / (SHARES["train"] + SHARES[missing[0]]))
        parts |= {missing[0]: sorted(rest[:count]), "train": sorted(rest[count:])}
        images = "1 image is" if count == 1 else f"{count} images are"
        done = f"has no {missing[0]} split: {images} set aside for it from train, by a fixed seed."
    return {**parts, "trainval": sorted(parts["train"] + parts["val"])}, done
