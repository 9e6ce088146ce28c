"""Train one fold. A training may be stopped anywhere and ends with the same result.

The order of an epoch depends only on (seed, epoch) and on each image's hardness before it (how
wrong the network was about the image); an augmentation on (seed, epoch, image, repetition); the
learning rate on the progress through the epochs. A checkpoint adds weights, optimiser, scaler,
EMA, random states, hardness and a position (epoch, optimiser step), so that a resumed training
computes what an uninterrupted one would have.

Several processes may train one fold together (`parallel.world`). All of them have the same weights
and position; the first one writes all files, and makes all decisions that depend on time or a disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.data.dataset import PlainImages, TrainingImages, plain_loader, training_loader
from kernel_lib.engine import (
    memory_named,
    peak_memory,
    random_states,
    restore_random_states,
    seed_everything,
)
from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.models import losses, networks
from kernel_lib.notebook import RESUME_HINT, Signals, bar
from kernel_lib.parallel.world import synchronise_batch_norm
from kernel_lib.training import sampling, schedule, step
from kernel_lib.training.job import Clock, Job, Position
from kernel_lib.training.schedule import Ema
from kernel_lib.training.step import Step, shares
from kernel_lib.training.validation import HeldOut, better, selects, validate


class Training:
    """The training of one fold, from a checkpoint if there is one."""

    def __init__(
        self, job: Job, start: nn.Module, clock: Clock, signals: Signals | None = None
    ) -> None:
        """`start` is the network with its initial weights, used if there is no checkpoint.

        It and the answers of `clock` must be the same on every rank (`job.SharedClock`). A signal
        to any rank ends all of them.
        """
        self.job, self.clock, self.world = job, clock, job.world
        self.signals = signals or Signals()
        self.experiment = job.plan.experiment
        self.seed = job.plan.parameters.seed
        self.key = better(self.experiment.monitor)
        self.model = start.to(job.engine.device)
        self.optimizer = schedule.optimizer(
            networks.parameter_groups(self.model, self.experiment), self.experiment
        )
        self.scaler = torch.amp.GradScaler(job.engine.device.type, enabled=job.engine.scales)
        self.ema = Ema(self.model, self.experiment.ema_decay)
        if self.world.size > 1 and not self.experiment.freeze_batch_norm:
            synchronise_batch_norm(self.model)
        self.step = Step(job, self.model, self.optimizer, self.scaler)
        self.position = Position()
        self.slowest = 0.0  # seconds of the slowest optimiser step in this session
        self.saved_at = clock.spent()
        self.images = TrainingImages(job.prepared, self.experiment.augment, self.seed)
        # By cache row: now, and at the beginning of the present epoch.
        self.hardness = torch.full((len(job.truth),), sampling.UNSEEN)
        self.hardness_before = self.hardness.clone()
        # Dropout is the same whether the weights were drawn here or loaded.
        seed_everything(self.world.seed(self.seed), job.plan.parameters.deterministic)
        if self.world.from_first(self._has_begun):
            self._load()
        if self.world.first:
            self._settle_files()

    def run(self) -> bool:
        """Train to the end or to the limit of the clock; return whether the end was reached.

        On SIGTERM or Ctrl-C it saves, then raises SystemExit or KeyboardInterrupt.
        """
        sizes = (self.experiment.size, self.experiment.batch_size, self.experiment.accumulate)
        with self.signals.deferred(), memory_named(*sizes):
            while not self.position.ended:
                if not (self._train_epoch() and self._end_epoch()):
                    return False
        if not self.position.kept:
            raise FloatingPointError(
                f"{self.job.folder.name}: {self.experiment.monitor} was a number in no epoch from "
                f"MIN_EPOCHS {self.experiment.min_epochs} on, so nothing is kept: lower LR, or "
                "another MONITOR"
            )
        return True

    @property
    def kept_lineage(self) -> Lineage:
        """The lineage of the kept checkpoints, which labels may have selected."""
        return self._lineage(selects(self.experiment.monitor))

    @property
    def last_lineage(self) -> Lineage:
        """The lineage of the last weights; early stopping means that labels selected them."""
        stopped_early = bool(self.position.ended) and self.position.epoch < self.experiment.epochs
        return self._lineage(stopped_early)

    def _lineage(self, selected: bool) -> Lineage:
        held_out = self.job.truth["image_id"].iloc[self.job.held_rows] if selected else ()
        return self.job.lineage.chosen_by(held_out)

    def _asked_to_end(self) -> bool:
        return self.signals.come_to_any(self.world.gathered)

    def _end_if_asked(self) -> None:
        """Raise KeyboardInterrupt or SystemExit on every rank if any of them got a signal."""
        if self._asked_to_end():
            self.signals.end()

    def _save_on_signal(self) -> None:
        self._save()
        at = self.position
        print(
            f"{self.job.folder.name}: asked to end in epoch {at.epoch + 1} after step {at.step}, "
            f"all saved; {RESUME_HINT}"
        )

    def _train_epoch(self) -> bool:
        """Take the remaining steps of the epoch; False, with all saved, if stopped before."""
        at, experiment = self.position, self.experiment
        order = sampling.epoch_order(
            experiment.sampling, experiment.sampling_options, self._context(), self.seed
        )
        keys = np.stack(
            [np.full_like(order, at.epoch), order, sampling.occurrence_numbers(order)], axis=1
        )
        batches = sampling.batches(keys, experiment.batch_size)
        steps = sampling.steps(batches, experiment.accumulate)
        self.model.train()
        if experiment.freeze_batch_norm:
            for norm in networks.batch_norms(self.model):
                norm.eval()
        own_keys = shares(steps[at.step :], self.world)
        on_gpu = self.job.engine.device.type == "cuda"
        stream = iter(training_loader(self.images, own_keys, self.job.workers, on_gpu))
        with self._bar(len(steps)) as progress:
            for number, step_batches in enumerate(steps[at.step :], start=at.step):
                if self._asked_to_end():
                    self._save_on_signal()
                    return False
                if not self.clock.allows(self.slowest):
                    self._save()
                    return False
                began = time.perf_counter()
                rate = schedule.rate(experiment, at.epoch + number / len(steps))
                schedule.set_rate(self.optimizer, rate)
                self._step(stream, step_batches)
                seconds = time.perf_counter() - began
                at.step, at.seconds = number + 1, at.seconds + seconds
                self.slowest = max(self.slowest, seconds)
                progress.update()
                progress.set_postfix(loss=f"{at.loss_sum / max(at.images, 1):.4f}", refresh=False)
                if self.clock.spent() - self.saved_at > 60 * self.job.plan.parameters.save_minutes:
                    self._save()
        return True

    def _bar(self, n_steps: int):
        at, left = self.position, self.clock.left() / 3600
        title = f"{self.job.folder.name} epoch {at.epoch + 1}/{self.experiment.epochs}"
        title += f", {left:.1f} h left" if math.isfinite(left) else ""
        return bar(
            total=n_steps, initial=at.step, desc=title, unit="step", leave=False,
            disable=not self.world.first,
        )  # fmt: skip

    def _context(self) -> sampling.EpochContext:
        rows = self.job.train_rows
        return sampling.EpochContext(
            rows=rows,
            positive=self.job.truth["positive"].to_numpy()[rows] > 0,
            hardness=self.hardness_before.numpy()[rows],
            epoch=self.position.epoch,
            epochs=self.experiment.epochs,
        )

    def _step(self, stream: Iterator, step_batches: list[np.ndarray]) -> None:
        if self.step.take(stream, step_batches, self.position, self.hardness):
            self.ema.update(self.model)

    def _end_epoch(self) -> bool:
        """Validate, keep, log, save; False, with all saved, if the clock does not allow it."""
        at = self.position
        # Before the first validation: a held-out image costs at most as much as a training image.
        guess = at.seconds / max(at.images, 1) * len(self.job.held_rows)
        needed = at.history[-1]["val_seconds"] if at.history else guess
        if not self.clock.allows(needed):
            self._save()  # before `allows_uninterrupted`, which may raise
            return self.clock.allows_uninterrupted(needed, "scoring the held-out images")
        began = time.perf_counter()
        try:
            scores = self._validate()
        except (KeyboardInterrupt, SystemExit):
            self._save_on_signal()  # validation changes nothing
            raise
        line = {
            "epoch": at.epoch + 1,
            "lr": schedule.rate(self.experiment, at.epoch),  # at the beginning of the epoch
            "train_loss": at.loss_sum / max(at.images, 1),
            **scores,
            "seconds": at.seconds,
            "val_seconds": time.perf_counter() - began,
            "images_per_second": at.images / max(at.seconds, 1e-9),
            "skipped_steps": at.skipped,
            **peak_memory(self.job.engine.device),
            "best": False,
        }
        line["best"] = self._keep(line)
        at.kept, dropped = at.kept[: self.experiment.keep], at.kept[self.experiment.keep :]
        at.history.append(line)
        at.epoch, at.step, at.loss_sum, at.images, at.seconds = at.epoch + 1, 0, 0.0, 0, 0.0
        at.skipped = 0
        self.hardness_before = self.hardness.clone()
        at.ended = self._why_ended()
        if at.ended:
            line["ended"] = at.ended  # read by later stages, which have no torch
        self._save()
        if self.world.first:
            for old in dropped:  # once no checkpoint names them
                self.job.folder.best(old["epoch"]).unlink(missing_ok=True)
        return True

    def _validate(self) -> dict[str, float]:
        job, on_gpu = self.job, self.job.engine.device.type == "cuda"
        batch_size = 2 * self.experiment.batch_size
        images = PlainImages(job.prepared, self.world.batches(job.held_rows, batch_size))
        loader = plain_loader(images, batch_size, job.workers, on_gpu)
        # Several ranks must not end one by one: they end together, between two batches.
        with self.signals.at_once() if self.world.size == 1 else nullcontext():
            return validate(
                self.ema.model,
                HeldOut(loader, job.prepared.mask, job.truth),
                losses.build(self.experiment),
                tta.views("none"),
                job.engine,
                self.world,
                self._end_if_asked,
            )

    def _keep(self, line: dict) -> bool:
        """Save the averaged weights if this epoch is among the best `keep`; return whether it is.

        Epochs before `min_epochs` do not count, since early, lucky epochs would win.
        """
        at, epoch, value = self.position, line["epoch"], line[self.experiment.monitor]
        if epoch < self.experiment.min_epochs or not math.isfinite(value):
            return False
        at.kept.append({"epoch": epoch, "value": value})
        at.kept.sort(key=lambda k: (-self.key(k["value"]), k["epoch"]))
        if all(k["epoch"] != epoch for k in at.kept[: self.experiment.keep]):
            return False
        state = {"model": self.ema.model.state_dict(), **line}
        path, lineage = self.job.folder.best(epoch), self.kept_lineage
        self.world.from_first(lambda: checkpoints.save(path, state, lineage))
        return True

    def _why_ended(self) -> str:
        at, patience = self.position, self.experiment.patience
        if at.epoch >= self.experiment.epochs:
            return f"all {self.experiment.epochs} epochs"
        if at.kept and at.epoch - at.kept[0]["epoch"] >= patience:
            return f"no better {self.experiment.monitor} for {patience} epochs"
        return ""

    def _save(self) -> None:
        """Write last.pt, then the log.

        Every rank waits until the first has written: if one leaves, the launcher ends all of them.
        """
        at = self.position
        step.check_weights(self.model, f"in epoch {at.epoch + 1} after step {at.step}")
        random = self.world.gathered(random_states())  # also waits for every rank
        self.saved_at = self.clock.spent()
        self.world.from_first(lambda: self._write(random))

    def _write(self, random: list[dict]) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict(),
            "hardness": {"now": self.hardness, "before": self.hardness_before},
            "random": random,  # by rank
            "position": asdict(self.position),
            "threads": torch.get_num_threads(),
        }
        checkpoints.save(self.job.folder.last, state, self.last_lineage)
        self.job.folder.write_log(self.position.history)

    def _keep_threads(self, before: int) -> None:
        """Use the same number of threads as before: on a CPU another number changes the result."""
        threads = self.job.plan.parameters.threads
        if self.job.engine.device.type != "cpu" or before == torch.get_num_threads():
            return
        if threads is None:
            torch.set_num_threads(before)
        else:
            print(f"note: THREADS {threads}, before {before}: the last digits will differ")

    def _has_begun(self) -> bool:
        """Return whether there is a checkpoint; InputError if there was one."""
        folder = self.job.folder
        later = (folder.log, folder.oof, folder.oof_last)  # written after it
        if not folder.last.exists() and any(path.exists() for path in later):
            raise _gone(folder.last, folder)
        return folder.last.exists()

    def _load(self) -> None:
        path = self.job.folder.last
        state, _ = checkpoints.load(path)
        try:
            self._restore(state)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} holds no training that this version of the package can go on with "
                f"({type(error).__name__}: {error}): finish it with the version that began it, or "
                f"delete {path.parent} and train again"
            ) from error

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty if the training has used none so far
            self.scaler.load_state_dict(state["scaler"])
        self.ema.load_state_dict(state["ema"])
        self.hardness, self.hardness_before = (state["hardness"][k] for k in ("now", "before"))
        self.position = Position(**state["position"])
        self._restore_random(state["random"])
        if len(state["random"]) == self.world.size:  # else the last digits differ anyway
            self._keep_threads(state["threads"])
        for kept in self.position.kept:
            if not (path := self.job.folder.best(kept["epoch"])).exists():
                raise _gone(path, self.job.folder)

    def _restore_random(self, states: list[dict]) -> None:
        """Restore the random states of each rank; a rank without one is seeded."""
        at, world = self.position, self.world
        if world.rank < len(states):
            restore_random_states(states[world.rank])
        else:
            seed = world.seed(self.seed, at.epoch, at.step)
            seed_everything(seed, self.job.plan.parameters.deterministic)
        if world.size != len(states):
            print(
                f"note: {self.job.folder.name} goes on in {world.size} processes, before "
                f"{len(states)}: the batches are the same, dropout and the last digits are not"
            )

    def _settle_files(self) -> None:
        """Remove or rewrite files that do not agree with last.pt, as a kill may leave them."""
        folder = self.job.folder
        kept = {folder.best(k["epoch"]) for k in self.position.kept}
        for stray in set(folder.kept()) - kept:  # of an epoch that will be repeated
            stray.unlink()
        if folder.last.exists():
            if not folder.log.exists():
                print(f"note: {folder.log} was missing: it is written again from last.pt")
            folder.write_log(self.position.history)


def _gone(path: Path, folder: FoldRun) -> InputError:
    return InputError(
        f"{path} is gone, and the other files of this fold depend on it: restore it, or delete "
        f"{folder.path} and train this fold again"
    )
