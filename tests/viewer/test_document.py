"""From an ensemble's folder to a page: its models, what is embedded, what is missing."""

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
from kernel_lib.viewer.document import MB, render, viewer, viewer_or_why
from kernel_lib.viewer.load import load_viewer_data
from kernel_lib.viewer.ranking import rank_images

SIZE, N = 32, 20
SHAPES = [(32, 32), (48, 40), (64, 64)]
ODD = "<img src=x onerror=alert(1)> & \"i\" 'ü'"  # an id with markup in it
IDS = [ODD if i == 3 else f"i{i:02d}" for i in range(N)]


def truth_of(i: int) -> np.ndarray:
    mask = np.zeros(SHAPES[i % 3], np.uint8)
    if i % 3 != 1:
        mask[4 : 14 + i // 3, 5:17] = 1
    return mask


def table() -> pd.DataFrame:
    rows = []
    for i, image_id in enumerate(IDS):
        mask = truth_of(i)
        rows.append((image_id, i % 2, "", *mask.shape, int(mask.sum()), rle.encode(mask)))
    return pd.DataFrame(rows, columns=list(folds_file.COLUMNS))


def level_map(run: str, i: int, diagonal: bool = False) -> np.ndarray:
    seeded = np.random.default_rng([i, *run.encode()])
    mask = np.eye(SIZE, dtype=np.uint8) if diagonal else cv2.resize(truth_of(i), (SIZE, SIZE))
    return (mask * seeded.integers(60, 160) + seeded.integers(0, 90, mask.shape)).astype(np.uint8)


def make_run(work: Path, run: str, fold_table: pd.DataFrame) -> None:
    """Write two folds with held-out predictions and those of six test images."""
    for fold in (0, 1):
        folder = fold_run.fold_folder(work, run, fold)
        digest = folds_file.digest(fold_table)
        config = {"run": run, "folds_digest": digest, "experiment": {"name": run}}
        storage.write_json(folder.config, config)
        held = range(fold, N, 2)
        trained_on = tuple(name for i, name in enumerate(IDS) if i not in held)
        lineage = Lineage(images=trained_on, chosen_on=()).model_dump(mode="json")
        meta = {"run": run, "fold": fold, "lineage": lineage}
        predicted = [(IDS[i], maps.Prediction(level_map(run, i, i % 4 == 3))) for i in held]
        for path in (folder.oof, folder.oof_last):
            maps.write(path, predicted, meta)
        tests = [(f"t{i}", maps.Prediction(level_map(f"{run}{fold}", i))) for i in range(6)]
        maps.write(folder.test, tests, meta)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Radiographs as PNGs with an RLE table, and six test images, none of them damaged."""
    root, random = tmp_path / "data", np.random.default_rng(5)
    for i, row in enumerate(table().itertuples()):
        pixels = random.integers(0, 200, (row.height, row.width), dtype=np.uint8)
        write_png(root / "train" / f"{row.image_id}.png", pixels + 5 * truth_of(i))
    columns = ["ImageId", "EncodedPixels"]
    listed = table()[["image_id", "rle"]].set_axis(columns, axis=1)
    listed.to_csv(root / "train-rle.csv", index=False)
    for i in range(6):
        pixels = random.integers(0, 200, SHAPES[i % 3], dtype=np.uint8)
        write_png(root / "test" / f"t{i}.png", pixels)
    sample = pd.DataFrame([(f"t{i}", "-1") for i in range(6)], columns=columns)
    sample.to_csv(root / "sample_submission.csv", index=False)
    return root


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working folder with three runs; no mounts but the test's own."""
    monkeypatch.setenv("KERNEL_LIB_MOUNTS", str(tmp_path / "mounts"))
    monkeypatch.setattr(report, "write", lambda *args, **options: None)
    folder = tmp_path / "work"
    folder.mkdir()
    folds_file.save(table(), folder / "folds.csv")
    for run in "abc":
        make_run(folder, run, table())
    return folder


def searched(work: Path, runs: str = "a", **options) -> Path:
    parameters = {"runs": runs, "ensemble": "e", "work_dir": str(work), "bootstrap": 100}
    return stage.run(ThresholdsParameters(**parameters, **options)).folder


def payload_of(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    return json.loads(text.group(1))


def unpacked(payload: dict) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(payload["packed"])), np.uint8)
    return planes.reshape(4, -1).T.copy().view("<i4").ravel()


def pixels_of(text: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_GRAYSCALE)


def run_view(*arguments: object):
    return CliRunner().invoke(main, ["view", *map(str, arguments)])


