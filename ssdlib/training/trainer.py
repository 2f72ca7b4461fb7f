"""The training loop, the files it writes, and how a run is stopped and resumed.

`Trainer.train_one_epoch` is the loop itself. Everything else makes sure that nothing is lost: a run that
was interrupted, at any step, and resumed ends in the same weights, bit for bit (CPU, fp32).
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ssdlib.common.distributed import (
    any_process,
    gather,
    is_lost_process,
    launched_as,
    synchronize_batch_norm,
)
from ssdlib.common.errors import CheckpointError, DataError, TrainingError
from ssdlib.common.files import sha256_of, write_json
from ssdlib.common.runtime import choose_device, choose_precision, keep_freed_memory
from ssdlib.common.signals import StopSignals
from ssdlib.common.terminal import say
from ssdlib.common.threads import keep_threads
from ssdlib.config import IMAGE_SIZE, Recipe
from ssdlib.data.dataset import DetectionDataset
from ssdlib.data.loaders import make_loader, set_epoch
from ssdlib.data.transforms import eval_transform, train_transform
from ssdlib.detector.loss import MultiBoxLoss
from ssdlib.detector.model import SSD300
from ssdlib.detector.model_file import save_model
from ssdlib.evaluation.evaluate import evaluate_model, map_by_source
from ssdlib.inference.predictor import Predictor
from ssdlib.training import checkpoints
from ssdlib.training.history import EpochRecord, History
from ssdlib.training.monitor import LossWatch, NonFiniteLoss
from ssdlib.training.optim import (
    MOMENTS,
    average_weights,
    clip_gradients,
    learning_rate_factor,
    make_optimizer,
)
from ssdlib.training.validation import loss_on, recipe_loss
from ssdlib.training.views import cut_to_views, tilings

SAVE_SECONDS = 600.0
"""A long epoch saves its state in between, when the last one saved is older than this."""


class TrainingInterrupted(TrainingError):
    """Training that was asked to stop, and saved its state first."""


def make_accelerator(device: torch.device) -> Accelerator:
    """Accelerate's view of the processes that torchrun or `accelerate launch` started.

    It places nothing: Accelerate keeps the device of the first call in a process, and a notebook may train on
    another one later. Mixed precision is `torch.autocast` in the loop, where it can be seen; Accelerate would
    put it into the `forward` of the caller's network and leave it there.
    """
    return Accelerator(
        cpu=launched_as()[1] > 1 and device.type == "cpu",  # gloo instead of NCCL
        device_placement=False,
        mixed_precision="no",
        kwargs_handlers=[
            # How long the others wait for one that is slow, such as in writing a checkpoint.
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
            # Running statistics are the same everywhere (`synchronize_batch_norm`).
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )


def whole_batch_loss(loss: MultiBoxLoss, accelerator: Accelerator) -> MultiBoxLoss:
    """The loss of the whole batch, from that of this process's share of it.

    Its gradient is that of the share, scaled so that the mean over the processes, which the backward pass
    takes, is the gradient of the whole batch's loss.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return loss
    positives = loss.positives.clamp(min=1)
    own = torch.stack([loss.localization * positives, loss.confidence * positives])  # sums
    *sums, positives = accelerator.reduce(torch.stack([*own.detach(), loss.positives]), "sum")
    localization, confidence = (total / positives.clamp(min=1) for total in sums)
    scaled = own.sum() * (processes / positives.clamp(min=1))
    total = localization + confidence + (scaled - scaled.detach())
    return MultiBoxLoss(total, localization, confidence, positives)


