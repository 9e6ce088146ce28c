"""Kills every stage, or fills its disk, again and again, and looks whether it still ends the same.

    python -m tools.torture --kills 200 --full-disk 100

A trial takes one stage, kills it or asks it to end a few times, lets it finish, and compares what
it leaves with the same stage undisturbed, bit for bit: `lives` says how it is killed, `stages` what
is compared. Or its disk is full (`disks`), which needs the right to mount one.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from kernel_lib.notebook import Signals, bar
from tools.torture import disks, lives
from tools.torture.stages import PROCESSES, STAGES, Place

LIVES = 20  # of one trial

Trial = Callable[[str], tuple[int, list[str]]]  # a stage → faults that met it, what went wrong


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=0, help="kills to make, at least; 200 unless disks are filled")
@click.option("--full-disk", "full", default=0, help="full disks to make")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=click.Choice(list(STAGES)), multiple=True, help="not all stages")
def main(kills: int, full: int, seed: int, only: tuple[str, ...]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has used a GPU cannot be forked
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # spares the disk
    names = only or tuple(STAGES)
    with Signals().caught(), tempfile.TemporaryDirectory(dir=memory) as scratch:
        place = Place(Path(scratch), names)
        ended_well = True
        if kills or not full:
            ended_well &= killed(place, names, kills or 200, random.Random(seed))
        if full:
            ended_well &= filled(place, names, full, random.Random(seed))
    sys.exit(not ended_well)


def killed(place: Place, names: tuple[str, ...], kills: int, chance: random.Random) -> bool:
    """Return whether every stage ended the same after so many kills, and print it."""
    return rounds(names, kills, "kill", lambda name: trial(place, name, chance))


def filled(place: Place, names: tuple[str, ...], full: int, chance: random.Random) -> bool:
    """Return whether every stage ended the same after so many full disks, and print it."""
    try:
        disks.own_mounts()
        with disks.read_only(place.data), disks.mounted(place.trial) as disk:
            trials = disks.Trials(place, disk, chance)
            return rounds(names, full, "full disk", trials.trial)
    except PermissionError as error:
        print(f"no full disks: {error}")
        return True


def rounds(names: tuple[str, ...], n_faults: int, fault: str, try_stage: Trial) -> bool:
    """Try each stage in turn until so many faults are made; return whether all ended the same."""
    began = time.monotonic()
    counted = {name: [0, 0, 0] for name in names}  # faults, trials, equal
    with bar(total=n_faults, desc="torture", unit=fault) as shown:
        for name in itertools.cycle(names):
            if shown.n >= n_faults:
                break
            made, wrong = try_stage(name)
            for line in wrong:
                print(line)
            for at, more in enumerate((made, 1, not wrong)):
                counted[name][at] += more
            shown.update(made)
    print(f"{'stage':<12}{fault + 's':>12}{'trials':>8}{'equal':>7}")
    for name, numbers in counted.items():
        print(f"{name:<12}{numbers[0]:>12}{numbers[1]:>8}{numbers[2]:>7}")
    made, trials, equal = map(sum, zip(*counted.values(), strict=True))
    seconds = time.monotonic() - began
    print(f"{made} {fault}s in {seconds:.0f} s: {equal} of {trials} ended the same")
    return equal == trials


def trial(place: Place, name: str, chance: random.Random) -> tuple[int, list[str]]:
    """Kill a stage a few times, let it end; the kills that met it alive, and what went wrong."""
    n_kills, made = chance.randint(1, 4), 0
    usual, processes = place.usual(name), PROCESSES.get(name, 1)
    place.fresh(name)
    for _ in range(LIVES):
        death = lives.drawn(chance, usual, processes) if made < n_kills else None
        status, output = place.live(name, death)
        if death is not None and death.has_met(status):
            made += 1
            continue
        if status:
            return made, [f"{name}: ended by itself, status {status}:\n{output}"]
        return made, [f"{name}: {line}" for line in place.differences(name)]
    return made, [f"{name}: did not end in {LIVES} lives"]


if __name__ == "__main__":
    main(prog_name="python -m tools.torture")