def test_a_run_s_numbers_are_those_of_the_search(work):
    folder = searched(work)
    data = load_viewer_data(folder)
    (model,), (stats,) = data.models, data.stats
    rule = Decision.load(folder).choice.triplet
    assert (model.name, model.rule) == ("a", rule)
    with np.load(folder / "oof_statistics.npz") as kept:
        assert data.table["image_id"].tolist() == kept["image_id"].tolist()
        for name in ("hist_all", "hist_true", "n_px"):
            assert np.array_equal(getattr(stats, name), kept[name])
    payload = payload_of(viewer(folder).html)
    expected = [stats.hist_all.ravel(), stats.hist_true.ravel(), np.full(N, -1)]
    assert np.array_equal(unpacked(payload), np.concatenate(expected))
    rule = {"label": None} | rule.to_json()
    assert payload["models"] == [{"name": "a", "labels": False, "rule": rule}]
    assert payload["truth"]
    assert payload["images"]["id"] == data.table["image_id"].tolist()
    assert payload["images"]["height"] == data.table["height"].tolist()


def test_embedded_pictures_are_the_image_s_own_maps_truth_and_pixels(work, data_dir):
    folder = searched(work)
    made = viewer(folder, data_dir=data_dir)
    payload = payload_of(made.html)
    rows = load_viewer_data(folder).table
    assert made.n_embedded == made.n_images == len(payload["pictures"]) == N
    for picture in payload["pictures"]:
        row = rows.iloc[picture["row"]]
        i = IDS.index(row["image_id"])
        assert picture["size"] == [row["width"], row["height"]]
        assert np.array_equal(pixels_of(picture["truth"]) == 255, truth_of(i))
        shown = maps.at_shape(level_map("a", i, i % 4 == 3), (row["height"], row["width"]))
        assert np.array_equal(pixels_of(picture["maps"][0]), shown)
        file = data_dir / "train" / f"{row['image_id']}.png"
        difference = pixels_of(picture["image"]).astype(int) - images.read(file)
        assert np.abs(difference).mean() < 20  # JPEG of noise


def test_a_smaller_picture_keeps_areas_unbiased_and_the_side_in_bounds(work):
    (picture,) = payload_of(viewer(searched(work), size=16, ids=["i02"]).html)["pictures"]
    assert picture["size"] == [16, 16]  # of 64 × 64
    assert np.array_equal(pixels_of(picture["truth"]) == 255, truth_of(2)[::4, ::4])


def test_several_runs_stand_beside_their_mean(work):
    data = load_viewer_data(searched(work, "a,b,c"))
    assert [model.name for model in data.models] == ["mean of 3 runs", "a", "b", "c"]
    assert data.vote is None
    row = data.table["image_id"].tolist().index("i06")
    own = [level_map(run, 6) for run in "abc"]
    for shown, stats, levels in zip(
        data.maps(row), data.stats, [maps.mean(own), *own], strict=True
    ):
        assert np.array_equal(shown, maps.at_shape(levels, SHAPES[0]))
        counts = np.bincount(levels.ravel(), minlength=256)  # 32 × 32: its own size
        assert np.array_equal(stats.hist_all[row], counts)
    assert payload_of(render(data).html)["one_rule"]


@pytest.mark.parametrize("combine", ["member_vote", "member_union"])
def test_a_vote_s_areas_are_those_of_the_masks_for_every_k(work, combine):
    folder = searched(work, "a,b,c", combine=combine)
    data = load_viewer_data(folder)
    choice = Decision.load(folder).choice
    assert [model.rule for model in data.models] == list(choice.rules)
    assert (data.vote.models, data.vote.at_least) == ((0, 1, 2), choice.at_least)
    for row in (0, 3, 8):
        masks = list(map(apply_rule, data.maps(row), choice.rules))
        votes = np.sum(masks, axis=0)
        truth = rle.decode(data.table["rle"].iloc[row], votes.shape)
        for k in (1, 2, 3):
            shared, area = data.vote.counts[row, k - 1]
            if combine == "member_vote":
                assert area == (votes >= k).sum()
                assert shared == ((votes >= k) & (truth == 1)).sum()
            else:  # any pixel, once k members predict a mask
                assert area in (0, (votes >= 1).sum())
                assert area == 0 or sum(mask.any() for mask in masks) >= k
    payload = payload_of(render(data).html)
    assert payload["vote"]["union"] == (combine == "member_union")
    tail = unpacked(payload)[3 * (2 * N * 256 + N) :].reshape(2, N, 3)
    assert np.array_equal(tail, np.moveaxis(data.vote.counts[:, :, ::-1], 2, 0))


