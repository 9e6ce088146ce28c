"""Several processes on one fold: each its share, together what one process would have done."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kernel_lib import checkpoints
from kernel_lib.artifacts import fold_run
from kernel_lib.artifacts.maps import Maps
from kernel_lib.config import Experiment
from kernel_lib.errors import InputError
from kernel_lib.models import losses
from kernel_lib.models.base import Logits
from kernel_lib.parallel.world import (
    SINGLE_PROCESS,
    World,
    joined,
    own_device,
    synchronise_batch_norm,
)
from kernel_lib.training.job import Clock, SharedClock
from kernel_lib.training.loop import Training
from tests.training import test_loop
from tests.training.test_loop import (
    StepsClock,
    assert_same,
    assert_same_end,
    tiny,
    without_times,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Without processes


@given(st.integers(0, 40), st.integers(1, 6))
def test_shares_hold_everything_once_and_differ_by_one_at_most(count, size):
    shares = [range(count)[World(rank, size).share(count)] for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 4))
def test_batches_in_turns_are_those_of_one_process(count, batch_size, size):
    rows = np.arange(count) * 3
    mine = [World(rank, size).batches(rows, batch_size) for rank in range(size)]
    cut = [[m[i : i + batch_size] for i in range(0, len(m), batch_size)] for m in mine]
    turns = max(map(len, cut))
    turned = [cut[r][t].tolist() for t in range(turns) for r in range(size) if t < len(cut[r])]
    assert turned == [rows[i : i + batch_size].tolist() for i in range(0, count, batch_size)]


def test_each_rank_has_a_seed_of_its_own_and_the_first_the_one_given():
    seeds = [World(rank, 3).seed(7) for rank in range(3)]
    assert seeds[0] == 7
    drawn_later = World(1, 3).seed(7, 2, 0)
    assert len({*seeds, drawn_later}) == 4
    assert World(1, 3).seed(7) == seeds[1]


def test_one_numbered_card_is_refused_to_several_processes(monkeypatch):
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [own_device(d) for d in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    with pytest.raises(InputError, match="DEVICE 'cuda:0' is one GPU for 2 processes"):
        own_device("cuda:0")
    monkeypatch.delenv("RANK")
    assert own_device("cuda:0") == "cuda:0"


def spread(experiment: Experiment, output: Logits, masks, labels, cuts: list[int]) -> list:
    """The loss's parts of a batch cut in pieces, each computed in a thread of its own."""
    edges = [0, *cuts, len(labels)]
    size = len(edges) - 1
    barrier, given, parts = threading.Barrier(size, timeout=20), [None] * size, [None] * size

    def piece(rank: int) -> None:
        def total(counts: torch.Tensor) -> torch.Tensor:
            given[rank] = counts.detach()
            barrier.wait()
            over_all = sum(given)
            barrier.wait()
            return over_all

        mine = slice(edges[rank], edges[rank + 1])
        shown = Logits(output.mask[mine], output.label[mine], tuple(s[mine] for s in output.sides))
        parts[rank] = losses.build(experiment, total)(shown, masks[mine], labels[mine])

    threads = [threading.Thread(target=piece, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return parts


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(list(losses.LOSSES)), min_size=1, max_size=2, unique=True),
    st.sampled_from(["all", "nonempty"]),
    st.lists(st.booleans(), min_size=1, max_size=6),
    st.data(),
)
def test_the_parts_of_a_spread_batch_sum_to_its_loss_and_gradient(names, images, has, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(has)), min_size=1, max_size=2)))
    experiment = tiny(
        loss=dict.fromkeys(names, 1.5), mask_loss_images=images, label_weight=0.3, side_weight=0.2
    )
    generator = torch.Generator().manual_seed(len(has))
    labels = torch.tensor(has, dtype=torch.float32)
    masks = (torch.rand(len(has), 1, 4, 4, generator=generator) < 0.3) * labels.view(-1, 1, 1, 1)
    leaves = [torch.randn(len(has), 1, 4, 4, generator=generator) for _ in range(2)]
    leaves.append(torch.randn(len(has), generator=generator))
    for leaf in leaves:
        leaf.requires_grad_()
    output = Logits(leaves[0], leaves[2], (leaves[1],))
    reference = losses.build(experiment)(output, masks, labels)
    parts = sum(spread(experiment, output, masks, labels, cuts))
    torch.testing.assert_close(parts, reference, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(reference, leaves, retain_graph=True)
    for gradient, wanted in zip(torch.autograd.grad(parts, leaves), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_a_batch_norm_that_does_more_than_normalise_is_refused():
    class Acting(nn.BatchNorm2d):
        pass

    with pytest.raises(InputError, match="Acting cannot be synchronised over several processes"):
        synchronise_batch_norm(nn.Sequential(Acting(3)))


# With processes: started once, then asked


class Ranks:
    """Processes of one world, each of which runs the functions that it is sent."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            given = (rank, size, port, theirs, device)
            self.processes.append(context.Process(target=_serve, args=given, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(mine)

    def __call__(self, work: Callable, *arguments: Any) -> list:
        """What each rank returns from work(world, *arguments)."""
        for pipe in self.pipes:
            pipe.send((work, arguments))
        answers = [pipe.recv() for pipe in self.pipes]
        faults = [fault for fault, _ in answers if fault]
        assert not faults, "\n".join(faults)
        return [result for _, result in answers]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(20)
            process.kill()


def _serve(rank: int, size: int, port: int, pipe, device: str) -> None:
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device(device)) as world:
        while (asked := pipe.recv()) is not None:
            work, arguments = asked
            try:
                pipe.send(("", work(world, *arguments)))
            except BaseException:
                pipe.send((traceback.format_exc(), None))


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


class Net(nn.Module):
    """Two batch norms and every head, in float64; the losses are float32 all the same."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.rest = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout)
        )
        self.mask, self.side = nn.Conv2d(6, 1, 1), nn.Conv2d(6, 1, 1)
        self.label = nn.Linear(6, 1)

    def forward(self, levels: torch.Tensor) -> Logits:
        early = self.encoder(levels.double() / 255)
        late = self.rest(early)
        label = self.label(late.mean(dim=(2, 3)))[:, 0]
        sides = (self.side(early),) if self.training else ()
        return Logits(self.mask(late), label, sides)


HEADS = {"label_weight": 0.5, "side_weight": 0.2}


def training(
    world: World, folder: Path, experiment: Experiment, clock: Clock | None = None,
    dropout: float = 0.0, held_from: int = 7,
) -> Training:  # fmt: skip
    return test_loop.training(
        folder, experiment, SharedClock(world, clock or Clock(None)), world=world,
        network=lambda: Net(dropout).double(), held_from=held_from,
    )  # fmt: skip


def gradients(world: World, folder: Path, experiment: Experiment) -> dict:
    """The gradient of each step of an epoch, the loss's sum, and the running statistics after."""
    trainer = training(world, folder, experiment)
    steps, real = [], trainer.optimizer.step
    trainer.optimizer.step = lambda *a: (
        steps.append({n: p.grad.clone() for n, p in trainer.model.named_parameters()}), real(*a)
    )  # fmt: skip
    trainer._train_epoch()
    return {
        "steps": steps,
        "loss": trainer.position.loss_sum,
        "images": trainer.position.images,
        "state": {k: v.clone() for k, v in trainer.model.state_dict().items()},
        "hardness": trainer.hardness.clone(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "accumulate"), [(1, 3), (2, 2), (4, 2), (5, 1)]
)  # of 7 images; of a batch of one the second rank has none
@pytest.mark.parametrize(
    "learns",
    [
        {"loss": {"bce": 1.0, "dice": 1.0, "lovasz": 0.5}},
        {"loss": {"weighted_bce": 1.0, "focal": 1.0}, "mask_loss_images": "nonempty"},
    ],
)
def test_a_step_s_gradient_is_that_of_one_process(
    two, tmp_path, frozen, batch_size, accumulate, learns
):
    experiment = tiny(
        **learns, **HEADS, batch_size=batch_size, accumulate=accumulate, freeze_batch_norm=frozen,
        optimizer="sgd", momentum=0.0, weight_decay=0.0, sampling="hard",
    )  # fmt: skip
    results = two(gradients, tmp_path / "ranks", experiment)
    reference = gradients(SINGLE_PROCESS, tmp_path / "alone", experiment)
    for rank in results:
        assert len(rank["steps"]) == len(reference["steps"])
        for mine, theirs in zip(rank["steps"], reference["steps"], strict=True):
            # Against the largest gradient, which is what a step goes by.
            largest = max(float(g.abs().max()) for g in theirs.values())
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6 * largest)
        assert rank["loss"] == pytest.approx(reference["loss"], rel=1e-6)
        assert rank["images"] == 7
        torch.testing.assert_close(rank["state"], reference["state"], rtol=1e-5, atol=1e-6)
        assert torch.equal(rank["hardness"], reference["hardness"])
        assert_same(rank["state"], results[0]["state"])


