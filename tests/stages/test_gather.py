"""Folds of several places in one working folder: what comes, what is refused, what kills leave."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from kernel_lib import checkpoints, storage
from kernel_lib.__main__ import main
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.fold_run import FoldRun
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment, TrainParameters
from kernel_lib.errors import InputError
from kernel_lib.plan import TrainPlan
from kernel_lib.stages import gather as stage
from kernel_lib.stages import gather_check
from kernel_lib.training.job import Position

RUN = "tiny_seed1"
ROW = Experiment(name="tiny", size=32, epochs=3, min_epochs=1, lr=0.02)
DRAWN = pd.DataFrame(
    {"image_id": [f"i{k}" for k in range(6)], "fold": [0, 1, 2] * 2, "group": "", "height": 9,
     "width": 9, "area_px": 4, "rle": "0 4"}
)  # fmt: skip


@pytest.fixture
def places(tmp_path) -> tuple[Path, Path, Path]:
    """Two sources and the working folder, none of which exists."""
    return tmp_path / "a", tmp_path / "b", tmp_path / "work"


def table(work: Path, drawn: pd.DataFrame = DRAWN) -> Path:
    folds_file.save(drawn, work / "folds.csv")
    return work


def begun(work: Path, fold: int, run: str = RUN, seed: int = 1, **changes) -> FoldRun:
    """A fold that has a configuration and no more."""
    folder = fold_run.fold_folder(table(work), run, fold)
    experiment = ROW.model_copy(update=changes)
    parameters = TrainParameters(seed=seed, n_folds=3)
    plan = TrainPlan(run=run, experiment=experiment, parameters=parameters)
    fold_run.write_or_check_config(folder, plan, folds_file.digest(DRAWN))
    return folder


def trained(folder: FoldRun, epoch: int, step: int = 0, weight: float = 1.0) -> FoldRun:
    """The same with what training leaves after so many epochs of 3, the last two of them kept."""
    kept = [k for k in (epoch - 1, epoch) if k > 0]
    for k in kept:
        checkpoints.save(folder.best(k), {"model": {"w": torch.tensor([weight, k])}}, Lineage())
    position = Position(
        epoch=epoch, step=step, kept=[{"epoch": k, "value": 0.5} for k in kept],
        ended="all 3 epochs" if epoch == 3 else "",
    )  # fmt: skip
    average = {"model": {"w": torch.tensor([weight, epoch, step])}}
    checkpoints.save(folder.last, {"ema": average, "position": asdict(position)}, Lineage())
    lines = [json.dumps({"epoch": k + 1}) + "\n" for k in range(epoch)]
    storage.write_text(folder.log, "".join(lines))
    return folder


def predicted(folder: FoldRun, past: Lineage | None = None) -> FoldRun:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for path, by in ((folder.oof, folder.kept()), (folder.oof_last, [folder.last])):
        digests = {checkpoint.name: checkpoints.digest(checkpoint) for checkpoint in by}
        meta = {"checkpoints": digests, "lineage": (past or Lineage()).to_json()}
        maps.write(path, [(f"i{folder.fold}", maps.Prediction(levels))], meta)
    return folder


def finished(work: Path, fold: int, weight: float = 1.0, **changes) -> FoldRun:
    return predicted(trained(begun(work, fold, **changes), 3, weight=weight))


def contents(folder: Path) -> dict[str, bytes]:
    """What each file below a folder holds, by its path there; hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_folds_of_several_places_come_together_and_a_second_call_copies_nothing(tmp_path):
    a, b, work = tmp_path / "a", tmp_path / "b/output/work", tmp_path / "work"
    finished(a, 0)
    storage.write_json(a / "left_out.json", ["x: no label"])
    storage.write_json(a / "ensembles/e/members.json", {})
    finished(b, 1)
    trained(begun(b, 2), 1, step=4)
    begun(b, 2, run="tiny_seed2", seed=2)  # another seed is another run
    expected = {k: v for k, v in contents(a).items() if not k.startswith("ensembles")} | contents(b)
    # Of a kill: no checkpoint that last.pt names, and half a file.
    trained(begun(b, 2), 1, step=4).best(2).write_bytes(b"stray")
    (b / "runs" / RUN / "fold1/.last.pt.x.part").touch()
    # Of inference in a kernel that had the fold as its input.
    (b / "runs" / RUN / "fold0").mkdir()
    (b / "runs" / RUN / "fold0/test.zip").write_bytes(b"maps")

    result = stage.run([a, tmp_path / "b"], work)
    assert contents(work) == expected
    assert result.copied == (f"{RUN}/fold0", f"{RUN}/fold1", f"{RUN}/fold2", "tiny_seed2/fold2")
    assert result.table().to_dict("list") == {
        "run": [RUN, "tiny_seed2"], "finished": ["0 1", "-"], "unfinished": ["2", "2"],
        "missing": ["-", "0 1"], "folds": [3, 3], "from": [f"{a} (0); {b} (1 2)", f"{b} (2)"],
    }  # fmt: skip
    text = str(result)
    assert f"{RUN}/fold2 is unfinished (1 of 3 epochs and 4 steps done)" in text
    assert f"\ntiny_seed2  3      -         2           0 1      {b} (2)\n" in text
    assert "tiny_seed2/fold2 is unfinished (nothing saved yet)" in text
    assert text.endswith(f"papermill notebooks/thresholds.ipynb out.ipynb -p WORK_DIR {work}")

    before = {path: path.stat().st_ino for path in work.rglob("*")}
    again = stage.run([a, tmp_path / "b"], work)
    assert again.copied == ()
    assert "nothing, all of it was there" in str(again)
    assert {path: path.stat().st_ino for path in work.rglob("*")} == before
    assert again.table()["from"].tolist() == [f"{work} (0 1 2)", f"{work} (2)"]