def test_a_gate_by_the_sum_gives_each_model_its_own_label(work):
    data = load_viewer_data(searched(work, "a,b", gate="sum"))
    models = payload_of(render(data).html)["models"]
    assert [model["labels"] for model in models] == [True] * 3
    for stats in data.stats:
        assert np.array_equal(stats.label, gate_by_sum(stats).label)


@pytest.mark.parametrize("combine", ["mean", "vote", "member_vote"])
def test_test_images_get_the_masks_that_are_submitted(work, data_dir, combine):
    folder = searched(work, "a,b", combine=combine)
    data = load_viewer_data(folder, test=True, data_dir=data_dir)
    payload = payload_of(render(data).html)
    assert not payload["truth"]
    assert payload["images"]["fold"] == [None] * 6
    assert [picture["truth"] for picture in payload["pictures"]] == [None] * 6
    choice = Decision.load(folder).choice
    submitted = dict(masks_of_test(Ensemble.load(folder), [work], data.table, choice))
    expected = [submitted[name].sum() for name in data.table["image_id"]]
    if data.vote is None:
        assert areas(data.stats[0], choice.triplet).tolist() == expected
    else:
        assert data.vote.counts[:, data.vote.at_least - 1, 1].tolist() == expected


def test_test_images_need_the_folder_that_states_their_size(work):
    with pytest.raises(InputError, match="--data DIR"):
        load_viewer_data(searched(work), test=True)


def test_an_unreadable_test_image_is_left_out_and_named(work, data_dir):
    (data_dir / "test" / "t2.png").write_bytes(b"no picture")
    data = load_viewer_data(searched(work), test=True, data_dir=data_dir)
    assert data.table["image_id"].tolist() == ["t0", "t1", "t3", "t4", "t5"]
    assert any("t2.png" in note for note in data.notes)


def test_a_test_image_that_only_states_its_size_is_shown_without_its_radiograph(work, data_dir):
    write_png(data_dir / "test" / "t2.png", np.zeros(SHAPES[2], np.uint8))
    payload = payload_of(viewer(searched(work), test=True, data_dir=data_dir).html)
    bare = [picture["row"] for picture in payload["pictures"] if not picture["image"]]
    assert [payload["images"]["id"][row] for row in bare] == ["t2"]


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
    write_png(other / "x.png", np.arange(1024, dtype=np.uint8).reshape(32, 32))
    done = run_view(folder, "--data", other)
    assert done.exit_code == 1
    assert f"Error: {other} holds none of the 20 images of e" in done.output
    assert not (folder / "viewer.html").exists()


def test_images_that_a_data_folder_lacks_are_counted(work, data_dir):
    folder = searched(work)
    for name in ("i00", "i01"):
        (data_dir / "train" / f"{name}.png").unlink()
    done = run_view(folder, "--data", data_dir)
    assert done.exit_code == 0, done.output
    assert "20 of 20 images embedded (2 without their radiograph)" in done.output
    notes = payload_of((folder / "viewer.html").read_text(encoding="utf-8"))["notes"]
    assert any("holds 18 of the 20 images of e" in note for note in notes)
    (data_dir / "test" / "t3.png").unlink()
    notes = load_viewer_data(folder, test=True, data_dir=data_dir / "test").notes
    assert any("holds 5 of 6 test images" in note for note in notes)


def test_radiographs_without_labels_will_do(work, data_dir):
    (data_dir / "train-rle.csv").unlink()
    shown = viewer(searched(work), data_dir=data_dir / "train")
    assert (shown.n_embedded, shown.n_radiographs) == (20, 20)


@pytest.mark.parametrize(("n_other", "refused"), [(0, False), (4, False), (10, True), (20, True)])
def test_other_pictures_under_the_images_ids_are_refused_or_named(work, data_dir, n_other, refused):
    """By the fingerprints of the training images, which those of another fold are."""
    files = {name: data_dir / "train" / f"{name}.png" for name in IDS}
    codes = {name: fingerprint.code(images.read(path)) for name, path in files.items()}
    for fold in (0, 1):
        folder = fold_run.fold_folder(work, "a", fold)
        for path in (folder.oof, folder.oof_last):
            archive = maps.Maps(path)
            lineage = archive.meta["lineage"]
            lineage = lineage | {"fingerprints": [codes[i] for i in lineage["images"]]}
            kept = [(i, maps.Prediction(archive[i])) for i in archive.ids]
            maps.write(path, kept, archive.meta | {"lineage": lineage})
    random = np.random.default_rng(9)
    for i, name in enumerate(IDS[:n_other]):
        write_png(files[name], random.integers(0, 200, SHAPES[i % 3], dtype=np.uint8))
    folder = searched(work)
    if refused:
        with pytest.raises(InputError, match=f"other radiographs.*{n_other} of 20 compared"):
            load_viewer_data(folder, data_dir=data_dir)
        return
    notes = load_viewer_data(folder, data_dir=data_dir).notes
    named = [note for note in notes if "are not those trained on" in note]
    assert bool(named) == bool(n_other)
    for note in named:
        assert note.startswith("4 of 20")
        assert all(name in note for name in IDS[:4])


