"""From an ensemble's folder to a page: who speaks, what is embedded, what is missing."""

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from kernel_lib import storage
from kernel_lib.__main__ import main
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import ThresholdsParameters
from kernel_lib.data import fingerprint, images, rle
from kernel_lib.errors import InputError
from kernel_lib.inference.combine import test_masks as masks_of_test
from kernel_lib.postprocess.histograms import Stacked, areas, gate_by_sum, per_image_dice
from kernel_lib.postprocess.metrics import dice_of_counts
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.stages import report
from kernel_lib.stages import thresholds as stage
from kernel_lib.viewer import picker as picking
from kernel_lib.viewer.document import MB, show, view, viewer, viewer_or_why
from kernel_lib.viewer.ranking import most_telling

SIZE, N = 32, 20
SHAPES = [(32, 32), (48, 40), (64, 64)]
ODD = "<img src=x onerror=alert(1)> & \"i\" 'ü'"  # an id with markup in it


def image_ids() -> list[str]:
    return [ODD if i == 3 else f"i{i:02d}" for i in range(N)]


def truth_of(i: int) -> np.ndarray:
    mask = np.zeros(SHAPES[i % 3], np.uint8)
    if i % 3 != 1:
        mask[4 : 14 + i // 3, 5:17] = 1
    return mask


def table() -> pd.DataFrame:
    rows = []
    for i, image_id in enumerate(image_ids()):
        mask = truth_of(i)
        rows.append((image_id, i % 2, "", *mask.shape, int(mask.sum()), rle.encode(mask)))
    return pd.DataFrame(rows, columns=list(folds_file.COLUMNS))


def level_map(run: str, i: int, alarm: bool = False) -> np.ndarray:
    seeded = np.random.default_rng([i, *run.encode()])
    mask = cv2.resize(truth_of(i), (SIZE, SIZE)) if not alarm else np.eye(SIZE, dtype=np.uint8)
    return (mask * seeded.integers(60, 160) + seeded.integers(0, 90, mask.shape)).astype(np.uint8)


def make_run(work: Path, run: str, drawn: pd.DataFrame) -> None:
    """Two folds with held-out predictions and those of six test images."""
    for fold in (0, 1):
        folder = fold_run.fold_folder(work, run, fold)
        config = {"run": run, "folds_digest": folds_file.digest(drawn), "experiment": {"name": run}}
        storage.write_json(folder.config, config)
        held = [i for i in range(N) if i % 2 == fold]
        seen = tuple(name for i, name in enumerate(image_ids()) if i not in held)
        meta = {
            "run": run,
            "fold": fold,
            "lineage": Lineage(images=seen, chosen_on=()).model_dump(mode="json"),
        }
        shown = [(image_ids()[i], maps.Prediction(level_map(run, i, i % 4 == 3))) for i in held]
        for path in (folder.oof, folder.oof_last):
            maps.write(path, shown, meta)
        tests = [(f"t{i}", maps.Prediction(level_map(f"{run}{fold}", i))) for i in range(6)]
        maps.write(folder.test, tests, meta)


def make_data(root: Path) -> Path:
    """Radiographs as PNGs with an RLE table, and six test images, no file of which is bad."""
    random = np.random.default_rng(5)
    for i, row in enumerate(table().itertuples()):
        path = root / "train" / f"{row.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 200, (row.height, row.width), dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels + 5 * truth_of(i))[1].tobytes())
    listed = table()[["image_id", "rle"]].set_axis(["ImageId", "EncodedPixels"], axis=1)
    listed.to_csv(root / "train-rle.csv", index=False)
    sample = [(f"t{i}", "-1") for i in range(6)]
    for i, (name, _) in enumerate(sample):
        path = root / "test" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 200, SHAPES[i % 3], dtype=np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    columns = ["ImageId", "EncodedPixels"]
    pd.DataFrame(sample, columns=columns).to_csv(root / "sample_submission.csv", index=False)
    return root


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working folder with three runs; no mounts but the test's own."""
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path / "mounts"))
    monkeypatch.setattr(report, "write", lambda *args, **how: None)
    folder = tmp_path / "work"
    folder.mkdir()
    drawn = table()
    folds_file.save(drawn, folder / "folds.csv")
    for run in "abc":
        make_run(folder, run, drawn)
    return folder


