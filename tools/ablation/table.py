"""Results to the table of the notes' claims, in Markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from kernel_lib import storage
from kernel_lib.errors import InputError
from kernel_lib.postprocess.metrics import N_BOOTSTRAP
from tools.ablation.claims import SECTIONS, Claim, Expected, Line, OnGpu, Spread
from tools.ablation.paired import Difference, Draws, measure_named
from tools.ablation.runner import GPU, IMAGES
from tools.ablation.runner import Line as Result
from tools.ablation.score import Columns
from tools.ablation.setting import Setting

BEGIN, END = "<!-- ablation:begin -->", "<!-- ablation:end -->"
FEWEST_SEEDS = 3
# How a difference is written, and how much of one would not matter.
UNITS = {
    "dice": ("{:+.4f}", 0.01),
    "auc": ("{:+.4f}", 0.01),
    "share": ("{:+.1%}", 0.02),
    "px": ("{:+,.0f} px", 200.0),
    "characters": ("{:+,.0f}", 10.0),
}
OUTLIER = 3.5  # modified z-score (Iglewicz and Hoaglin 1993)
FEWEST_FOR_OUTLIERS = 5


class Results:
    """The columns of every arm by seed, and the draws that all claims share."""

    def __init__(self, lines: Sequence[Result], n_bootstrap: int = N_BOOTSTRAP) -> None:
        """Read the lines.

        Raises: InputError where the line of the images themselves is missing.
        """
        images = next((line for line in lines if line["arm"] == IMAGES), None)
        if images is None:
            raise InputError("no results yet: python -m tools.ablation run makes them")
        self.columns: dict[str, dict[int, Columns]] = defaultdict(dict)
        self.speeds: Columns = {}  # images a second, of determinism and without; empty: no GPU
        self.failed: list[tuple[str, int, str]] = []
        for line in lines:
            if "error" in line:
                self.failed.append((line["arm"], line["seed"], line["error"]))
            elif line["arm"] == GPU:
                self.speeds = line["columns"]
            elif line is not images:
                self.columns[line["arm"]][line["seed"]] = line["columns"]
        self.seeds = sorted({seed for of_arm in self.columns.values() for seed in of_arm})
        self.columns[IMAGES] = dict.fromkeys(self.seeds, images["columns"])
        self.draws = Draws(images["groups"], images["columns"]["true_area_px"], n_bootstrap)
        self._values: dict[tuple[str, str, int], np.ndarray] = {}

    def side(self, side: str) -> dict[int, np.ndarray]:
        """Return by seed the values of one side of a claim: of all images, then of each draw."""
        names, _, measure = side.partition(":")
        by_arm = [self._by_seed(name, measure) for name in names.split("|")]
        if len(by_arm) == 1:
            return by_arm[0]
        common = set.intersection(*(set(of_arm) for of_arm in by_arm))
        if not common:
            return {}
        best = max(by_arm, key=lambda of_arm: float(np.mean([of_arm[seed][0] for seed in common])))
        return {seed: best[seed] for seed in common}

    def difference(self, claim: Claim) -> Difference:
        """Return A − B over the seeds that have both."""
        a, b = self.side(claim.a), self.side(claim.b)
        return self.draws.difference([(a[s], b[s]) for s in sorted(set(a) & set(b))])

    def scores(self, arm: str) -> dict[int, float]:
        """Return mean dice of an arm by seed."""
        return {seed: float(values[0]) for seed, values in self.side(f"{arm}:dice").items()}

    def _by_seed(self, arm: str, measure: str) -> dict[int, np.ndarray]:
        return {seed: self._value(arm, measure, seed) for seed in self.columns.get(arm, {})}

    def _value(self, arm: str, measure: str, seed: int) -> np.ndarray:
        at = (arm, measure, seed)
        if at not in self._values:
            self._values[at] = self.draws.value(self.columns[arm][seed], measure)
        return self._values[at]


def verdict(difference: Difference, expects: Expected, margin: float) -> str:
    """Return whether the interval supports the claim, beyond differences of `margin`."""
    if difference.n_seeds < FEWEST_SEEDS:
        return f"undecided (n = {difference.n_seeds})"
    above, below = difference.low > 0, difference.high < 0
    if expects == "open":
        return "better" if above else "worse" if below else "undecided"
    if expects == "same":
        if max(-difference.low, difference.high) <= margin:
            return "holds"
        return "does not hold" if above or below else "undecided"
    if expects == "no gain":
        if difference.high <= margin:
            return "holds"
        return "does not hold" if above else "undecided"
    if expects == "less":
        above, below = below, above
    return "holds" if above else "does not hold" if below else "undecided"


def outliers(scores: Mapping[int, float]) -> list[int]:
    """Return outlying seeds: 0.6745 · |x − median| / MAD above 3.5; of fewer than five, none."""
    values = np.array(list(scores.values()))
    if len(values) < FEWEST_FOR_OUTLIERS:
        return []
    away = np.abs(values - np.median(values))
    # Written without a division: where most are equal, whatever is not lies apart.
    apart = 0.6745 * away > OUTLIER * np.median(away)
    return [seed for seed, far in zip(scores, apart, strict=True) if far]


def render(
    results: Results, how: Setting, sections: Mapping[str, Sequence[Line]] = SECTIONS
) -> str:
    """Return the section as Markdown, without its markers."""
    drawn = how.own
    true_share = float(np.mean(results.draws.true_area_px > 0))
    text = [
        "## Claims of the reference solution, tried",
        "",
        "`make ablation`. **Phantoms are not patients**: these are small networks, trained from "
        "scratch on drawn chests; a line here says whether a claim shows in that, and nothing of "
        "radiographs or the leaderboard. 96, 128 and 192 px stand in for 512, 768 and 1024.",
        "",
        f"Each arm trains on {drawn.train * (how.n_folds - 1) // how.n_folds} phantoms of "
        f"{drawn.size} px (difficulty {drawn.difficulty}), chooses its checkpoints on the rest of "
        f"{drawn.train}, and is scored on {len(results.draws.true_area_px)} others of other "
        f"patients ({true_share:.0%} with a mask), each by a rule chosen on other patients. Pairs "
        "share seed, fold and data order. n is the number of seeds; differences are A − B of mean "
        "dice unless they say otherwise, with a 95 % bootstrap over patients and seeds together "
        "(of three seeds it is somewhat narrow). Below three seeds, or where the interval covers "
        "0, a line is undecided; *the same* and *no gain* hold where the interval stays within "
        "0.01 of dice or AUC, 2 % of a share. Of so many lines, one in twenty errs by chance. "
        "A reason is a reading of the outcome, not itself tried.",
        "",
    ]
    for title, lines in sections.items():
        text += [f"### {title}", "", "| claim | tried as (A against B) | n | difference [95 %] | "
                 "verdict | reason |", "|---|---|---|---|---|---|"]  # fmt: skip
        text += [_row(line, results) for line in lines] + [""]
    for arm, seed, error in results.failed:
        text.append(f"- failed: {arm}, seed {seed}: {error}")
    return "\n".join(text).rstrip() + "\n"


def known(sections: Mapping[str, Sequence[Line]], arms: Set[str]) -> dict[str, list[Line]]:
    """Return by section the lines whose arms are all among these, without empty sections."""
    known_lines = {
        title: [
            line for line in lines if isinstance(line, Claim | Spread) and arms_of(line) <= arms
        ]
        for title, lines in sections.items()
    }
    return {title: lines for title, lines in known_lines.items() if lines}


def arms_of(line: Claim | Spread) -> set[str]:
    """Return the arms that a line compares."""
    if isinstance(line, Spread):
        return {line.arm}
    return {name for side in (line.a, line.b) for name in side.partition(":")[0].split("|")}


def write(path: Path, section: str, first: str = BEGIN, last: str = END) -> None:
    """Put the section between its markers in a document, or at its end where it has none.

    Raises: InputError where only one of the markers is there, or the end before the beginning.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if first not in text and last not in text:
        text = f"{text.rstrip()}\n\n{first}\n{last}\n".lstrip()
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise InputError(
            f"{path} lacks {first} before {last}: restore both, or remove what is left"
        )
    storage.write_text(path, f"{head}{first}\n{section}{last}{tail}")