def normalised(world: World, x: torch.Tensor, grad: torch.Tensor, affine: bool) -> dict:
    """One training step's worth of a batch norm on this rank's share, twice."""
    norm = nn.BatchNorm2d(x.shape[1], affine=affine, dtype=x.dtype)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, x.shape[1]))
            norm.bias.copy_(torch.linspace(-1, 1, x.shape[1]))
    norm.to(x.device)
    if world.size > 1:
        synchronise_batch_norm(norm)
    mine = world.share(len(x))
    for _ in range(2):
        norm.zero_grad()
        part = x[mine].clone().requires_grad_()
        y = norm(part)
        y.backward(grad[mine])
    norm.eval()
    return {
        "y": y.detach(), "x": part.grad, "parameters": [p.grad for p in norm.parameters()],
        "state": norm.state_dict(), "evaluated": norm(x[mine]).detach(),
    }  # fmt: skip


def assert_joined(parts: list[dict], reference: dict, keys: tuple[str, ...], **tolerance) -> None:
    """Assert that the ranks' images, and the sums of their gradients, are those of the batch."""
    for key in keys:
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), reference[key], **tolerance)
    for i, expected in enumerate(reference["parameters"]):
        torch.testing.assert_close(sum(p["parameters"][i] for p in parts), expected, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("count", "mean"), [(7, 0.0), (1, 3.0), (5, 1000.0)])