def searched(work: Path, runs_named: str = "a", **how) -> Path:
    parameters = {"runs": runs_named, "ensemble": "e", "work_dir": str(work), "bootstrap": 100}
    return stage.run(ThresholdsParameters(**parameters, **how)).folder


def payload_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def unpacked(payload: dict) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(payload["packed"])), np.uint8)
    return planes.reshape(4, -1).T.copy().view("<i4").ravel()


def picture(text: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_GRAYSCALE)


def test_a_run_s_numbers_are_those_that_the_search_saw(work):
    folder = searched(work)
    seen = view(folder)
    assert [voice.name for voice in seen.voices] == ["a"]
    rule = Decision.load(folder).choice.triplet
    assert seen.voices[0].rule == rule
    with np.load(folder / "oof_statistics.npz") as kept:
        assert seen.table["image_id"].tolist() == kept["image_id"].tolist()
        for name in ("hist_all", "hist_true", "n_px"):
            assert np.array_equal(getattr(seen.stats[0], name), kept[name])
    payload = payload_of(viewer(folder).html)
    n = len(seen.table)
    hists = unpacked(payload)
    assert np.array_equal(hists[: n * 256].reshape(n, 256), seen.stats[0].hist_all)
    assert np.array_equal(hists[n * 256 : 2 * n * 256].reshape(n, 256), seen.stats[0].hist_true)
    assert (hists[2 * n * 256 :] == -1).all()
    assert len(hists) == 2 * n * 256 + n
    assert payload["voices"] == [
        {"name": "a", "labels": False, "rule": {"label": None} | rule.to_json()}
    ]
    assert payload["truth"]
    assert payload["images"]["id"] == seen.table["image_id"].tolist()
    assert payload["images"]["height"] == seen.table["height"].tolist()


def test_embedded_pictures_are_the_image_s_own_maps_truth_and_pixels(work, tmp_path):
    data = make_data(tmp_path / "data")
    folder = searched(work)
    made = viewer(folder, data_dir=data)
    payload = payload_of(made.html)
    seen = view(folder)
    assert made.n_embedded == made.n_images == len(payload["pictures"]) == N
    for one in payload["pictures"]:
        row = seen.table.iloc[one["row"]]
        i = image_ids().index(row["image_id"])
        assert one["size"] == [row["width"], row["height"]]
        assert np.array_equal(picture(one["truth"]) == 255, truth_of(i))
        shown = maps.at_shape(level_map("a", i, i % 4 == 3), (row["height"], row["width"]))
        assert np.array_equal(picture(one["maps"][0]), shown)
        stored = cv2.imread(str(data / "train" / f"{row['image_id']}.png"), cv2.IMREAD_GRAYSCALE)
        assert np.abs(picture(one["image"]).astype(int) - stored).mean() < 20  # JPEG of noise


def test_a_smaller_picture_keeps_areas_unbiased_and_the_side_in_bounds(work):
    made = payload_of(viewer(searched(work), size=16, ids=["i02"]).html)["pictures"][0]
    assert made["size"] == [16, 16]  # of 64 × 64
    assert np.array_equal(picture(made["truth"]) == 255, truth_of(2)[::4, ::4])


def test_several_runs_stand_beside_their_mean(work):
    seen = view(searched(work, "a,b,c"))
    assert [voice.name for voice in seen.voices] == ["mean of 3 runs", "a", "b", "c"]
    assert seen.vote is None
    row = int(np.flatnonzero(seen.table["image_id"] == "i06")[0])
    own = [level_map(run, 6) for run in "abc"]
    expected = [maps.mean(own), *own]
    for shown, levels in zip(seen.maps(row), expected, strict=True):
        assert np.array_equal(shown, maps.at_shape(levels, SHAPES[0]))
    for stats, levels in zip(seen.stats, expected, strict=True):
        assert np.array_equal(
            stats.hist_all[row], np.bincount(levels.ravel(), minlength=256)
        )  # 32 × 32: its own size
    assert payload_of(show(seen).html)["one_rule"]