def _row(line: Line, results: Results) -> str:
    if isinstance(line, Claim):
        cells = _tried(line, results)
    elif isinstance(line, Spread):
        cells = _spread(line, results)
    elif isinstance(line, OnGpu):
        cells = _on_gpu(line, results)
    else:
        cells = (line.says, line.tried, "–", "–", "explained", line.why)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _tried(claim: Claim, results: Results) -> tuple[str, ...]:
    gap = results.difference(claim)
    form, margin = UNITS[measure_named(claim.a.partition(":")[2]).unit]
    said = verdict(gap, claim.expects, margin)
    measured = "–"
    if gap.n_seeds:
        value, low, high = (form.format(number) for number in gap[:3])
        measured = f"{value} [{low}, {high}]"
    why = (claim.otherwise or claim.why) if said == "does not hold" else claim.why
    return claim.says, claim.tried, str(gap.n_seeds), measured, said, why


def _on_gpu(line: OnGpu, results: Results) -> tuple[str, ...]:
    """Return both speeds and their ratio; too few rounds for an interval, so their range."""
    if not results.speeds:
        return line.says, line.tried, "–", "–", "unmeasured: no GPU here", line.why
    bound, free = (np.array(results.speeds[name]) for name in ("deterministic", "free"))
    ratios = bound / free
    measured = f"{bound.mean():,.0f} against {free.mean():,.0f}: × {ratios.mean():.2f} "
    measured += f"({ratios.min():.2f} to {ratios.max():.2f})"
    said = "holds" if ratios.max() < 1 else "does not hold" if ratios.min() > 1 else "undecided"
    return line.says, line.tried, f"{len(ratios)} rounds", measured, said, line.why


def _spread(line: Spread, results: Results) -> tuple[str, ...]:
    """Return scores by seed, their standard deviation, and the seeds that lie apart."""
    scores = results.scores(line.arm)
    tried = f"{line.arm} by seed"
    if len(scores) < FEWEST_SEEDS:
        said = f"undecided (n = {len(scores)})"
        return line.says, tried, str(len(scores)), "–", said, line.why
    measured = ", ".join(f"{seed}: {score:.4f}" for seed, score in sorted(scores.items()))
    measured += f"; standard deviation {np.std(list(scores.values()), ddof=1):.4f}"
    apart = ", ".join(map(str, outliers(scores)))
    if len(scores) < FEWEST_FOR_OUTLIERS:
        said = f"{FEWEST_FOR_OUTLIERS} seeds are needed to call one an outlier"
    else:
        said = f"outlier: {apart}" if apart else "no outlier"
    return line.says, tried, str(len(scores)), measured, said, line.why
