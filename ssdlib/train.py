"""Training: the loop, what it leaves behind, and how a run stops and goes on.

`Trainer.train_one_epoch` is the loop itself. Everything else makes sure that nothing is lost: a run that
was interrupted, at any step, and resumed ends in the same weights, bit for bit (CPU, fp32).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ssdlib import checkpoints
from ssdlib.config import Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.loaders import make_loader, set_epoch
from ssdlib.data.transforms import train_transform
from ssdlib.errors import ConfigError, DataError, TrainingError
from ssdlib.evaluation import evaluate_model
from ssdlib.files import write_json
from ssdlib.history import EpochRecord, History
from ssdlib.loss import MultiBoxLoss, multibox_loss
from ssdlib.matching import match
from ssdlib.model import IMAGE_SIZE, SSD300
from ssdlib.optimization import Ema, learning_rate_factor, make_optimizer
from ssdlib.predict import Predictor
from ssdlib.runtime import choose_device, choose_precision, keep_freed_memory
from ssdlib.watch import LossWatch, StopSignals
from ssdlib.weights import save_model


class TrainingInterrupted(TrainingError):
    """Training that was asked to stop, and saved itself first."""


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate's view of the device and of the processes of `accelerate launch`.

    Mixed precision is `torch.autocast` in the loop, where it can be seen; Accelerate would put it into the
    `forward` of the caller's network and leave it there.
    """
    if PartialState._shared_state and PartialState().num_processes == 1:
        # Accelerate remembers the first choice of a process; a notebook may make another.
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        # The others wait while one evaluates: NCCL's ten minutes may be too few for a large val split.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )


# --- the trainer -----------------------------------------------------------------------------------------