@pytest.mark.parametrize("combine", ["member_vote", "member_union"])
def test_a_vote_s_areas_are_those_of_the_masks_for_every_k(work, combine):
    folder = searched(work, "a,b,c", combine=combine)
    seen = view(folder)
    choice = Decision.load(folder).choice
    assert [voice.rule for voice in seen.voices] == list(choice.rules)
    assert (seen.vote.voices, seen.vote.at_least) == ((0, 1, 2), choice.at_least)
    for row in (0, 3, 8):
        masks = [
            apply_rule(shown, rule)
            for shown, rule in zip(seen.maps(row), choice.rules, strict=True)
        ]
        votes = np.sum(masks, axis=0)
        truth = rle.decode(seen.table["rle"].iloc[row], votes.shape)
        for k in (1, 2, 3):
            shared, area = seen.vote.counts[row, k - 1]
            if combine == "member_vote":
                assert area == (votes >= k).sum()
                assert shared == ((votes >= k) & (truth == 1)).sum()
            else:  # any pixel, once k members see something
                enough = sum(mask.any() for mask in masks) >= k
                assert area in (0, (votes >= 1).sum())
                assert area == 0 or enough
    payload = payload_of(show(seen).html)
    assert payload["vote"]["union"] == (combine == "member_union")
    n = len(seen.table)
    tail = unpacked(payload)[3 * (2 * n * 256 + n) :].reshape(2, n, 3)
    assert np.array_equal(tail, np.moveaxis(seen.vote.counts[:, :, ::-1], 2, 0))


def test_a_gate_by_the_sum_gives_each_voice_its_own_label(work):
    folder = searched(work, "a,b", gate="sum")
    payload = payload_of(viewer(folder).html)
    assert [voice["labels"] for voice in payload["voices"]] == [True] * 3
    seen = view(folder)
    for stats in seen.stats:
        assert np.array_equal(stats.label, gate_by_sum(stats).label)


@pytest.mark.parametrize("combine", ["mean", "vote", "member_vote"])
def test_test_images_get_the_masks_that_are_submitted(work, tmp_path, combine):
    data = make_data(tmp_path / "data")
    folder = searched(work, "a,b", combine=combine)
    seen = view(folder, test=True, data_dir=data)
    payload = payload_of(show(seen).html)
    assert not payload["truth"]
    assert payload["images"]["fold"] == [None] * 6
    assert len(payload["pictures"]) == 6
    assert all(one["truth"] is None for one in payload["pictures"])
    choice = Decision.load(folder).choice
    submitted = dict(masks_of_test(Ensemble.load(folder), [work], seen.table, choice))
    areas = np.array([submitted[name].sum() for name in seen.table["image_id"]])
    if seen.vote is None:
        assert np.array_equal(areas(seen.stats[0], choice.triplet), areas)
    else:
        assert np.array_equal(seen.vote.counts[:, seen.vote.at_least - 1, 1], areas)


def test_test_images_need_the_folder_that_tells_their_size(work):
    with pytest.raises(InputError, match="--data DIR"):
        view(searched(work), test=True)


def test_an_unreadable_test_image_is_left_out_and_named(work, tmp_path):
    data = make_data(tmp_path / "data")
    (data / "test" / "t2.png").write_bytes(b"no picture")
    seen = view(searched(work), test=True, data_dir=data)
    assert seen.table["image_id"].tolist() == ["t0", "t1", "t3", "t4", "t5"]
    assert any("t2.png" in note for note in seen.notes)


def test_a_test_image_that_only_states_its_size_is_shown_without_its_radiograph(work, tmp_path):
    data = make_data(tmp_path / "data")
    black = np.zeros(SHAPES[2], np.uint8)
    (data / "test" / "t2.png").write_bytes(cv2.imencode(".png", black)[1].tobytes())
    payload = payload_of(show(view(searched(work), test=True, data_dir=data)).html)
    bare = [payload["images"]["id"][one["row"]] for one in payload["pictures"] if not one["image"]]
    assert bare == ["t2"]