def test_synchronised_batch_norm_is_that_of_the_whole_batch(two, affine, count, mean):
    """In float64, where Σx² − (Σx)²/N would lose six digits to a mean of 1000; one has no image."""
    generator = torch.Generator().manual_seed(count)
    x, grad = (torch.randn(count, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in "ab")
    x = x * torch.tensor([0.1, 1.0, 10.0, 1.0]).view(1, 4, 1, 1) + mean
    reference = normalised(SINGLE_PROCESS, x, grad, affine)
    parts = two(normalised, x, grad, affine)
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * max(1.0, 10 * mean)}
    assert_joined(parts, reference, ("y", "x", "evaluated"), **tolerance)
    for part in parts:
        torch.testing.assert_close(part["state"], reference["state"], rtol=1e-12, atol=1e-12)
        assert_same(part["state"], parts[0]["state"])


def half_precision(world: World, x: torch.Tensor) -> tuple[torch.dtype, torch.Tensor]:
    norm = nn.BatchNorm2d(x.shape[1])
    synchronise_batch_norm(norm)
    part = x[world.share(len(x))].clone().requires_grad_()
    y = norm(part)
    y.float().square().sum().backward()
    return (y.dtype, part.grad.dtype), y.detach()


@pytest.mark.slow
def test_synchronised_batch_norm_counts_in_float32_whatever_comes_in(two):
    x = (torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 200).bfloat16()
    (kinds, first), (_, second) = two(half_precision, x)
    assert kinds == (torch.bfloat16, torch.bfloat16)
    expected = nn.BatchNorm2d(2)(x.float()).bfloat16()
    torch.testing.assert_close(torch.cat([first, second]), expected, rtol=1e-2, atol=1e-2)