def test_notes_state_what_is_missing_and_that_means_are_in_sample(work):
    notes = payload_of(viewer(searched(work)).html)["notes"]
    assert "Pictures of 20 of 20 images are embedded, at up to 512 px" in notes[0]
    assert "in sample" in notes[1]
    assert 'the nested cross-validated ("honest") score: ' in notes[1]
    assert notes[2] == "No radiographs: give the data folder to see them."


def test_the_limit_holds_and_images_are_embedded_in_the_order_of_the_ranking(work, data_dir):
    data = load_viewer_data(searched(work), data_dir=data_dir)
    complete, bare = render(data), render(data, count=0)
    assert bare.n_embedded == 0
    limit = (len(bare.html) + len(complete.html)) / 2 / MB
    made = render(data, max_mb=limit)
    assert 0 < made.n_embedded < N
    assert len(made.html.encode()) <= limit * MB
    order = rank_images(data.stats[0], data.models[0].rule)
    rows = [picture["row"] for picture in payload_of(made.html)["pictures"]]
    assert rows == order[: len(rows)]
    assert f"{made.n_embedded} of 20 images" in str(made)
    with pytest.raises(InputError, match=r"max_mb is 0\.001, but the numbers of 20 images"):
        render(data, max_mb=0.001)
    with pytest.raises(InputError, match=f"holds {made.n_embedded} of the 20 images asked for"):
        render(data, ids=data.table["image_id"].iloc[order].tolist(), max_mb=limit)


def test_members_are_left_out_where_their_numbers_do_not_fit(work):
    data = load_viewer_data(searched(work, "a,b,c"))
    mean = replace(data, models=data.models[:1], stats=data.stats[:1])
    payload = payload_of(render(data, max_mb=(len(render(mean, count=0).html) + 5000) / MB).html)
    assert [model["name"] for model in payload["models"]] == ["mean of 3 runs"]
    assert any("The 3 members beside their mean are left out" in note for note in payload["notes"])


def test_a_notebook_of_a_stage_shows_the_error_and_goes_on(work):
    folder = searched(work)
    assert "20 of 20 images embedded" in str(viewer_or_why(folder))
    shown = viewer_or_why(folder, max_mb=0.001)
    assert shown.figure is None
    assert shown.sentence.startswith("No viewer: max_mb is 0.001")


def test_images_asked_for_are_embedded_and_an_unknown_id_is_named(work):
    folder = searched(work)
    payload = payload_of(viewer(folder, ids=["i07", ODD]).html)
    rows = [picture["row"] for picture in payload["pictures"]]
    assert [payload["images"]["id"][row] for row in rows] == ["i07", ODD]
    with pytest.raises(InputError, match="image i077 is none of the 20 of e, out of fold; the nea"):
        viewer(folder, ids=["i077"])


def test_the_command_line_writes_the_page(work):
    folder = searched(work)
    done = run_view(folder, "--ids", "i00,i01", "--size", "24")
    assert done.exit_code == 0, done.output
    assert "2 of 20 images embedded" in done.output
    assert len(payload_of((folder / "viewer.html").read_text(encoding="utf-8"))["pictures"]) == 2
    failed = run_view(folder, "--ids", "nobody")
    assert failed.exit_code == 1
    assert "Error: image nobody is none of the 20" in failed.output


def test_in_a_notebook_it_is_a_frame_of_its_own(work):
    made = viewer(searched(work))
    size_mb = len(made.html.encode()) / 1e6
    text = f"20 of 20 images embedded (20 without their radiograph), {size_mb:.1f} MB"
    assert repr(made) == f"Viewer: {text}", "as a log shows it"
    shown = made._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count('"') == 6  # nothing of the page ends the attribute