class Trainer:
    """Trains a network by a recipe and keeps everything about the training in `run_dir`.

    Writes `checkpoints/` (see `ssdlib.training.checkpoints`), `history.json` and `events/` (TensorBoard). The
    best weights are those with the highest mAP@0.5 on `val_data`, the mean over its sources if several are
    joined; without it, the last.

    data_description: what `DataSource.describe()` says; its fingerprint ties the checkpoints to the data.
    snapshot_every: epochs between weights that are kept beside the best.
    initial_sum: SHA-256 of the file that the recipe's initial weights are, if they are one; by default, and
        where the file is there, it is computed.
    most_views: views that are trained on at most, evenly taken of those into which the images are cut.
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
        snapshot_every: int = 10,
        initial_sum: str | None = None,
        most_views: int | None = None,
        progress: bool = True,
    ) -> None:
        _check_data(model, train_data, val_data)
        torch.manual_seed(seed)
        device = choose_device(device)
        self.recipe, self.seed, self.progress = recipe, seed, progress
        use = model.config.use
        self.train_data, self.val_data = cut_to_views(train_data, use), val_data
        views = len(self.train_data)
        if most_views and views > most_views:
            self.train_data = self.train_data.with_samples(
                self.train_data.samples[:: math.ceil(views / most_views)]
            )
        if progress and views != len(train_data):
            cut = f"{views:,} views of {' x '.join(map(str, use.view))} pixels"
            used = f", of which {len(self.train_data):,} are used" if len(self.train_data) < views else ""
            say(f"the {len(train_data):,} training images are cut into {cut}{used}", file=sys.stderr)
        self.val_views = None
        if val_data is not None:
            self.val_views = cut_to_views(val_data, use).with_transform(eval_transform(IMAGE_SIZE))
        # By the labels: a network that has learned little yet cannot find the scale.
        self.val_tilings = tilings(val_data, use) if val_data is not None else {}
        self.run_dir = Path(run_dir)
        self.checkpoints = self.run_dir / "checkpoints"
        self.snapshot_every = snapshot_every
        if initial_sum is None and (file := recipe.initial_file) is not None and file.is_file():
            initial_sum = sha256_of(file)
        self.initial_sum = initial_sum
        self.data_description = data_description or {}
        self.precision = choose_precision(precision, device)
        if device.type == "cpu":
            keep_freed_memory()
        self.accelerator = make_accelerator(device)
        processes = self.accelerator.num_processes
        self.device = device if processes == 1 else self.accelerator.device
        self.loader = make_loader(
            self.train_data.with_transform(train_transform(recipe.augment, IMAGE_SIZE)),
            recipe.batch_size,
            shuffle=True,
            seed=seed,
            workers=workers,
            drop_last=True,
            process=self.accelerator.process_index,
            processes=processes,
        )
        self.batches = self.loader.batch_sampler.batches
        total = self.total_steps = recipe.epochs * self.batches

        self.network = model.to(self.device, memory_format=torch.channels_last)
        self.average = average_weights(model, recipe.ema_decay) if recipe.ema_decay else None
        if processes > 1:
            synchronize_batch_norm(model, self.device)
        optimizer = make_optimizer(model, recipe)
        self.scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, recipe))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

        self.history = History()
        self.epoch, self.step = 0, 0  # finished so far
        self.watch = self._new_watch()
        self.seconds = 0.0  # of the epoch that is running
        self._began, self._saved_at = 0.0, math.inf  # the loop alone saves nothing

    # The loop ------------------------------------------------------------------------------------------

    def train_one_epoch(self, stop: StopSignals) -> None:
        """The training loop: one pass over the images, or what is left of it, until asked to stop."""
        recipe = self.recipe
        self.model.train()
        self.network.backbone.freeze(recipe.frozen_stages)
        set_epoch(self.loader, self.epoch, start=self.step - self.epoch * self.batches)
        with self._bar() as bar:
            for images, targets in self.loader:
                images, boxes, labels = self._to_device(images, targets)
                with self._autocast():
                    locs, logits = self.model(images)  # (N, P, 4), (N, P, C)
                background = recipe.background_at(self.step, self.total_steps)
                loss = recipe_loss(recipe, self.network, locs, logits, boxes, labels, background)
                loss = whole_batch_loss(loss, self.accelerator)
                self.accelerator.backward(loss.total)
                norms = clip_gradients(self.network, recipe.clip_norm)
                self.watch.add(self.step, loss, norms)
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad()
                if self.average:
                    self.average.update_parameters(self.network)
                self.step += 1
                bar.update(recipe.batch_size)
                bar.set_postfix(loss=f"{self.watch.latest:.3f}", refresh=False)
                if self._stop_agreed(stop, ask=self.step % self.watch.every == 0):
                    break
                self._save_if_due()
        self.watch.read()

    def fit(
        self,
        *,
        resume: bool | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> History:
        """Train to the recipe's last epoch and return the history.

        resume: True goes on from the newest sound state in `run_dir`, or begins where there is none; False
            begins anew, in the place of a training that is there; None refuses to.
        on_epoch: called with each finished epoch; by default its line is printed if `progress`.
        on_begin: called in the main process once nothing has been refused, before anything is written.

        Raises TrainingError for a loss that is not finite, or where another process trains in `run_dir` or it
        is moved away; TrainingInterrupted (saved, resumable) after Ctrl-C, SIGTERM or SIGHUP; CheckpointError
        if `resume` finds another run's state, or is None and there is one; SsdError for a full disk.
        """
        try:
            with checkpoints.alone(self.run_dir) if self._is_main else nullcontext():
                return self._fit(resume, on_epoch or self._print_line, on_begin)
        except NonFiniteLoss as error:
            message = self._report_nonfinite(error)
            # The first process to end makes the launcher end the others.
            self.accelerator.wait_for_everyone()
            raise TrainingError(message) from None
        except FileNotFoundError:  # of TensorBoard's, which writes by itself
            self._check_folder()
            raise
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            raise TrainingError(
                f"another process of this training has ended, or cannot be reached, so it stopped before "
                f"{self._where()}; that process's own messages say why. "
                f"{checkpoints.describe(self.checkpoints)}"
            ) from error

    def _fit(
        self, resume: bool | None, report: Callable[[EpochRecord], None], on_begin: Callable[[], None]
    ) -> History:
        if resume is None:
            checkpoints.refuse_overwriting(self.checkpoints)
        if self._is_main:
            checkpoints.remove_leftovers(self.checkpoints)
        if resume:
            self._resume()
        self._check_agreement()
        if self.epoch >= self.recipe.epochs:
            if self._is_main:
                on_begin()
            return self.history
        for data in (self.train_data, self.val_data):
            if data is not None:  # val too: a damaged image is named now, not after the first epochs
                data.preload(progress=self.progress and self._is_main)
        if self._is_main:
            on_begin()
        patience = 5.0 if self.accelerator.num_processes > 1 else 1.0
        self._saved_at = time.perf_counter()
        with StopSignals(patience) as stop, self._open_events() as self.events:
            while self.epoch < self.recipe.epochs:
                self._began = time.perf_counter() - self.seconds
                self.train_one_epoch(stop)
                self.seconds = time.perf_counter() - self._began
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

    def _report_nonfinite(self, error: NonFiniteLoss) -> str:
        """The message about a step whose loss is not finite; `nonfinite.json` gets the same facts."""
        epoch, step = divmod(error.step, self.batches)
        batch = self.loader.batch_sampler.whole_batch(epoch, step)
        images = [self.train_data.samples[index].image_id for index in batch]
        path = self.run_dir / "nonfinite.json"
        if self._is_main:
            facts = {
                "epoch": epoch + 1,
                "step": step + 1,
                "steps_of_an_epoch": self.batches,
                "learning_rate": self._rate(error.step),
                "images": images,
            }
            # JSON has no nan.
            values = {name: v if math.isfinite(v) else str(v) for name, v in error.values.items()}
            write_json(path, facts | values)
        return (
            f"the loss is no longer finite at {self._where(error.step)}: {error.parts}; images of the batch: "
            f"{', '.join(images)}. What was saved before stays; {path} holds this report. Look at these "
            "images' boxes (ssdlib data check), or start again with a smaller learning rate."
        )

    def _check_agreement(self) -> None:
        """Raise CheckpointError unless all processes are about to do the same."""
        states = gather({**self._identity(), "finished steps": self.step})
        for number, other in enumerate(states[1:], start=1):
            differing = ", ".join(name for name in states[0] if states[0][name] != other[name])
            if differing:
                raise CheckpointError(
                    f"processes 0 and {number} differ in: {differing}. Start them all with the same command, "
                    f"and let every machine see the same data and the same {self.run_dir}."
                )

    def _stop_agreed(self, stop: StopSignals, *, ask: bool = True) -> bool:
        """Whether any process was asked to stop: all stop after the same step, or they would wait for each
        other forever. `ask` says whether to ask the others now, which costs a little on a GPU."""
        if self.accelerator.num_processes > 1 and not ask:
            return False
        agreed = any_process(bool(stop.requested), self.device)
        if agreed and not stop.requested:
            stop.requested = "a signal to another process"
        return agreed

    # An epoch's end --------------------------------------------------------------------------------------

    def _finish_epoch(self) -> EpochRecord:
        """Evaluate, record and save what the epoch just trained."""
        self.epoch += 1
        began = time.perf_counter()
        metrics, by_source, val_loss = None, {}, None
        due = self.epoch % self.recipe.evaluate_every == 0 or self.epoch == self.recipe.epochs
        if due and self.val_data is not None:
            predictor = Predictor(self.weights, device=self.device, precision=self.precision)
            progress = self.progress and self._is_main
            measured, found = evaluate_model(
                predictor, self.val_data, progress=progress, shared=True, tilings=self.val_tilings
            )
            metrics, by_source = asdict(measured), map_by_source(found, self.val_data)
            background = self.recipe.background_at(self.step - 1, self.total_steps)  # as the last step's
            val_loss = loss_on(predictor, self.val_views, self.recipe, background)
        record = EpochRecord(
            self.epoch,
            *(total / self.batches for total in self.watch.sums),
            learning_rate=self._rate(self.step - 1),
            images_per_second=self.images / self.seconds,
            seconds=self.seconds + time.perf_counter() - began,
            map_50=metrics["map_50"] if metrics else None,
            val_loss=val_loss,
            map_50_by_source=by_source,
        )
        self.history.epochs.append(record)
        self.watch, self.seconds = self._new_watch(), 0.0
        if self._is_main:
            self._save_epoch(record, metrics)
        self.accelerator.wait_for_everyone()
        return record

    def _check_folder(self) -> None:
        if not self.run_dir.is_dir():
            raise TrainingError(
                f"the run folder {self.run_dir} is not there any more. If it was moved, what was saved is in "
                "it, and the training goes on there: --resume --run ITS_NEW_PLACE."
            )

    def _save_epoch(self, record: EpochRecord, metrics: dict[str, Any] | None) -> None:
        self._check_folder()
        last = self.epoch == self.recipe.epochs
        # Without a figure to compare (no val, or none of its images has objects) the last weights are best.
        if self.history.best is record or (last and self.history.best is None):
            self._save_weights(checkpoints.BEST, metrics)
        if self.epoch % self.snapshot_every == 0:
            self._save_weights(f"epoch-{self.epoch:03d}.safetensors", metrics)
        write_json(self.run_dir / "history.json", self.history.to_dict())
        self._write_events(record)
        # Last of all: what a kill leaves undone before this, a resumed run does again.
        if last or self.epoch % self.recipe.checkpoint_every == 0:
            self._save_state()

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

        _say_full_disks_once()
        # purge_step hides what an interrupted run logged beyond the state it resumed from.
        return SummaryWriter(self.run_dir / "events", purge_step=self.epoch + 1)

    def _write_events(self, record: EpochRecord) -> None:
        values = record.to_dict()
        for name, value in values.pop("map_50_by_source").items():
            if value is not None:
                self.events.add_scalar(f"val/map_50/{name}", value, record.epoch)
        for name, value in values.items():
            if name != "epoch" and value is not None:
                tag = {"map_50": "val/map_50", "val_loss": "val/loss"}.get(name, f"train/{name}")
                self.events.add_scalar(tag, value, record.epoch)
        self.events.flush()

    # Stopping and going on -------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a saved state to belong to this run."""
        return {
            "recipe": {**self.recipe.to_dict(), "initial_weights": Path(self.recipe.initial_weights).name},
            checkpoints.WEIGHTS_SUM: self.initial_sum,
            "classes": list(self.network.config.class_names),
            "data fingerprint": self.data_description.get("fingerprint"),
            "training images": len(self.train_data),
            "val images": len(self.val_data) if self.val_data is not None else 0,
            "seed": self.seed,
        }

    def _save_state(self) -> None:
        if not self._is_main:
            return
        self._check_folder()
        checkpoints.save_state(self.checkpoints, self._state())
        self._saved_at = time.perf_counter()

    def _state(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "config": self.network.config.to_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.watch.sums,
            "seconds": self.seconds,
            "history": self.history.to_dict(),
            "threads": torch.get_num_threads(),
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def _save_if_due(self) -> None:
        if self._is_main and time.perf_counter() - self._saved_at > SAVE_SECONDS:
            self.watch.read()
            self.seconds = time.perf_counter() - self._began
            self._save_state()

    def _resume(self) -> None:
        """Load the newest sound state. It holds no random state: what a step draws depends on its number."""
        state, complaints = checkpoints.load_state(self.checkpoints)
        for complaint in complaints:
            self._say(f"{complaint}; going on from an older state.")
        if state is None:
            self._say(f"nothing to resume in {self.checkpoints}: starting from the beginning.")
            return
        try:
            identity = self._known(state["identity"])
            checkpoints.check_same_run(identity, self._identity())
            self._take_over(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"the training state in {self.checkpoints} is not as this version writes it "
                f"({str(error).partition(chr(10))[0]}). {checkpoints.BEGIN_ANEW}"
            ) from error
        if self.epoch < self.recipe.epochs:
            self._say(f"resuming before {self._where()}.")
        else:
            self._say(
                f"the training in {self.run_dir} is finished, {self.epoch} epochs: nothing is left to do. "
                f"{checkpoints.TRAIN_MORE}"
            )

    def _take_over(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises ValueError or one like it, saying where, if it is none of this run."""
        own = self._state()
        groups, moments = (state["optimizer"][part] for part in ("param_groups", "state"))
        for name in ("epoch", "step", "seconds", "sums", "model", "average", "scheduler"):
            checkpoints.check_alike(state[name], own[name], name)
        checkpoints.check_alike(groups, own["optimizer"]["param_groups"], "optimizer")
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        for number, kept in moments.items():
            for name in MOMENTS[self.recipe.optimizer] if kept else ():
                value, shape = kept[name], parameters[number].shape
                if value is not None and value.shape != (() if name == "step" else shape):
                    raise ValueError(f"the optimizer's {name} of tensor {number} has the shape {value.shape}")
        first, last = (epoch * self.batches for epoch in (state["epoch"], state["epoch"] + 1))
        if not (0 <= state["epoch"] <= self.recipe.epochs and first <= state["step"] <= last):
            raise ValueError(f"it has step {state['step']} in epoch {state['epoch']}")
        keep_threads(state.get("threads"))  # sums of floats depend on how many share them
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.history = History.from_dict(state["history"])
        self.watch = self._new_watch(state["sums"])
        self.network.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        # What another version of torch did not have yet stands as this one begins.
        groups = [{**new, **old} for new, old in zip(own["optimizer"]["param_groups"], groups, strict=True)]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        known = {name: state["scheduler"].get(name, value) for name, value in own["scheduler"].items()}
        self.scheduler.load_state_dict(known)

    def _known(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved run's identity, as this version would have written it."""
        # A setting that the recipe did not have yet when the run began stood at its default.
        recipe, key = Recipe.from_dict(saved["recipe"]).to_dict(), checkpoints.WEIGHTS_SUM
        # Former versions wrote the file's path, and no sum.
        recipe["initial_weights"] = Path(recipe["initial_weights"]).name
        if saved.get(key) is None or self.initial_sum is None:  # it cannot be known any more
            self.initial_sum = self.initial_sum or saved.get(key)
        elif saved[key] == self.initial_sum:  # the same file, whatever it is called now
            recipe["initial_weights"] = Path(self.recipe.initial_weights).name
        else:
            return {**saved, "recipe": recipe}
        return {**saved, "recipe": recipe, key: self.initial_sum}

    # Small things ----------------------------------------------------------------------------------------

    @property
    def weights(self) -> SSD300:
        """The network that is evaluated and saved: the average of the weights where there is one."""
        return self.average.module if self.average else self.network

    @property
    def images(self) -> int:
        """Images of one epoch, of all processes together."""
        return min(self.batches * self.recipe.batch_size, len(self.train_data))

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _autocast(self) -> torch.autocast:
        """bf16 where it is faster (convolutions); weights, loss and optimizer stay in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _to_device(
        self, images: Tensor, targets: list[dict[str, Any]]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """A batch on the network's device: images in channels_last, boxes as fractions of the side."""
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        boxes = [target["boxes"].to(self.device, non_blocking=True) / IMAGE_SIZE for target in targets]
        labels = [target["labels"].to(self.device, non_blocking=True) for target in targets]
        return images, boxes, labels

    def _new_watch(self, sums: Iterable[float] = (0.0, 0.0, 0.0)) -> LossWatch:
        return LossWatch(every=1 if self.device.type == "cpu" else 20, sums=list(sums))

    def _rate(self, step: int) -> float:
        return self.recipe.learning_rate * learning_rate_factor(step, self.total_steps, self.recipe)

    def _where(self, step: int | None = None) -> str:
        """The place of a step in the training, in words; by default that of the next one."""
        epoch, number = divmod(self.step if step is None else step, self.batches)
        rate = self._rate(epoch * self.batches + number)
        return f"epoch {epoch + 1}, step {number + 1} of {self.batches} (learning rate {rate:.3g})"

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
            say(record.line(self.recipe.epochs), flush=True)

    def _say(self, message: str) -> None:
        if self._is_main:
            say(message, file=sys.stderr)


@cache
def _say_full_disks_once() -> None:
    """Keep TensorBoard's thread from printing a traceback of an error that it hands over to ours anyway."""
    hook = threading.excepthook

    def once(failure: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and issubclass(failure.exc_type, OSError)):
            hook(failure)

    threading.excepthook = once


def _check_data(model: SSD300, train_data: DetectionDataset, val_data: DetectionDataset | None) -> None:
    train_data.require_objects()
    for name, data in (("training", train_data), ("val", val_data)):
        if data is not None and tuple(data.class_names) != tuple(model.config.class_names):
            raise DataError(
                f"the {name} images have the classes {', '.join(data.class_names)}, but the network has "
                f"{', '.join(model.config.class_names)}; build the model with the data's class names"
            )