AT = {
    "begun": lambda work: begun(work, 0),
    "one epoch": lambda work: trained(begun(work, 0), 1),
    "more steps": lambda work: trained(begun(work, 0), 1, step=9),
    "two epochs": lambda work: trained(begun(work, 0), 2, step=1),
    "ended": lambda work: trained(begun(work, 0), 3),
    "finished": lambda work: finished(work, 0),
}


@pytest.mark.parametrize(("behind", "ahead"), list(zip(AT, list(AT)[1:], strict=False)))
def test_of_the_same_fold_the_further_one_is_taken_with_a_note(places, behind, ahead):
    a, b, work = places
    AT[behind](a), AT[behind](work), AT[ahead](b)
    result = stage.run([a, b], work)
    assert contents(work) == contents(b), "and nothing of the one that was there"
    assert result.copied == (f"{RUN}/fold0",)
    (note,) = result.notes
    assert note.startswith(f"note: {RUN}/fold0 is taken from {b} (")
    assert f" {work}: " in note
    assert f"; {a}: " in note
    assert stage.run([a], work).copied == ()
    assert contents(work) == contents(b)


def test_the_same_fold_in_two_places_is_taken_once(places):
    a, b, work = places
    finished(a, 0), shutil.copytree(a, b)
    result = stage.run([a, b, b], work)
    assert (result.copied, result.notes) == ((f"{RUN}/fold0",), ())
    assert result.table()["from"].tolist() == [f"{a} (0)"]
    assert contents(work) == contents(a)


def test_of_equal_folds_the_one_with_maps_of_test_images_is_taken(places):
    a, b, work = places
    shutil.copy(finished(a, 0).oof, finished(b, 0).test)
    assert stage.run([a, b], work).copied == (f"{RUN}/fold0",)
    assert contents(work) == contents(b)


def test_the_table_of_one_place_serves_another_that_lacks_it(places):
    a, b, work = places
    finished(a, 0), finished(b, 1)
    (a / "folds.csv").unlink()
    stage.run([a, b], work)
    assert contents(work) == contents(a) | contents(b)
    (b / "folds.csv").unlink()
    with pytest.raises(InputError, match=r"no folds.csv in .*/new, .*/a, .*/b: the train stage"):
        stage.run([a, b], work.with_name("new"))


# What is refused, before anything is copied. Each spoils b, or says what b is.


def moved(b: Path) -> None:
    other = DRAWN.assign(fold=[1, 0, 2] * 2)
    table(b, other)
    of_digest(b, folds_file.digest(other))


def of_digest(b: Path, digest: str) -> None:
    folder = fold_run.fold_folder(b, RUN, 1)
    document = json.loads(folder.config.read_text())
    storage.write_json(folder.config, document | {"folds_digest": digest})


def drawn_otherwise(b: Path) -> None:
    (b / "folds.csv").unlink()
    of_digest(b, "f00d" * 16)


def renamed(b: Path) -> None:
    folder = fold_run.fold_folder(b, RUN, 1)
    folder.path.rename(folder.path.with_name("fold2"))


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(b: Path) -> None:
        path = fold_run.fold_folder(b, RUN, 1).path / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def without(name: str) -> Callable[[Path], None]:
    return lambda b: (fold_run.fold_folder(b, RUN, 1).path / name).unlink()