def test_the_page_computes_what_python_computes(work, data_dir, open_page):
    """In a browser, for an ensemble that votes: every model under other rules, and every k."""
    data = load_viewer_data(searched(work, "a,b,c", combine="member_vote"), data_dir=data_dir)
    page = open_page(render(data).html)
    page.evaluate("viewer.ready")
    random = np.random.default_rng(2)
    for at, stats in enumerate(data.stats):
        for _ in range(20):
            bottom, top = np.sort(random.random(2))
            rule = Triplet(top, int(random.integers(0, 200_000)), bottom)
            asked = [at, {"label": None} | rule.to_json()]
            shown = page.evaluate("([at, rule]) => viewer.evaluate(at, rule)", asked)
            dice = per_image_dice(stats, rule)
            assert shown["areas"] == areas(stats, rule).tolist()
            assert shown["dice"] == dice.tolist()
            assert shown["mean"] == pytest.approx(dice.mean(), abs=1e-12)
    for k in (1, 2, 3):
        shared, area = data.vote.counts[:, k - 1].T
        shown = page.evaluate(f"viewer.evaluateVote({k}).dice")
        assert shown == dice_of_counts(shared, area, data.stats[0].true_px).tolist()


@pytest.mark.slow
def test_a_saved_notebook_shows_it_without_a_kernel(work, tmp_path, browser):
    """Executed, converted by nbconvert, opened from the disk with the network off."""
    folder = searched(work)
    cell = nbformat.v4.new_code_cell(
        f"from kernel_lib.viewer.document import viewer\nviewer({str(folder)!r})"
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
    rule = Decision.load(folder).choice.triplet
    mean = frame.evaluate(
        "(rule) => viewer.evaluate(0, rule).mean", {"label": None} | rule.to_json()
    )
    expected = per_image_dice(load_viewer_data(folder).stats[0], rule).mean()
    assert mean == pytest.approx(expected, abs=1e-12)
    assert f"{expected:.6f}" in frame.locator("body").inner_text()
    context.close()


def test_the_ranking_takes_one_image_of_each_kind_in_turn():
    size = 1024 * 1024
    rows = np.array([  # px at level 200, of them in the truth, px of the truth at level 0
        (5000, 4900, 100),  # highest Dice
        (5000, 1000, 4000),  # lowest Dice
        (0, 0, 9000),  # false negative
        (8000, 0, 0),  # false positive
        (0, 0, 0),  # true negative
        (950, 900, 50),  # false negative for want of a few px: the borderline case
        (5000, 3000, 2000),  # between
    ])  # fmt: skip
    hist_all, hist_true = np.zeros((2, len(rows), 256), np.int64)
    hist_all[:, 200], hist_all[:, 0] = rows[:, 0], size - rows[:, 0]
    hist_true[:, 200], hist_true[:, 0] = rows[:, 1], rows[:, 2]
    stats = Stacked(hist_all, hist_true, np.full(len(rows), size), np.ones(len(rows), dtype=bool))
    rule = Triplet(0.5, 1000, 0.5)
    assert rank_images(stats, rule) == [1, 2, 3, 5, 0, 4, 6]
    unknown = replace(stats, hist_true=0 * hist_true, has_truth=np.zeros(len(rows), dtype=bool))
    assert rank_images(unknown, rule) == [3, 5, 0, 1, 2, 6, 4]


def test_a_picker_shows_the_chosen_image(work):
    ipywidgets = pytest.importorskip("ipywidgets")
    box = picking.picker(searched(work))
    assert isinstance(box, ipywidgets.VBox)
    combobox, frame = box.children
    assert len(combobox.options) == N
    first = frame.value
    combobox.value = next(label for label in combobox.options if label.startswith("i05"))
    chosen = frame.value
    assert chosen != first
    assert "i05" in chosen
    combobox.value = "half typed"
    assert frame.value == chosen


def test_the_picker_s_areas_are_px_of_1024(work):
    data = load_viewer_data(searched(work))
    (stats,), rule = data.stats, data.models[0].rule
    unknown = replace(stats, has_truth=np.zeros(N, dtype=bool))
    area_px = areas(stats, rule) * 2**20 / stats.n_px
    ends = [f" · {area:,.0f} px of 1024²" for area in area_px]
    assert all(map(str.endswith, picking._labels(replace(data, stats=(unknown,))), ends))


def test_without_widgets_the_picker_is_a_viewer(work, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert picking.picker(searched(work)).n_images == N


def test_a_rule_that_predicts_nothing_is_named(work):
    data = load_viewer_data(searched(work))
    none = replace(data.models[0], rule=Triplet(0.5, 1024 * 1024 + 1, 0.5))
    for model, named in ((data.models[0], False), (none, True)):
        notes = payload_of(render(replace(data, models=(model,)), count=0).html)["notes"]
        assert any("predicts nothing" in note for note in notes) == named