def test_without_out_of_fold_results_the_stage_that_makes_them_is_named(work, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing is no ensemble's folder.*the thresholds stage"):
        viewer(tmp_path / "nothing")
    folder = searched(work)
    fold_run.fold_folder(work, "a", 1).oof.unlink()
    with pytest.raises(InputError, match=r"oof\.zip is missing: the train stage"):
        viewer(folder)
    (work / "folds.csv").unlink()
    with pytest.raises(InputError, match=r"folds\.csv is missing"):
        viewer(folder)


def test_a_data_folder_without_the_ensemble_s_images_is_refused(work, tmp_path):
    """Their pictures would all be black, as if the masks were drawn on nothing."""
    folder, other = searched(work), tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "x.png"), np.arange(1024, dtype=np.uint8).reshape(32, 32))
    done = CliRunner().invoke(main, ["view", str(folder), "--data", str(other)])
    assert done.exit_code == 1
    assert f"Error: {other} holds none of the 20 images of e" in done.output
    assert not (folder / "viewer.html").exists()


def test_images_that_a_data_folder_lacks_are_counted(work, tmp_path):
    folder, data = searched(work), make_data(tmp_path / "data")
    for name in ("i00", "i01"):
        (data / "train" / f"{name}.png").unlink()
    done = CliRunner().invoke(main, ["view", str(folder), "--data", str(data)])
    assert done.exit_code == 0, done.output
    assert "20 of 20 images embedded (2 without their radiograph)" in done.output
    notes = payload_of((folder / "viewer.html").read_text(encoding="utf-8"))["notes"]
    assert any("holds 18 of the 20 images of e" in note for note in notes)
    (data / "test" / "t3.png").unlink()
    seen = view(folder, test=True, data_dir=data / "test")
    assert any("holds 5 of 6 test images" in note for note in seen.notes)


def test_the_radiographs_alone_will_do(work, tmp_path):
    data = make_data(tmp_path / "data")
    (data / "train-rle.csv").unlink()
    shown = viewer(searched(work), data_dir=data / "train")
    assert (shown.n_embedded, shown.n_radiographs) == (20, 20)


@pytest.mark.parametrize(("n_other", "refused"), [(0, False), (4, False), (10, True), (20, True)])
def test_other_pictures_under_the_images_ids_are_refused_or_named(work, tmp_path, n_other, refused):
    """By the fingerprints of the training images, which those of another fold are."""
    data = make_data(tmp_path / "data")
    files_of = {name: data / "train" / f"{name}.png" for name in image_ids()}
    codes = {name: fingerprint.code(images.read(path)) for name, path in files_of.items()}
    for fold in (0, 1):
        folder = fold_run.fold_folder(work, "a", fold)
        for path in (folder.oof, folder.oof_last):
            archive = maps.Maps(path)
            seen = archive.meta["lineage"]["images"]
            meta = archive.meta | {
                "lineage": archive.meta["lineage"] | {"fingerprints": [codes[i] for i in seen]}
            }
            kept = [(i, maps.Prediction(archive[i])) for i in archive.ids]
            maps.write(path, kept, meta)
    random = np.random.default_rng(9)
    for i, name in enumerate(image_ids()[:n_other]):
        pixels = random.integers(0, 200, SHAPES[i % 3], dtype=np.uint8)
        files_of[name].write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    folder = searched(work)
    if refused:
        with pytest.raises(InputError, match=f"other radiographs.*{n_other} of 20 compared"):
            view(folder, data_dir=data)
        return
    notes = view(folder, data_dir=data).notes
    named = [note for note in notes if "are not those trained on" in note]
    assert bool(named) == bool(n_other)
    for note in named:
        assert note.startswith("4 of 20")
        assert all(name in note for name in image_ids()[:4])


def test_it_says_what_it_lacks_and_that_its_means_are_in_sample(work):
    notes = payload_of(viewer(searched(work)).html)["notes"]
    assert "Pictures of 20 of 20 images are embedded, at up to 512 px" in notes[0]
    assert "in sample" in notes[1]
    assert "the honest score of choosing" in notes[1]
    assert notes[2] == "No radiographs: give the data folder to see them."