def cut(content: bytes) -> bytes:
    return content[:-200]


def one_wrong_byte(content: bytes) -> bytes:
    at = content.index(b".map") + 20
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


REFUSED = {
    "other folds": (moved, "{b}/folds.csv is not {a}/folds.csv (i0: fold 0 there, 1 here; 4 of 6 "
                           "images differ): an ensemble needs one folds file"),
    "other labels": (lambda b: table(b, DRAWN.assign(area_px=5, rle="0 5")),
                     "{b}/folds.csv is not {a}/folds.csv (i0: area_px 4 there, 5 here; 6 of 6"),
    "other images": (lambda b: table(b, DRAWN.assign(image_id=[f"i{k + 1}" for k in range(6)])),
                     "(2 images are in only one of them, i0 first)"),
    "other digest": (drawn_otherwise, "{b}/runs/tiny_seed1/fold1 was trained on another folds file "
                                      "than {a}/folds.csv (digest f00df00df00d there, "),
    "other row": (lambda b: finished(b, 2, lr=0.5, epochs=4),
                  "{b}/runs/tiny_seed1/fold2 is of another configuration than "
                  "{a}/runs/tiny_seed1/fold0 (epochs: 3 there, 4 here; lr: 0.02 there, 0.5 here)"),
    "other seed": (lambda b: finished(b, 2, seed=7), "(seed: 1 there, 7 here)"),
    "trained twice": (lambda b: finished(b, 0, weight=2.0),
                      "{a}/runs/tiny_seed1/fold0 and {b}/runs/tiny_seed1/fold0 are the same fold, "
                      "trained as far (finished after all 3 epochs), with other weights "
                      "(best_epoch002.pt: "),
    "twice as far": (lambda b: (trained(begun(b, 2), 1), trained(begun(b.with_name("a"), 2), 1,
                                                                 weight=2.0)),
                     "trained as far (1 of 3 epochs and 0 steps done), with other weights"),
    "no runs": (lambda b: shutil.rmtree(b / "runs"),
                "{b} holds no runs, itself or up to two levels down; it holds folds.csv: give a"),
    "config cut": (edited("config.json", cut), "fold1/config.json does not fit"),
    "config gone": (without("config.json"), "fold1/config.json is missing"),
    "config of none": (edited("config.json", lambda _: b'{"run": "tiny_seed1", "seed": "1"}'),
                       "fold1/config.json does not fit"),
    "row of another version": (edited("config.json", lambda c: c.replace(b'"monitor"', b'"mntr"')),
                               "experiment.mntr"),
    "renamed": (renamed, "{b}/runs/tiny_seed1/fold2 is tiny_seed1/fold1 by its config.json"),
    "last cut": (edited("last.pt", cut), "{b}/runs/tiny_seed1/fold1/last.pt cannot be read"),
    "last gone": (without("last.pt"), "fold1 has maps and no last.pt"),
    "best cut": (edited("best_epoch002.pt", cut), "fold1/best_epoch002.pt cannot be read"),
    "best gone": (without("best_epoch003.pt"), "fold1/best_epoch003.pt, which last.pt names"),
    "log cut": (edited("log.jsonl", lambda c: c[:-4]), "fold1/log.jsonl is damaged"),
    "log short": (edited("log.jsonl", lambda c: c.splitlines(keepends=True)[0]),
                  "fold1/log.jsonl has 1 epochs, last.pt 3"),
    "maps cut": (edited("oof.zip", cut), "fold1/oof.zip is damaged"),
    "a map's byte": (edited("oof_last.zip", one_wrong_byte), "fold1/oof_last.zip is damaged (i1"),
    "maps of others": (lambda b: trained(fold_run.fold_folder(b, RUN, 1), 3, weight=2.0),
                       "fold1/oof.zip was predicted by other checkpoints than lie beside it"),
    "maps of another past": (lambda b: predicted(fold_run.fold_folder(b, RUN, 1),
                                                 Lineage(known=False)),
                             "fold1/oof.zip states another lineage"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), list(REFUSED.values()), ids=list(REFUSED))
def test_what_does_not_belong_together_is_refused_and_nothing_copied(
    places, tmp_path, spoil, words
):
    a, b, work = places
    finished(a, 0), finished(b, 1)
    spoil(b)
    before = contents(tmp_path)
    with pytest.raises(InputError) as refused:
        stage.run([a, b], work)
    assert words.format(a=a, b=b) in str(refused.value)
    assert contents(tmp_path) == before
    assert not work.exists()