def trained(
    world: World, folder: Path, experiment: Experiment, stop_after: int | None, dropout: float,
    held_from: int = 7,
) -> tuple[bool, list[dict]]:  # fmt: skip
    clock = None if stop_after is None else StepsClock(stop_after)
    trainer = training(world, folder, experiment, clock, dropout, held_from)
    return trainer.run(), trainer.position.history


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["all", "hard"])
def test_two_processes_end_with_the_scores_of_one(two, tmp_path, sampling):
    experiment = tiny(**HEADS, sampling=sampling, batch_size=3, optimizer="sgd", momentum=0.0)
    ((done, history), (_, other)) = two(trained, tmp_path / "two", experiment, None, 0.0)
    assert done
    assert other == [
        line | {t: o[t] for t in TIMED} for line, o in zip(history, other, strict=True)
    ]
    trained(SINGLE_PROCESS, tmp_path / "one", experiment, None, 0.0)
    single, both = without_times(tmp_path / "one"), without_times(tmp_path / "two")
    assert len(single) == len(both) == 4
    for mine, theirs in zip(both, single, strict=True):
        assert mine.pop("ended", None) == theirs.pop("ended", None)
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    names = sorted(p.name for p in (tmp_path / "one/runs/tiny_seed7/fold0").iterdir())
    assert sorted(p.name for p in (tmp_path / "two/runs/tiny_seed7/fold0").iterdir()) == names


TIMED = ("seconds", "val_seconds", "images_per_second", "memory_mb")


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 2, 4, 7])
def test_two_processes_stopped_and_resumed_end_with_the_same_bits(two, tmp_path, stop_after):
    experiment = tiny(**HEADS, sampling="hard")
    assert all(done for done, _ in two(trained, tmp_path / "whole", experiment, None, 0.3))
    stopped = two(trained, tmp_path / "parts", experiment, stop_after, 0.3)
    assert not any(done for done, _ in stopped)
    assert all(done for done, _ in two(trained, tmp_path / "parts", experiment, None, 0.3))
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def asked_while_scoring(world: World, folder: Path, experiment: Experiment) -> dict:
    """Train until the second rank is asked to end by the first held-out image that it scores."""
    trainer = training(world, folder, experiment, dropout=0.3, held_from=4)
    score, mask_of, scored = trainer._validate, trainer.job.prepared.mask, []

    def mask(row: int) -> np.ndarray:
        scored.append(row)
        if world.rank == 1:
            trainer.signals.pending = signal.SIGTERM
        return mask_of(row)

    def validate() -> dict[str, float]:
        trainer.job.prepared.mask = mask
        return score()

    trainer._validate = validate
    try:
        trainer.run()
    except SystemExit as error:
        return {"status": error.code, "step": trainer.position.step, "scored": len(scored)}
    raise AssertionError("it was not ended")


@pytest.mark.slow
def test_two_processes_asked_to_end_while_they_score_save_first(two, tmp_path):
    experiment = tiny(**HEADS, batch_size=1)
    two(trained, tmp_path / "whole", experiment, None, 0.3, 4)
    ended = two(asked_while_scoring, tmp_path / "parts", experiment)
    assert [rank["status"] for rank in ended] == [128 + signal.SIGTERM] * 2
    assert [rank["scored"] for rank in ended] == [2, 2], "one batch each, and not all of them"
    state, _ = checkpoints.load(fold_run.fold_folder(tmp_path / "parts", "tiny_seed7", 0).last)
    assert state["position"]["step"] == ended[0]["step"] > 0
    two(trained, tmp_path / "parts", experiment, None, 0.3, 4)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_it_goes_on_with_another_number_of_processes_and_says_so(two, tmp_path, capsys):
    experiment = tiny(**HEADS)
    two(trained, tmp_path, experiment, 3, 0.3)
    state, _ = checkpoints.load(fold_run.fold_folder(tmp_path, "tiny_seed7", 0).last)
    assert len(state["random"]) == 2
    assert not torch.equal(state["random"][0]["torch"], state["random"][1]["torch"])
    torch.set_num_threads(2)
    assert not trained(SINGLE_PROCESS, tmp_path, experiment, 3, 0.3)[0]
    assert torch.get_num_threads() == 2, "each of the two had but one"
    assert "goes on in 1 processes, before 2: the batches" in capsys.readouterr().out
    assert all(done for done, _ in two(trained, tmp_path, experiment, None, 0.3))
    assert [line["epoch"] for line in without_times(tmp_path)] == [1, 2, 3, 4]