def test_the_limit_holds_and_the_most_telling_images_go_first(work, tmp_path):
    folder = searched(work)
    seen = view(folder, data_dir=make_data(tmp_path / "data"))
    whole = show(seen)
    bare = show(seen, count=0)
    assert bare.n_embedded == 0
    limit = (len(bare.html) + (len(whole.html) - len(bare.html)) / 2) / MB
    made = show(seen, max_mb=limit)
    assert 0 < made.n_embedded < N
    assert len(made.html.encode()) <= limit * MB
    order = most_telling(seen.stats[0], seen.voices[0].rule)
    rows = [one["row"] for one in payload_of(made.html)["pictures"]]
    assert rows == order[: len(rows)]
    assert f"{made.n_embedded} of 20 images" in str(made)
    with pytest.raises(InputError, match=r"max_mb is 0\.001, but the numbers of 20 images"):
        show(seen, max_mb=0.001)
    with pytest.raises(InputError, match=f"holds {made.n_embedded} of the 20 images asked for"):
        show(seen, ids=seen.table["image_id"].iloc[order].tolist(), max_mb=limit)


def test_members_make_way_where_their_numbers_alone_are_too_many(work):
    seen = view(searched(work, "a,b,c"))
    limit = (len(show(replace(seen, voices=seen.voices[:1], stats=seen.stats[:1]), count=0).html)
             + 5000) / MB  # fmt: skip
    payload = payload_of(show(seen, max_mb=limit).html)
    assert [voice["name"] for voice in payload["voices"]] == ["mean of 3 runs"]
    assert any("The 3 members beside their mean are left out" in note for note in payload["notes"])


def test_a_notebook_of_a_stage_is_told_why_and_goes_on(work):
    folder = searched(work)
    assert "20 of 20 images embedded" in str(viewer_or_why(folder))
    shown = viewer_or_why(folder, max_mb=0.001)
    assert shown.figure is None
    assert shown.sentence.startswith("No viewer: max_mb is 0.001")


def test_images_asked_for_are_embedded_and_an_unknown_id_is_named(work):
    folder = searched(work)
    rows = [one["row"] for one in payload_of(viewer(folder, ids=["i07", ODD]).html)["pictures"]]
    table_shown = view(folder).table
    assert table_shown["image_id"].iloc[rows].tolist() == ["i07", ODD]
    with pytest.raises(InputError, match="image i077 is none of the 20 of e, out of fold; the nea"):
        viewer(folder, ids=["i077"])


def test_the_command_line_writes_the_page(work, tmp_path):
    folder = searched(work)
    done = CliRunner().invoke(main, ["view", str(folder), "--ids", "i00,i01", "--size", "24"])
    assert done.exit_code == 0, done.output
    assert "2 of 20 images embedded" in done.output
    assert len(payload_of((folder / "viewer.html").read_text(encoding="utf-8"))["pictures"]) == 2
    failed = CliRunner().invoke(main, ["view", str(folder), "--ids", "nobody"])
    assert failed.exit_code == 1
    assert "Error: image nobody is none of the 20" in failed.output


def test_in_a_notebook_it_is_a_frame_of_its_own(work):
    made = viewer(searched(work))
    size_mb = len(made.html.encode()) / 1e6
    alone = " (20 without their radiograph)"
    as_text = f"Viewer: 20 of 20 images embedded{alone}, {size_mb:.1f} MB"
    assert repr(made) == as_text, "as a log shows it"
    shown = made._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count('"') == 6  # nothing of the page ends the attribute


def test_the_page_says_what_python_says(work, tmp_path, open_page):
    """In a browser, of an ensemble that votes: every voice under other rules, and every k."""
    folder = searched(work, "a,b,c", combine="member_vote")
    seen = view(folder, data_dir=make_data(tmp_path / "data"))
    page = open_page(show(seen).html)
    page.evaluate("viewer.ready")
    random = np.random.default_rng(2)
    for at, stats in enumerate(seen.stats):
        for _ in range(20):
            bottom, top = np.sort(random.random(2))
            rule = Triplet(top, int(random.integers(0, 200_000)), bottom)
            said = page.evaluate(
                "([at, rule]) => { const found = viewer.evaluate(at, rule);"
                "return [Array.from(found.areas), Array.from(found.dice), found.mean] }",
                [at, {"label": None} | rule.to_json()],
            )
            dice = per_image_dice(stats, rule)
            assert said[0] == areas(stats, rule).tolist()
            assert said[1] == dice.tolist()
            assert said[2] == pytest.approx(dice.mean(), abs=1e-12)
    for k in (1, 2, 3):
        shared, area = seen.vote.counts[:, k - 1].T
        said = page.evaluate(f"Array.from(viewer.evaluateVote({k}).dice)")
        assert said == dice_of_counts(shared, area, seen.stats[0].true_px).tolist()