def test_what_lies_in_the_working_folder_counts_as_a_source(places):
    _, b, work = places
    finished(work, 0), finished(b, 1), moved(b)
    with pytest.raises(InputError, match=r"b/folds.csv is not .*/work/folds.csv"):
        stage.run([b], work)
    assert list(fold_run.find([work], RUN)) == [0]


class Killed(BaseException):
    pass


def killed(monkeypatch: pytest.MonkeyPatch, at: int, call: Callable[[], object]) -> bool:
    """Whether the call died at its `at`-th change of a folder, and did nothing from then on."""
    left = at

    def mortal(change):
        def changed(*given, **how):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return change(*given, **how) if left > 0 else None  # what cleans up is dead too

        return changed

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        try:
            call()
        except Killed:
            return True
    return False


def test_killed_anywhere_the_same_call_ends_the_same(places, monkeypatch):
    """A fold that comes, and one that replaces what was there."""
    a, before, work = places
    begun(a, 0), finished(a, 1), trained(begun(before, 1), 2)
    storage.write_json(a / "left_out.json", [])
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the disk's own time is not tried here
    old, at = contents(before / "runs"), 0
    while True:
        at += 1
        shutil.copytree(before, work)
        if not killed(monkeypatch, at, lambda: stage.run([a], work)):
            break
        there = fold_run.find([work], RUN)
        assert 1 in there or (work / "runs" / RUN / ".fold1.old").is_dir()
        for fold, folder in there.items():
            name = f"{RUN}/fold{fold}/"
            mine = {name + k: v for k, v in contents(folder.path).items()}
            of_old = {k: v for k, v in old.items() if k.startswith(name)}
            of_new = {k: v for k, v in contents(a / "runs").items() if k.startswith(name)}
            assert mine in (of_old, of_new), f"half a fold at {at}"
        stage.run([a], work)
        assert contents(work) == contents(a), at
        shutil.rmtree(work)
    assert contents(work) == contents(a)
    assert at > 30


def test_a_fold_in_which_a_training_works_is_refused_and_nothing_copied(places):
    a, _, work = places
    finished(a, 0), finished(a, 1)
    with storage.folder_lock(fold_run.fold_folder(work, RUN, 1).path):
        before = contents(work)
        with pytest.raises(InputError, match=r"fold1 is being worked in by process"):
            stage.run([a], work)
        assert contents(work) == before
    stage.run([a], work)
    assert contents(work) == contents(a)


@pytest.mark.parametrize("where", [0, 2])
def test_a_fold_that_a_training_has_changed_meanwhile_is_refused(places, monkeypatch, where):
    (a, _, work), changing = places, places[where]
    begun(changing, 0)
    trained(begun(a, 0), 2)
    check = gather_check.refuse_mixed

    def checked(found):
        check(found)
        trained(begun(changing, 0), 2, step=1)  # after all was opened

    monkeypatch.setattr(gather_check, "refuse_mixed", checked)
    with pytest.raises(InputError, match=rf"{changing}/runs/.* was written to while it was"):
        stage.run([a], work)
    if changing == a:
        assert not fold_run.fold_folder(work, RUN, 0).best(2).exists()


def test_a_disk_that_is_too_small_is_named_before_anything_is_copied(places, monkeypatch):
    a, _, work = places
    finished(a, 0)
    usage = shutil.disk_usage(a)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(InputError, match=r"work would need 0.00 GB, .* has 0.00 GB free"):
        stage.run([a], work)
    assert not work.exists()


def test_a_damaged_list_of_images_left_out_is_not_passed_on(places):
    a, _, work = places
    finished(a, 0)
    (a / "left_out.json").write_text('["x: no la')
    with pytest.raises(InputError, match=r"a/left_out.json is damaged .*: delete it"):
        stage.run([a], work)
    assert not work.exists()


def test_the_command_prints_the_table_and_one_clear_line_where_it_refuses(places):
    a, b, work = places
    finished(a, 0), trained(begun(b, 1), 1)
    done = CliRunner().invoke(main, ["gather", str(a), str(b), "--into", str(work)])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()[:2]]
    assert rows[0] == ["run", "folds", "finished", "unfinished", "missing", "from"]
    assert rows[1] == [RUN, "3", "0", "1", "2", str(a), "(0);", str(b), "(1)"]
    refused = CliRunner().invoke(main, ["gather", str(work / "runs"), "--into", str(a)])
    assert refused.exit_code == 1
    assert "runs holds no runs, itself or up to two levels down" in refused.output