def talks(world: World) -> dict:
    def refuse() -> None:
        raise InputError("no such thing")

    messages = []
    for question in (world.from_first, world.after_first):
        try:
            question(refuse)
        except InputError as error:
            messages.append(str(error))
    too_long = SharedClock(world, Clock(0.001 if world.first else None))
    try:
        too_long.allows_uninterrupted(3600, "this")
    except InputError as error:
        messages.append(str(error).split(",")[0])
    own = [f"{world.rank}.{i}" for i in range(3 - world.rank)]
    return {
        "messages": messages,
        "from_first": world.from_first(lambda: world.rank),
        "after": world.after_first(lambda: world.rank),
        "turns": list(world.in_turns(own, len(own))),
        "total": world.total(torch.tensor([1, world.rank])).tolist(),
    }


@pytest.mark.slow
def test_the_first_decides_and_its_errors_are_everybodys(two):
    results = two(talks)
    messages = [*["no such thing"] * 2, "MAX_HOURS 0.001 is too short for this"]
    assert [rank["messages"] for rank in results] == [messages] * 2
    assert [rank["from_first"] for rank in results] == [0, 0]
    assert [rank["after"] for rank in results] == [0, 1]
    assert [rank["turns"] for rank in results] == [["0.0", "1.0", "0.1", "1.1", "0.2"], []]
    assert [rank["total"] for rank in results] == [[2, 1]] * 2


# By torch's launcher


def settings_file(place: Path, work: str, **changes: Any) -> Path:
    """Write the parameters of a small training in its own working folder; their file."""
    values = {
        "EXPERIMENT": "demo_UNetResNet10_128_v1", "SIZE": 64, "EPOCHS": 2, "N_FOLDS": 2, "FOLD": 0,
        "DATA_DIR": str(place / "data"), "WORK_DIR": str(place / work), "DEVICE": "cpu",
        "CACHE_DIR": str(place / "cache"), "THREADS": 1, "AUGMENT": "none",
    }  # fmt: skip
    config = place / f"{work}.json"
    config.write_text(json.dumps(values | changes), encoding="utf-8")
    return config


def command(root: Path, place: Path, work: str, processes: int, **changes: Any):
    """`python -m kernel_lib train` in so many processes; one is started without the launcher."""
    config = settings_file(place, work, **changes)
    launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    start = launcher if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KERNEL_LIB_MOUNTS": str(place / "none")}
    return subprocess.run(
        [sys.executable, "-m", *start, "kernel_lib", "train", str(config)],
        cwd=root, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes_what_it_trains_in_one(project_root, place):
    both = command(project_root, place, "two", 2)
    assert both.returncode == 0, both.stderr[-3000:]
    assert both.stdout.count("run demo_UNetResNet10_128_v1") == 1, "only the first rank prints"
    single = command(project_root, place, "one", 1)
    assert single.returncode == 0, single.stderr[-3000:]
    (name,) = fold_run.run_names([place / "two"])
    folders = [fold_run.find([place / work], name)[0] for work in ("one", "two")]
    logs_of_one, logs_of_two = (folder.read_log() for folder in folders)
    for mine, theirs in zip(logs_of_two, logs_of_one, strict=True):
        # float32, and batch norm at four pixels of an image magnifies its last digits.
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-4)
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-4)
    for archive in ("oof", "oof_last"):
        theirs, mine = (Maps(getattr(folder, archive)) for folder in folders)
        assert mine.ids == theirs.ids
        assert mine.meta["images"] == theirs.meta["images"]
        for image_id in mine.ids:
            np.testing.assert_allclose(mine[image_id].astype(int), theirs[image_id], atol=1)
