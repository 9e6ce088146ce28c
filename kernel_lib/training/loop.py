"""The training of one fold: it can be stopped anywhere and ends the same.

An epoch's order is a function of (seed, epoch) and of how hard each image was before it, an image's
augmentation of (seed, epoch, image), the learning rate of the epochs done. So a checkpoint holds
weights, optimiser, scaler, EMA, random states, hardness and a position (epoch, optimiser step), and
a run that goes on from it computes what an unbroken one would have.

Several processes may train one fold together (`distributed`). All of them hold the same weights and
the same position; the first alone writes, and what time or a disk decides it decides for all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kernel_lib import checkpoints, storage
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
from kernel_lib.models import losses, networks, sync_norm
from kernel_lib.notebook import GOES_ON
from kernel_lib.progress import bar
from kernel_lib.signals import Signals
from kernel_lib.training import nan_guard, sampling, schedule
from kernel_lib.training.clock import Clock
from kernel_lib.training.ema import Ema
from kernel_lib.training.job import Job, Position
from kernel_lib.training.step import Step, shares
from kernel_lib.training.validation import better, selects, validate


class Training:
    """One fold's training, from wherever it stands."""

    def __init__(
        self, job: Job, start: nn.Module, clock: Clock, signals: Signals | None = None
    ) -> None:
        """`start` is the network with its starting weights, used only where no checkpoint is.

        It, and what the clock says, must be the same on every rank (`clock.SharedClock`);
        signals are each rank's own, and one that is told to end ends all.
        """
        self.job, self.clock, self.world = job, clock, job.world
        self.signals = signals or Signals()
        self.experiment = job.plan.experiment
        self.seed = job.plan.parameters.seed
        self.key = better(self.experiment.monitor)
        self.views = tta.views("none")
        self.model = start.to(job.engine.device)
        self.optimizer = schedule.optimizer(
            networks.parameter_groups(self.model, self.experiment), self.experiment
        )
        self.scaler = torch.amp.GradScaler(job.engine.device.type, enabled=job.engine.scales)
        self.ema = Ema(self.model, self.experiment.ema_decay)
        if self.world.size > 1 and not self.experiment.freeze_batch_norm:
            sync_norm.synchronise(self.model)
        self.step = Step(job, self.model, self.optimizer, self.scaler)
        self.position = Position()
        self.slowest = 0.0  # seconds of the slowest optimiser step in this session
        self.saved_at = clock.spent()
        self.images = TrainingImages(job.prepared, self.experiment.augment, self.seed)
        # By cache row: as it is now, and as it was when the present epoch began.
        self.hardness = torch.full((len(job.truth),), sampling.UNSEEN)
        self.hardness_before = self.hardness.clone()
        # The same dropout whether the weights were drawn here or loaded.
        seed_everything(self.world.seed(self.seed), job.plan.parameters.deterministic)
        if self.world.agreed(self._begun):
            self._load()
        if self.world.first:
            self._settle_files()

    def run(self) -> bool:
        """Train to the end, or to the clock's limit; whether the end was reached.

        Once a signal asks it to end it saves, and raises what the signal raises.
        """
        row = self.experiment
        with (
            self.signals.deferred(),
            memory_named(row.size, row.batch_size, row.accumulate),
        ):
            while not self.position.ended:
                if not (self._train_epoch() and self._end_epoch()):
                    return False
        if not self.position.kept:
            raise FloatingPointError(
                f"{self.job.folder.name}: {row.monitor} was a number in no epoch from MIN_EPOCHS "
                f"{row.min_epochs} on, so nothing is kept: lower LR, or another MONITOR"
            )
        return True

    @property
    def kept_lineage(self) -> Lineage:
        """The lineage of the kept checkpoints, which labels may have selected."""
        return self._lineage(selects(self.experiment.monitor))

    @property
    def last_lineage(self) -> Lineage:
        """The lineage of the last weights, which labels chose where they ended the training."""
        stopped_early = bool(self.position.ended) and self.position.epoch < self.experiment.epochs
        return self._lineage(stopped_early)

    def _lineage(self, chosen: bool) -> Lineage:
        held = self.job.truth["image_id"].iloc[self.job.held_rows] if chosen else ()
        return self.job.lineage.chosen_by(held)

    def _asked_to_end(self) -> bool:
        return self.signals.come_to_any(self.world.gathered)

    def _end_if_asked(self) -> None:
        """Raise, on every rank, what a signal to any of them raises."""
        if self._asked_to_end():
            self.signals.end()

    def _save_and_say(self) -> None:
        self._save()
        at = self.position
        print(
            f"{self.job.folder.name}: asked to end in epoch {at.epoch + 1} after step {at.step}, "
            f"all saved; {GOES_ON}"
        )

    def _train_epoch(self) -> bool:
        """The present epoch's remaining steps; False where the clock stopped it, all saved."""
        at, row, device = self.position, self.experiment, self.job.engine
        order = sampling.epoch_order(row.sampling, row.sampling_options, self._shown(), self.seed)
        keys = np.stack([np.full_like(order, at.epoch), order, sampling.turns(order)], axis=1)
        steps = sampling.groups(sampling.batches(keys, row.batch_size), row.accumulate)
        self.model.train()
        if row.freeze_batch_norm:
            for norm in networks.batch_norms(self.model):
                norm.eval()
        mine = shares(steps[at.step :], self.world)
        stream = iter(
            training_loader(self.images, mine, self.job.workers, device.device.type == "cuda")
        )
        left = self.clock.left() / 3600
        title = f"{self.job.folder.name} epoch {at.epoch + 1}/{row.epochs}"
        title += f", {left:.1f} h left" if math.isfinite(left) else ""
        with bar(
            total=len(steps), initial=at.step, desc=title, unit="step", leave=False,
            disable=not self.world.first,
        ) as shown:  # fmt: skip
            for number, step in enumerate(steps[at.step :], start=at.step):
                if self._asked_to_end():
                    self._save_and_say()
                    return False
                if not self.clock.allows(self.slowest):
                    self._save()
                    return False
                began = time.perf_counter()
                schedule.set_rate(
                    self.optimizer, schedule.rate(row, at.epoch + number / len(steps))
                )
                self._step(stream, step)
                took = time.perf_counter() - began
                at.step, at.seconds = number + 1, at.seconds + took
                self.slowest = max(self.slowest, took)
                shown.update()
                shown.set_postfix(loss=f"{at.loss_sum / max(at.images, 1):.4f}", refresh=False)
                if self.clock.spent() - self.saved_at > 60 * self.job.plan.parameters.save_minutes:
                    self._save()
        return True

    def _shown(self) -> sampling.EpochContext:
        rows = self.job.train_rows
        return sampling.EpochContext(
            rows=rows,
            positive=self.job.truth["positive"].to_numpy()[rows] > 0,
            hardness=self.hardness_before.numpy()[rows],
            epoch=self.position.epoch,
            epochs=self.experiment.epochs,
        )

    def _step(self, stream: Iterator, step: list[np.ndarray]) -> None:
        """One optimiser step over a group of batches, and what follows from new weights."""
        if self.step.take(stream, step, self.position, self.hardness):
            self.ema.update(self.model)

    def _end_epoch(self) -> bool:
        """Validate, keep, log, save; False where the clock does not allow it, all saved."""
        at = self.position
        # Before the first: a held-out image costs at most what a training image does.
        guess = at.seconds / max(at.images, 1) * len(self.job.held_rows)
        needed = at.history[-1]["val_seconds"] if at.history else guess
        if not self.clock.allows(needed):
            self._save()  # before the question whether it can ever fit, which may end this
            return self.clock.allows_whole(needed, "scoring the held-out images")
        began = time.perf_counter()
        try:
            scores = self._validate()
        except (KeyboardInterrupt, SystemExit):
            self._save_and_say()  # which validation has not changed
            raise
        line = {
            "epoch": at.epoch + 1,
            "lr": schedule.rate(self.experiment, at.epoch),  # at the epoch's start
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
            line["ended"] = at.ended  # by which later stages, without torch, tell it is over
        self._save()
        if self.world.first:
            for old in dropped:  # only once no checkpoint speaks of them
                self.job.folder.best(old["epoch"]).unlink(missing_ok=True)
        return True

    def _validate(self) -> dict[str, float]:
        job, on_gpu = self.job, self.job.engine.device.type == "cuda"
        batch_size = 2 * self.experiment.batch_size
        held = PlainImages(job.prepared, self.world.batches(job.held_rows, batch_size))
        # Of several ranks one alone must not leave: they end together, between two batches.
        with self.signals.at_once() if self.world.size == 1 else nullcontext():
            return validate(
                self.ema.model,
                plain_loader(held, batch_size, job.workers, on_gpu),
                job.prepared.mask,
                job.truth,
                losses.build(self.experiment),
                self.views,
                job.engine,
                self.world,
                self._end_if_asked,
            )

    def _keep(self, line: dict) -> bool:
        """Save the averaged weights where this epoch is among the best `keep` of those that count.

        Nothing counts before `min_epochs`: the notes' author saw early, lucky epochs win.
        """
        at, epoch = self.position, line["epoch"]
        if epoch < self.experiment.min_epochs or not math.isfinite(line[self.experiment.monitor]):
            return False
        at.kept.append({"epoch": epoch, "value": line[self.experiment.monitor]})
        at.kept.sort(key=lambda k: (-self.key(k["value"]), k["epoch"]))
        if all(k["epoch"] != epoch for k in at.kept[: self.experiment.keep]):
            return False
        state = {"model": self.ema.model.state_dict(), **line}
        path, lineage = self.job.folder.best(epoch), self.kept_lineage
        self.world.agreed(lambda: checkpoints.save(path, state, lineage))
        return True

    def _why_ended(self) -> str:
        at = self.position
        if at.epoch >= self.experiment.epochs:
            return f"all {self.experiment.epochs} epochs"
        if at.kept and at.epoch - at.kept[0]["epoch"] >= self.experiment.patience:
            return f"no better {self.experiment.monitor} for {self.experiment.patience} epochs"
        return ""

    def _save(self) -> None:
        """Write last.pt, then the log that it implies.

        No rank goes on before the first has written: where one leaves, the launcher ends all.
        """
        at = self.position
        nan_guard.check_weights(self.model, f"in epoch {at.epoch + 1} after step {at.step}")
        random = self.world.gathered(random_states())  # also: every rank has come this far
        self.saved_at = self.clock.spent()
        self.world.agreed(lambda: self._write(random))

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
        write_log(self.job.folder, self.position.history)

    def _same_threads(self, before: int) -> None:
        """Go on with as many threads as before: on a CPU another number is another result."""
        given = self.job.plan.parameters.threads
        if self.job.engine.device.type != "cpu" or before == torch.get_num_threads():
            return
        if given is None:
            torch.set_num_threads(before)
        else:
            print(f"note: THREADS {given}, before {before}: the last digits will differ")

    def _begun(self) -> bool:
        """Whether there is a checkpoint to go on from; InputError where there was one."""
        folder = self.job.folder
        later = (folder.log, folder.oof, folder.oof_last)  # written after it
        if not folder.last.exists() and any(path.exists() for path in later):
            raise _gone(folder.last, folder)
        return folder.last.exists()

    def _load(self) -> None:
        path = self.job.folder.last
        state, _ = checkpoints.load(path)
        try:
            self._take(state)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} holds no training that this version of the package can go on with "
                f"({type(error).__name__}: {error}): finish it with the version that began it, or "
                f"delete {path.parent} and train again"
            ) from error

    def _take(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run so far needed none
            self.scaler.load_state_dict(state["scaler"])
        self.ema.load_state_dict(state["ema"])
        self.hardness, self.hardness_before = (state["hardness"][k] for k in ("now", "before"))
        self.position = Position(**state["position"])
        self._restore_random(state["random"])
        if len(state["random"]) == self.world.size:  # else the last digits differ anyway
            self._same_threads(state["threads"])
        for kept in self.position.kept:
            if not (path := self.job.folder.best(kept["epoch"])).exists():
                raise _gone(path, self.job.folder)

    def _restore_random(self, states: list[dict]) -> None:
        """Each rank goes on with its own random states; one that was not there draws anew."""
        at, world = self.position, self.world
        if world.rank < len(states):
            restore_random_states(states[world.rank])
        else:
            fresh = world.seed(self.seed, at.epoch, at.step)
            seed_everything(fresh, self.job.plan.parameters.deterministic)
        if world.size != len(states):
            print(
                f"note: {self.job.folder.name} goes on in {world.size} processes, before "
                f"{len(states)}: the batches are the same, dropout and the last digits are not"
            )

    def _settle_files(self) -> None:
        """What lies beside last.pt says no more than it does: after a kill there may be more."""
        kept = {self.job.folder.best(k["epoch"]) for k in self.position.kept}
        for stray in set(self.job.folder.kept()) - kept:  # of an epoch that will come again
            stray.unlink()
        if self.job.folder.last.exists():
            if not self.job.folder.log.exists():
                print(f"note: {self.job.folder.log} was missing: it is written again from last.pt")
            write_log(self.job.folder, self.position.history)


def _gone(path: Path, folder: FoldRun) -> InputError:
    return InputError(
        f"{path} is gone, and what lies beside it goes on from it: restore it, or delete "
        f"{folder.path} and train this fold again"
    )


def write_log(folder: FoldRun, history: Iterable[dict]) -> None:
    """log.jsonl from the checkpoint's own history, so that the two never disagree."""
    storage.write_text(folder.log, "".join(json.dumps(line) + "\n" for line in history))
