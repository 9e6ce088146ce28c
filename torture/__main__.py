"""Kills every stage with SIGKILL, again and again, and looks whether it still ends the same.

    python -m torture --kills 200

A trial takes one stage, kills it a few times, lets it finish, and compares what it leaves with the
same stage undisturbed, bit for bit: `lives` says how it is killed, `stages` what is compared.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import click

from kernel_lib.progress import bar
from torture import lives
from torture.stages import STAGES, Place

LIVES = 20  # of one trial


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--kills", default=200, show_default=True, help="kills to make, at least")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=click.Choice(list(STAGES)), help="one stage instead of all")
def main(kills: int, seed: int, only: str | None) -> None:
    chance = random.Random(seed)
    began = time.monotonic()
    counted = {name: [0, 0, 0] for name in STAGES if only in (None, name)}  # kills, trials, equal
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has used a GPU cannot be forked
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # spares the disk
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        place = Place(Path(scratch))
        with bar(total=kills, desc="torture", unit="kill") as shown:
            for name in itertools.cycle(counted):
                if shown.n >= kills:
                    break
                made, equal = trial(place, name, chance, wanted=chance.randint(1, 4))
                for at, more in enumerate((made, 1, equal)):
                    counted[name][at] += more
                shown.update(made)
    print(f"{'stage':<12}{'kills':>7}{'trials':>8}{'equal':>7}")
    for name, numbers in counted.items():
        print(f"{name:<12}{numbers[0]:>7}{numbers[1]:>8}{numbers[2]:>7}")
    made, trials, equal = map(sum, zip(*counted.values(), strict=True))
    print(f"{made} kills in {time.monotonic() - began:.0f} s: {equal} of {trials} ended the same")
    sys.exit(equal < trials)


def trial(place: Place, name: str, chance: random.Random, wanted: int) -> tuple[int, bool]:
    """Kill a stage so many times, let it end; the kills that met it alive, and whether it is equal.

    What went wrong is printed.
    """
    folder, made = place.fresh(name), 0
    for _ in range(LIVES):
        death = lives.drawn(chance, place.usual[name]) if made < wanted else None
        status, said = lives.live(lambda: place.do(name, folder), death)
        if death is not None and lives.was_killed(status):
            made += 1
            continue
        wrong = [f"ended by itself, status {status}:\n{said}"] if status else []
        wrong = wrong or place.differences(name)
        for one in wrong:
            print(f"{name}: {one}")
        return made, not wrong
    print(f"{name}: did not end in {LIVES} lives")
    return made, False


if __name__ == "__main__":
    main(prog_name="python -m torture")