class Trainer:
    """Trains a network after a recipe and keeps everything about it in `run_dir`.

    Writes `checkpoints/` (see `ssdlib.checkpoints`), `history.json` and `events/` (TensorBoard). The best
    weights are those with the highest mAP@0.5 on `val_data`; without it, the last.

    data_description: what `DataSource.describe()` says; its fingerprint ties the checkpoints to the data.
    """

    def __init__(
        self,
        model: SSD300,
        recipe: Recipe,
        train_data: DetectionDataset,
        val_data: DetectionDataset | None,
        *,
        run_dir: str | Path,
        precision: str = "auto",
        device: str | torch.device = "auto",
        seed: int = 0,
        workers: int | str = "auto",
        data_description: dict[str, Any] | None = None,
        compile: bool = False,
        snapshot_every: int = 10,
        progress: bool = True,
    ) -> None:
        _check_data(model, train_data, val_data)
        torch.manual_seed(seed)
        device = choose_device(device)
        self.recipe, self.seed, self.progress = recipe, seed, progress
        self.train_data, self.val_data = train_data, val_data
        self.run_dir = Path(run_dir)
        self.checkpoints = self.run_dir / "checkpoints"
        self.snapshot_every = snapshot_every
        self.data_description = data_description or {}
        self.precision = choose_precision(precision, device)
        if device.type == "cpu":
            keep_freed_memory()
        self.accelerator = make_accelerator(device)
        processes = self.accelerator.num_processes
        if recipe.batch_size < processes:
            raise ConfigError(f"a batch of {recipe.batch_size} cannot be shared by {processes} processes")

        self.loader = make_loader(
            train_data.with_transform(train_transform(recipe.augment, IMAGE_SIZE)),
            recipe.batch_size,
            shuffle=True,
            seed=seed,
            workers=workers,
            drop_last=True,
            process=self.accelerator.process_index,
            processes=processes,
        )
        self.batches = self.loader.batch_sampler.batches
        total_steps = recipe.epochs * self.batches

        self.network = model.to(self.accelerator.device, memory_format=torch.channels_last)
        self.ema = Ema(model, recipe.ema_decay) if recipe.ema_decay else None
        optimizer = make_optimizer(model, recipe)
        self.scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total_steps, recipe))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if compile:
            self.model = torch.compile(self.model)

        self.history = History()
        self.epoch, self.step = 0, 0  # finished so far
        self.watch = self._new_watch()
        self.seconds = 0.0

    # The loop ------------------------------------------------------------------------------------------

    def train_one_epoch(self, stop: StopSignals) -> None:
        """The training loop: one pass over the images, or what is left of it, until asked to stop."""
        recipe, priors = self.recipe, self.network.priors
        self.model.train()
        set_epoch(self.loader, self.epoch, start=self.step - self.epoch * self.batches)
        with self._bar() as bar:
            for images, targets in self.loader:
                images, boxes, labels = self._to_device(images, targets)
                with self._autocast():
                    locs, logits = self.model(images)  # (N, P, 4), (N, P, C)
                matches = match(boxes, labels, priors, recipe.iou_threshold)
                loss = multibox_loss(
                    locs,
                    logits,
                    matches,
                    priors,
                    variances=self.network.config.variances,
                    negatives_per_positive=recipe.negatives_per_positive,
                )
                loss = self._share(loss)
                self.accelerator.backward(loss.total)
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
                self.watch.add(loss, norm, self._where(), [target["image_id"] for target in targets])
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                if self.ema:
                    self.ema.update(self.network, self.step)
                self.step += 1
                bar.update(recipe.batch_size)
                bar.set_postfix(loss=f"{self.watch.latest:.3f}", refresh=False)
                if self._stop_agreed(stop, ask=self.step % self.watch.every == 0):
                    break
        self.watch.read()

    def fit(self, *, resume: bool = False, on_epoch: Callable[[EpochRecord], None] | None = None) -> History:
        """Train to the recipe's last epoch and return the history.

        resume: go on from the newest sound state in `run_dir`, or begin where there is none.
        on_epoch: called with each finished epoch; by default its line is printed if `progress`.

        Raises TrainingError for a loss that is not finite, TrainingInterrupted (saved, resumable) after
        Ctrl-C or SIGTERM, CheckpointError if `resume` finds another run's state, SsdError for a full disk.
        """
        if resume:
            self._resume()
        self.train_data.preload(progress=self.progress and self._is_main)
        report = on_epoch or self._print_line
        if self.val_data is not None and self._is_main:
            # So that a damaged image is named now, not after the epochs until the first evaluation.
            self.val_data.preload(progress=self.progress)
        patience = 5.0 if self.accelerator.num_processes > 1 else 0.0
        with StopSignals(patience) as stop, self._open_events() as self.events:
            while self.epoch < self.recipe.epochs:
                began = time.perf_counter()
                self.train_one_epoch(stop)
                self.seconds += time.perf_counter() - began
                if self.step == (self.epoch + 1) * self.batches:
                    record = self._finish_epoch()
                    if self._is_main:
                        report(record)
                if self._stop_agreed(stop) and self.epoch < self.recipe.epochs:
                    self._save_state()
                    # The first process to end makes the launcher end the others.
                    self.accelerator.wait_for_everyone()
                    raise TrainingInterrupted(
                        f"stopped by {stop.requested} before {self._where()}. Its state is in "
                        f"{self.checkpoints / checkpoints.LAST}: resume, and it goes on as if never stopped."
                    )
        self.accelerator.wait_for_everyone()
        return self.history

    def _stop_agreed(self, stop: StopSignals, *, ask: bool = True) -> bool:
        """Whether a stop was asked for, of any process: all stop after the same step, or they would wait
        for each other forever. `ask` says whether now is the time for the others' answers, which cost a
        little on a GPU."""
        if self.accelerator.num_processes == 1:
            return bool(stop.requested)
        if not ask:
            return False
        asked = torch.tensor([float(bool(stop.requested))], device=self.accelerator.device)
        agreed = self.accelerator.reduce(asked, "sum").item() > 0
        if agreed and not stop.requested:
            stop.requested = "a signal to another process"
        return agreed

    # An epoch's end --------------------------------------------------------------------------------------

    def _finish_epoch(self) -> EpochRecord:
        """Evaluate, record and save what the epoch just trained."""
        self.epoch += 1
        began = time.perf_counter()
        due = self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs
        metrics = self._evaluate() if due and self._is_main and self.val_data is not None else None
        sums = torch.tensor(self.watch.sums, dtype=torch.float32, device=self.accelerator.device)
        sums = self.accelerator.reduce(sums, "mean").tolist()
        record = EpochRecord(
            self.epoch,
            *(total / self.batches for total in sums),
            learning_rate=self.recipe.learning_rate
            * learning_rate_factor(self.step - 1, self.recipe.epochs * self.batches, self.recipe),
            images_per_second=self.images / self.seconds,
            seconds=self.seconds + time.perf_counter() - began,
            map_50=metrics["map_50"] if metrics else None,
        )
        self.history.epochs.append(record)
        self.watch, self.seconds = self._new_watch(), 0.0
        if self._is_main:
            self._save_epoch(record, metrics)
        self.accelerator.wait_for_everyone()
        return record

    def _evaluate(self) -> dict[str, Any]:
        predictor = Predictor(self.weights, device=self.accelerator.device, precision=self.precision)
        metrics, _ = evaluate_model(predictor, self.val_data, progress=self.progress)
        return metrics.to_dict()

    def _save_epoch(self, record: EpochRecord, metrics: dict[str, Any] | None) -> None:
        last = self.epoch == self.recipe.epochs
        # Without a figure to compare (no val, or none of its images has objects) the last weights are best.
        if self.history.best is record or (last and self.history.best is None):
            self._save_weights(checkpoints.BEST, metrics)
        if self.epoch % self.snapshot_every == 0:
            self._save_weights(f"epoch-{self.epoch:03d}.safetensors", metrics)
        if last or self.epoch % self.recipe.checkpoint_every == 0:
            self._save_state()
        write_json(self.run_dir / "history.json", self.history.to_dict())
        self._write_events(record)

    def _save_weights(self, name: str, metrics: dict[str, Any] | None) -> None:
        save_model(
            self.weights,
            self.checkpoints / name,
            class_names=list(self.network.config.class_names),
            recipe=self.recipe.to_dict(),
            epoch=self.epoch,
            metrics=metrics,
            data=self.data_description,
            seed=self.seed,
            precision=self.precision,
        )

    def _open_events(self) -> AbstractContextManager[Any]:
        if not self._is_main:
            return nullcontext()
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        # What an interrupted run logged beyond the state it resumed from is hidden by purge_step.
        return SummaryWriter(self.run_dir / "events", purge_step=self.epoch + 1)

    def _write_events(self, record: EpochRecord) -> None:
        for name, value in record.to_dict().items():
            if name != "epoch" and value is not None:
                tag = "val/map_50" if name == "map_50" else f"train/{name}"
                self.events.add_scalar(tag, value, record.epoch)
        self.events.flush()

    # Stopping and going on -------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a saved state to belong to this run."""
        return {
            "recipe": self.recipe.to_dict(),
            "classes": list(self.network.config.class_names),
            "data fingerprint": self.data_description.get("fingerprint"),
            "training images": len(self.train_data),
            "val images": len(self.val_data) if self.val_data is not None else 0,
            "seed": self.seed,
        }

    def _save_state(self) -> None:
        if not self._is_main:
            return
        state = {
            "identity": self._identity(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.watch.sums,
            "seconds": self.seconds,
            "history": self.history.to_dict(),
            "model": self.network.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        checkpoints.save_state(self.checkpoints, state)

    def _resume(self) -> None:
        """Load the newest sound state. No random state is in it: what a step draws depends on its number."""
        state, complaints = checkpoints.load_state(self.checkpoints)
        for complaint in complaints:
            self._say(f"{complaint}; going on from an older state.")
        if state is None:
            self._say(f"nothing to resume in {self.checkpoints}: starting from the beginning.")
            return
        checkpoints.check_same_run(state["identity"], self._identity())
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = History.from_dict(state["history"])
        self.watch = self._new_watch(state["sums"])
        self.network.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self._say(f"resuming before {self._where()}.")

    # Small things ----------------------------------------------------------------------------------------

    @property
    def weights(self) -> SSD300:
        """The network that is evaluated and saved: the average of the weights where there is one."""
        return self.ema.module if self.ema else self.network

    @property
    def images(self) -> int:
        """Images of one epoch, over all processes."""
        return min(self.batches * self.recipe.batch_size, len(self.train_data))

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _autocast(self) -> torch.autocast:
        """bf16 for what gains by it (convolutions); weights, loss and optimiser stay in float32."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _to_device(
        self, images: Tensor, targets: list[dict[str, Any]]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A batch where the network is: images in channels_last, boxes as fractions of the side."""
        device = self.accelerator.device
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        boxes = [target["boxes"].to(device, non_blocking=True) / IMAGE_SIZE for target in targets]
        labels = [target["labels"].to(device, non_blocking=True) for target in targets]
        return images, boxes, labels

    def _share(self, loss: MultiBoxLoss) -> MultiBoxLoss:
        """Divide by the positives of all processes, so that their mean is the loss of the whole batch."""
        if self.accelerator.num_processes == 1:
            return loss
        everywhere = self.accelerator.reduce(loss.positives, "sum").clamp(min=1)
        share = self.accelerator.num_processes * loss.positives.clamp(min=1) / everywhere
        return MultiBoxLoss(
            loss.total * share, loss.localisation * share, loss.confidence * share, loss.positives
        )

    def _new_watch(self, sums: Iterable[float] = (0.0, 0.0, 0.0)) -> LossWatch:
        return LossWatch(every=1 if self.accelerator.device.type == "cpu" else 20, sums=list(sums))

    def _where(self) -> str:
        epoch = self.step // self.batches
        rate = self.scheduler.get_last_lr()[0]
        return (
            f"epoch {epoch + 1}, step {self.step - epoch * self.batches + 1} of {self.batches} "
            f"(learning rate {rate:.3g})"
        )

    def _bar(self) -> tqdm:
        return tqdm(
            desc=f"epoch {self.epoch + 1}/{self.recipe.epochs}",
            total=self.images,
            initial=(self.step - self.epoch * self.batches) * self.recipe.batch_size,
            unit="img",
            leave=False,
            disable=not (self.progress and self._is_main),
        )

    def _print_line(self, record: EpochRecord) -> None:
        if self.progress:
            print(record.line(self.recipe.epochs), flush=True)

    def _say(self, message: str) -> None:
        if self._is_main:
            print(message, file=sys.stderr)


def _check_data(model: SSD300, train_data: DetectionDataset, val_data: DetectionDataset | None) -> None:
    if not len(train_data):
        raise DataError("the training split has no images: add some to ImageSets/Main/train.txt")
    for name, data in (("training", train_data), ("val", val_data)):
        if data is not None and tuple(data.class_names) != tuple(model.config.class_names):
            raise DataError(
                f"the {name} images have the classes {', '.join(data.class_names)}, but the network has "
                f"{', '.join(model.config.class_names)}; build the model with the data's class names"
            )