@pytest.mark.slow
def test_a_saved_notebook_shows_it_without_a_kernel(work, tmp_path, browser):
    """Executed, converted by nbconvert, opened from the disk with the network off."""
    cell = nbformat.v4.new_code_cell(
        f"from kernel_lib.viewer.document import viewer\nviewer({str(searched(work))!r})"
    )
    book = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(book, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    # nbconvert's own template loads scripts for widgets and formulas from the network.
    nothing = "data:text/javascript,"
    exporter = HTMLExporter(
        require_js_url=nothing, mathjax_url=nothing, mermaid_js_url=nothing, jquery_url=nothing
    )
    file = tmp_path / "saved.html"
    file.write_text(exporter.from_notebook_node(book)[0], encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    frame = page.frames[1]
    frame.evaluate("viewer.ready")
    rule = Decision.load(work / "ensembles" / "e").choice.triplet
    mean = frame.evaluate(
        "(rule) => viewer.evaluate(0, rule).mean", {"label": None} | rule.to_json()
    )
    expected = per_image_dice(view(work / "ensembles" / "e").stats[0], rule).mean()
    assert mean == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.6f}" in frame.locator("body").inner_text()
    context.close()


def test_the_most_telling_come_in_turns():
    """By hand: one image of each kind, and two of the worst."""
    size = 1024 * 1024
    rows = [  # px at level 200, of them in truth, px of truth at level 0
        (5000, 4900, 100),  # best
        (5000, 1000, 4000),  # worst
        (0, 0, 9000),  # missed
        (8000, 0, 0),  # false alarm
        (0, 0, 0),  # empty and right
        (950, 900, 50),  # missed for want of a few px: the border case
        (5000, 3000, 2000),  # between
    ]
    hist_all = np.zeros((len(rows), 256), np.int64)
    hist_true = np.zeros((len(rows), 256), np.int64)
    for i, (above, shared, below) in enumerate(rows):
        hist_all[i, 200], hist_all[i, 0] = above, size - above
        hist_true[i, 200], hist_true[i, 0] = shared, below
    stats = Stacked(hist_all, hist_true, np.full(len(rows), size), np.ones(len(rows), dtype=bool))
    rule = Triplet(0.5, 1000, 0.5)
    assert most_telling(stats, rule) == [1, 2, 3, 5, 0, 4, 6]
    unknown = Stacked(
        hist_all, np.zeros_like(hist_true), stats.n_px, np.zeros(len(rows), dtype=bool)
    )
    assert most_telling(unknown, rule) == [3, 5, 0, 1, 2, 6, 4]


def test_a_picker_shows_the_chosen_image(work):
    ipywidgets = pytest.importorskip("ipywidgets")
    box = picking.picker(searched(work))
    assert isinstance(box, ipywidgets.VBox)
    chosen, shown = box.children
    assert len(chosen.options) == N
    first = shown.value
    other = next(label for label in chosen.options if label.startswith("i05"))
    chosen.value = other
    assert shown.value != first
    assert "i05" in shown.value
    kept = shown.value
    chosen.value = "half typed"
    assert shown.value == kept


def test_the_picker_s_areas_are_px_of_1024(work):
    seen = view(searched(work))
    unknown = replace(seen.stats[0], has_truth=np.zeros(N, dtype=bool))
    labels = picking._labels(replace(seen, stats=(unknown,)), list(range(N)))
    area_px = areas(seen.stats[0], seen.voices[0].rule) * 2**20 / seen.stats[0].n_px
    ends = [f" · {area:,.0f} px of 1024²" for area in area_px]
    assert all(map(str.endswith, labels, ends))


def test_without_widgets_the_picker_is_a_viewer(work, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert picking.picker(searched(work)).n_images == N


def test_a_rule_that_predicts_nothing_is_named(work):
    seen = view(searched(work))
    none = replace(seen.voices[0], rule=Triplet(0.5, 1024 * 1024 + 1, 0.5))
    for voice, named in ((seen.voices[0], False), (none, True)):
        notes = payload_of(show(replace(seen, voices=(voice,)), count=0).html)["notes"]
        assert any("predicts nothing" in note for note in notes) == named
