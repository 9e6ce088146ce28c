"""From an ensemble's folder to a page in a browser: models, numbers, pictures, what is missing."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from kernel_lib.__main__ import main
from kernel_lib.artifacts import fold_run, folds_file, maps
from kernel_lib.artifacts.decision import Decision
from kernel_lib.artifacts.ensemble import Ensemble
from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import ThresholdsParameters
from kernel_lib.data import fingerprint, images, rle
from kernel_lib.errors import InputError
from kernel_lib.inference.ensemble_maps import test_masks as masks_of_test
from kernel_lib.postprocess.histograms import (
    Stacked,
    areas,
    gate_by_sum,
    per_image_dice,
    stack,
    statistics,
)
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.stages import report
from kernel_lib.stages import thresholds as stage
from kernel_lib.viewer import document
from kernel_lib.viewer.data import ViewerData, Vote, load_viewer_data, rank_images
from kernel_lib.viewer.document import MB, pack, page, picker, render, viewer, viewer_or_why
from tests.configs import write_config

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
    masks = [truth_of(i) for i in range(N)]
    rows = [
        (image_id, i % 2, "", *mask.shape, int(mask.sum()), rle.encode(mask))
        for i, (image_id, mask) in enumerate(zip(IDS, masks, strict=True))
    ]
    return pd.DataFrame(rows, columns=list(folds_file.COLUMNS))


def level_map(run: str, i: int, diagonal: bool = False) -> np.ndarray:
    seeded = np.random.default_rng([i, *run.encode()])
    mask = np.eye(SIZE, dtype=np.uint8) if diagonal else cv2.resize(truth_of(i), (SIZE, SIZE))
    return (mask * seeded.integers(60, 160) + seeded.integers(0, 90, mask.shape)).astype(np.uint8)


def make_run(work: Path, run: str) -> None:
    """Write two folds with held-out predictions and those of six test images."""
    for fold in (0, 1):
        folder = fold_run.fold_folder(work, run, fold)
        write_config(folder, folds_file.digest(table()))
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


def noise(random: np.random.Generator, i: int) -> np.ndarray:
    return random.integers(0, 200, SHAPES[i % 3], dtype=np.uint8)


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """Radiographs as PNGs with an RLE table, and six test images, none of them damaged."""
    root, random = tmp_path / "data", np.random.default_rng(5)
    for i, image_id in enumerate(IDS):
        write_png(root / "train" / f"{image_id}.png", noise(random, i) + 5 * truth_of(i))
    columns = ["ImageId", "EncodedPixels"]
    table()[["image_id", "rle"]].to_csv(root / "train-rle.csv", index=False, header=columns)
    for i in range(6):
        write_png(root / "test" / f"t{i}.png", noise(random, i))
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
        make_run(folder, run)
    return folder


def searched(work: Path, runs: str = "a", **options) -> Path:
    parameters = {"runs": runs, "ensemble": "e", "work_dir": str(work), "bootstrap": 100}
    return stage.run(ThresholdsParameters(**parameters, **options)).folder


def payload_of(page: str) -> dict:
    text = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    return json.loads(text.group(1))


def embedded_ids(payload: dict) -> list[str]:
    return [payload["images"]["id"][picture["row"]] for picture in payload["pictures"]]


def unpacked(packed: str) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
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
    assert np.array_equal(unpacked(payload["packed"]), np.concatenate(expected))
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
    (picture,) = payload_of(viewer(folder, size=16, ids=["i02"]).html)["pictures"]
    assert picture["size"] == [16, 16]  # of 64 × 64
    assert np.array_equal(pixels_of(picture["truth"]) == 255, truth_of(2)[::4, ::4])


def test_several_runs_stand_beside_their_mean(work):
    data = load_viewer_data(searched(work, "a,b,c"))
    assert [model.name for model in data.models] == ["mean of 3 runs", "a", "b", "c"]
    assert data.vote is None
    row = data.table["image_id"].tolist().index("i06")
    own = [level_map(run, 6) for run in "abc"]
    own = [maps.mean(own), *own]
    for shown, stats, levels in zip(data.maps(row), data.stats, own, strict=True):
        assert np.array_equal(shown, maps.at_shape(levels, SHAPES[0]))
        counts = np.bincount(levels.ravel(), minlength=256)  # 32 × 32: its own size
        assert np.array_equal(stats.hist_all[row], counts)
    assert payload_of(render(data).html)["one_rule"]
    mean = replace(data, models=data.models[:1], stats=data.stats[:1])
    payload = payload_of(render(data, max_mb=(len(render(mean, count=0).html) + 5000) / MB).html)
    assert [model["name"] for model in payload["models"]] == ["mean of 3 runs"]
    assert any("The 3 members beside their mean are left out" in note for note in payload["notes"])


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
    tail = unpacked(payload["packed"])[3 * (2 * N * 256 + N) :].reshape(2, N, 3)
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


def test_test_images_need_the_folder_that_states_their_size_and_may_be_unreadable(work, data_dir):
    folder = searched(work)
    with pytest.raises(InputError, match="--data DIR"):
        load_viewer_data(folder, test=True)
    (data_dir / "test" / "t2.png").write_bytes(b"no picture")
    write_png(data_dir / "test" / "t4.png", np.zeros(SHAPES[1], np.uint8))  # states its size only
    payload = payload_of(viewer(folder, test=True, data_dir=data_dir).html)
    assert payload["images"]["id"] == ["t0", "t1", "t3", "t4", "t5"]
    assert any("t2.png" in note for note in payload["notes"])
    bare = [picture["row"] for picture in payload["pictures"] if not picture["image"]]
    assert [payload["images"]["id"][row] for row in bare] == ["t4"]


def test_without_out_of_fold_results_the_stage_that_makes_them_is_named(work, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"nothing is no ensemble's folder.*the thresholds stage"):
        viewer(tmp_path / "nothing")
    folder = searched(work)
    for path, fix in ((fold_run.fold_folder(work, "a", 1).oof, ": the train stage"),
                      (work / "folds.csv", "")):  # fmt: skip
        path.unlink()
        with pytest.raises(InputError, match=f"{path.name} is missing{fix}"):
            viewer(folder)


def test_a_data_folder_without_the_ensemble_s_images_is_refused(work, tmp_path):
    """Their pictures would all be black, as if the masks were drawn on nothing."""
    folder, other = searched(work), tmp_path / "other"
    write_png(other / "x.png", np.arange(1024, dtype=np.uint8).reshape(32, 32))
    done = run_view(folder, "--data", other)
    assert done.exit_code == 1
    assert f"Error: {other} holds none of the 20 images of e" in done.output
    assert not (folder / "viewer.html").exists()


def test_radiographs_need_no_labels_and_those_that_a_data_folder_lacks_are_counted(work, data_dir):
    folder = searched(work)
    (data_dir / "train-rle.csv").unlink()
    assert viewer(folder, data_dir=data_dir / "train").n_radiographs == N
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
        write_png(files[name], noise(random, i))
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
    data = load_viewer_data(searched(work))
    notes = payload_of(render(data).html)["notes"]
    assert "Pictures of 20 of 20 images are embedded, at up to 512 px" in notes[0]
    assert "in sample" in notes[1]
    assert 'the nested cross-validated ("honest") score: ' in notes[1]
    assert notes[2:] == ["No radiographs: give the data folder to see them."]
    none = replace(data.models[0], rule=Triplet(0.5, 1024 * 1024 + 1, 0.5))
    assert "predicts nothing" in payload_of(render(replace(data, models=(none,))).html)["notes"][3]


def test_the_limit_holds_and_images_are_embedded_in_the_order_of_the_ranking(work, data_dir):
    folder = searched(work)
    data = load_viewer_data(folder, data_dir=data_dir)
    complete, bare = render(data), render(data, count=0)
    assert bare.n_embedded == 0
    limit = (len(bare.html) + len(complete.html)) / 2 / MB
    made = render(data, max_mb=limit)
    assert 0 < made.n_embedded < N
    assert len(made.html.encode()) <= limit * MB
    order = data.table["image_id"].iloc[rank_images(data.stats[0], data.models[0].rule)].tolist()
    assert embedded_ids(payload_of(made.html)) == order[: made.n_embedded]
    assert f"{made.n_embedded} of 20 images" in str(made)
    with pytest.raises(InputError, match=f"holds {made.n_embedded} of the 20 images asked for"):
        render(data, ids=order, max_mb=limit)
    # A notebook of a stage shows the error and goes on.
    shown = viewer_or_why(folder, max_mb=0.001)
    assert shown.figure is None
    assert "No viewer: max_mb is 0.001, but the numbers of 20 images" in shown.sentence
    assert "20 of 20 images embedded" in str(viewer_or_why(folder))


def test_the_command_line_embeds_the_images_asked_for_and_names_an_unknown_id(work):
    folder = searched(work)
    done = run_view(folder, "--ids", f"i07, {ODD}", "--size", "24")
    assert done.exit_code == 0, done.output
    assert "2 of 20 images embedded" in done.output
    text = (folder / "viewer.html").read_text(encoding="utf-8")
    assert embedded_ids(payload_of(text)) == ["i07", ODD]
    failed = run_view(folder, "--ids", "i077")
    assert failed.exit_code == 1
    assert "Error: image i077 is none of the 20 of e, out of fold; the nearest is " in failed.output


def test_in_a_notebook_it_is_a_frame_of_its_own(work):
    made = viewer(searched(work))
    size_mb = len(made.html.encode()) / 1e6
    text = f"20 of 20 images embedded (20 without their radiograph), {size_mb:.1f} MB"
    assert repr(made) == f"Viewer: {text}", "as a log shows it"
    shown = made._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert shown.count('"') == 6  # nothing of the page ends the attribute


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
    opened = context.new_page()
    opened.goto(file.as_uri())
    frame = opened.frames[1]
    frame.evaluate("viewer.ready")
    rule = Decision.load(folder).choice.triplet
    mean = frame.evaluate("rule => viewer.evaluate(0, rule).mean", asdict(rule))
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


def test_a_picker_shows_the_chosen_image(work, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    folder = searched(work)
    box = picker(folder)
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
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert picker(folder).n_images == N, "without widgets it is a viewer"


def test_without_truth_the_picker_names_areas_in_px_of_1024(work):
    data = load_viewer_data(searched(work))
    (stats,), rule = data.stats, data.models[0].rule
    unknown = replace(stats, has_truth=np.zeros(N, dtype=bool))
    area_px = areas(stats, rule) * 2**20 / stats.n_px
    ends = [f" · {area:,.0f} px of 1024²" for area in area_px]
    assert all(map(str.endswith, document._labels(replace(data, stats=(unknown,))), ends))


# The page in a browser

ODD_IDS = [
    "<img src=x onerror=\"window.hacked='id'\">",
    "</script><script>window.hacked='script'</script>",
    "<!--<script>",
    "\"double\" and 'single' quotes",
    "&amp; &lt;b&gt;",
    "radiograph 🫁 of Ærø",
    "back\\slash {{brace}} \u2028 $& <!-- style -->",
]
LONG_NAME = "deeplabv3plus_supervision_resnet_1024_v1_seed345{}_size768_epochs12"
TRUTH, PREDICTION = (255, 176, 0), (79, 195, 247)
RULE = Triplet(0.6, 2000, 0.3)
# What is cut off although no title gives it in full, number boxes at their largest values, controls
# that lie over one another, and a page wider than its window.
CUT_OFF = """() => {
  const wrong = [];
  const name = (item) => `${item.tagName} ${item.id} ${item.className} ${item.textContent}`;
  for (const box of document.querySelectorAll("input[type=number]")) {
    box.value = box.max > 1 || /area|truth/.test(box.id) ? "1048577" : "0.9980";
  }
  const shown = [...document.querySelectorAll("body *")].filter((item) => item.checkVisibility());
  for (const item of shown) {
    const hides = getComputedStyle(item).overflowX !== "visible";
    // Both widths are rounded: at a fraction of a pixel they differ by 1 where nothing is cut.
    const cut = item.scrollWidth > item.clientWidth + 1;
    if (hides && cut && (item.type === "number" || !item.title)) wrong.push(name(item));
  }
  const placed = (item) => {
    const box = item.getBoundingClientRect();
    const within = item.parentElement.closest("#shown, #panel, #list")?.getBoundingClientRect();
    const bottom = Math.min(box.bottom, within?.bottom ?? Infinity);
    return { item, left: box.left, right: box.right, top: box.top, bottom };
  };
  const controls = shown.filter((item) => item.matches("button, select, input, label")).map(placed);
  for (const a of controls) for (const b of controls) {
    if (a === b || a.item.contains(b.item) || b.item.contains(a.item)) continue;
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) wrong.push(`${name(a.item)} over ${name(b.item)}`);
  }
  const { scrollWidth } = document.documentElement;
  return scrollWidth > innerWidth ? [...wrong, `${scrollWidth} px of ${innerWidth}`] : wrong;
}"""
ONLY = """layers => {
  const set = (id, name, value, event) => {
    const field = document.getElementById(id);
    if (!field) return;
    field[name] = value;
    field.dispatchEvent(new Event(event));
  };
  for (const name of ["image", "probability", "prediction", "truth"]) {
    set(`${name}-on`, "checked", layers.includes(name), "change");
    set(`${name}-opacity`, "value", 1, "input");
    set(`${name}-fill`, "checked", true, "change");
    set(`${name}-contour`, "checked", false, "change");
  }
}"""


@dataclass
class Case:
    """The content of a page: its images, their maps (a list for each model) and true masks."""

    payload: dict
    masks: list[np.ndarray]
    maps: list[list[np.ndarray]]
    stats: list[Stacked]

    def areas(self, rule: Triplet, model: int = 0) -> np.ndarray:
        return areas(self.stats[model], rule)

    def dice(self, rule: Triplet, model: int = 0) -> np.ndarray:
        return per_image_dice(self.stats[model], rule)

    def scaled(self, areas_px: np.ndarray) -> np.ndarray:
        return areas_px * 2**20 / self.stats[0].n_px


@dataclass
class Model:
    """A model of a viewer with the maps of its images."""

    name: str
    rule: Triplet
    maps: dict[str, np.ndarray]

    def predict(self, image: tuple) -> tuple[np.ndarray, None]:
        return self.maps[image.image_id], None


def make(
    n: int = 40, rules: tuple[Triplet, ...] = (RULE,), labels: bool = False, **options
) -> Case:
    """Return random images of several sizes; options are those of `case_of`."""
    rng = np.random.default_rng(0)
    shapes = [(int(h), int(w)) for h, w in rng.integers(20, 70, (n, 2))]
    masks = [_blob(rng, shape) > 0.5 if rng.random() < 0.6 else np.zeros(shape) for shape in shapes]
    maps = [[_prob(rng, mask) for mask in masks] for _ in rules]
    levels = [rng.integers(0, 256, n).tolist() if labels else [None] * n for _ in rules]
    return case_of(masks, maps, rules, levels, **options)


def case_of(
    masks: list[np.ndarray],
    maps: list[list[np.ndarray]],
    rules: tuple[Triplet, ...],
    levels: list[list] | None = None,
    *,
    ids: list[str] | None = None,
    truth: bool = True,
    vote: int = 0,
    combine: str = "member_vote",
    embed: int | None = None,
) -> Case:
    """Return a page of these images; `vote` is the minimum of a vote of all models."""
    n, rng = len(masks), np.random.default_rng(1)
    ids = ids or [f"case-{rng.integers(1e6):06d}-{row}" for row in range(n)]
    images = pd.DataFrame(ids, columns=["image_id"]).assign(fold=rng.integers(0, 5, n))
    images[["height", "width"]] = [mask.shape for mask in masks]
    images["rle"] = [rle.encode(mask.astype(np.uint8)) if truth else None for mask in masks]
    models, stats = [], []
    for m, rule in enumerate(rules):
        models.append(Model(f"seed {m}", rule, dict(zip(ids, maps[m], strict=True))))
        known, level = masks if truth else [None] * n, levels[m] if levels else [None] * n
        stats.append(stack(map(statistics, maps[m], known, level)))
    case = Case({}, masks, maps, stats)
    voting = None
    if vote:
        counts = [
            [((v >= k) & (mask > 0)).sum(), (v >= k).sum()]
            for v, mask in zip(votes_of(case, rules), masks, strict=True)
            for k in range(1, len(rules) + 1)
        ]
        voting = Vote(tuple(range(len(rules))), vote, combine, np.reshape(counts, (n, -1, 2)))
    data = ViewerData("Phantoms", images, tuple(models), tuple(stats), voting, {}, ())
    case.payload = payload_of(render(data, ids[:embed]).html)
    case.payload |= {"notes": ["The first sentence.", "The second."], "one_rule": False}
    for picture in case.payload["pictures"]:
        width, height = picture["size"]
        gradient = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
        picture["image"] = base64.b64encode(cv2.imencode(".jpg", gradient)[1].tobytes()).decode()
    return case


def votes_of(case: Case, rules: tuple[Triplet, ...]) -> list[np.ndarray]:
    """Return for each image how many models predict a pixel, each under its rule."""
    masks = ([apply_rule(prob, rule) for prob in maps]
             for maps, rule in zip(case.maps, rules, strict=True))  # fmt: skip
    return [np.sum(of_image, axis=0) for of_image in zip(*masks, strict=True)]


def _blob(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random(shape), (0, 0), 6)
    return (noise - noise.min()) / np.ptp(noise) > rng.uniform(0.5, 0.95)


def _prob(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    soft = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 2) * rng.uniform(0.3, 1)
    soft += 0.5 * rng.random() * rng.random(mask.shape)
    return np.rint(255 * np.clip(soft, 0, 1)).astype(np.uint8)


@pytest.fixture
def open_case(open_page):
    """`open_case(case, **options)` opens a page and waits for its numbers and first picture."""
    return lambda case, **options: ready(open_page(page(case.payload), **options))


def ready(opened):
    opened.evaluate("async () => { await viewer.ready; await viewer.shown() }")
    return opened


def texts(opened, selector: str) -> list[str]:
    return opened.eval_on_selector_all(selector, "all => all.map(item => item.textContent)")


def enter(opened, selector: str, value: object) -> None:
    opened.locator(selector).fill(str(value))
    opened.keyboard.press("Enter")


def choose(opened, row: int) -> None:
    opened.evaluate("row => viewer.choose(row)", row)


def chosen_row(opened) -> int:
    return opened.evaluate("viewer.state.chosen")


def listed_rows(opened) -> list[int]:
    return opened.evaluate("Array.from(viewer.state.order)")


def rules_of(opened, field: str) -> list[float]:
    return opened.evaluate("field => viewer.state.rules.map(rule => rule[field])", field)


def only(opened, *layers: str) -> None:
    """Show these layers only, filled, opaque, without contours."""
    opened.evaluate(ONLY, layers)


def canvas_pixels(opened, pane: int = 0) -> np.ndarray:
    """Return RGB (H, W, 3) of a pane's canvas."""
    script = "k => document.querySelectorAll('#panes canvas')[k].toDataURL('image/png')"
    png = base64.b64decode(opened.evaluate(script, pane).partition(",")[2])
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def predicted_px(opened) -> int:
    """Return the pixels of the prediction on the canvas at 1:1."""
    opened.locator("#one-to-one").click()
    only(opened, "prediction")
    return count_of(canvas_pixels(opened), PREDICTION)


def count_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def random_triplets(rng: np.random.Generator, n: int, labels: bool) -> list[Triplet]:
    """Return thresholds on levels, beside them and anywhere; areas up to most of the image."""
    triplets = []
    for _ in range(n):
        kinds = [rng.random(), float(rng.integers(0, 256)) / 255, round(rng.random(), 2), 0.0, 1.0]
        top, bottom, label = rng.choice(kinds[:3] * 4 + kinds[3:], 3)
        top, bottom = max(top, bottom), min(top, bottom)
        area = int(rng.choice([0, 1, 200, 3500, 17_000, 60_000, 400_000]) * rng.uniform(0.5, 1.5))
        label = label if labels and rng.random() < 0.8 else None
        triplets.append(Triplet(top, area, bottom, label))
    return triplets


@pytest.mark.parametrize("labels", [False, True])
def test_areas_dice_and_means_are_python_s(open_case, labels):
    case = make(300, rules=(RULE, RULE), labels=labels, embed=1)
    rules = random_triplets(np.random.default_rng(1), 240, labels)
    asked = [[k % 2, asdict(rule)] for k, rule in enumerate(rules)]
    script = "asked => JSON.stringify(asked.map(pair => viewer.evaluate(...pair)))"
    empty = []
    answers = json.loads(open_case(case).evaluate(script, asked))
    for (model, _), rule, answer in zip(asked, rules, answers, strict=True):
        areas, dice = case.areas(rule, model), case.dice(rule, model)
        assert answer["areas"] == areas.tolist()
        assert answer["dice"] == dice.tolist()
        assert answer["mean"] == pytest.approx(mean_dice(dice), abs=1e-12)
        empty.append((areas == 0).mean())
    assert 0.2 < np.mean(empty) < 0.8  # the triplets do separate masks


@pytest.mark.parametrize("combine", ["member_vote", "member_union"])
def test_a_vote_s_numbers_come_with_the_page(open_case, combine):
    rules = (RULE, Triplet(0.5, 9000, 0.5), Triplet(0.8, 0, 0.1))
    case = make(30, rules, vote=2, combine=combine)
    opened = open_case(case)
    for k in (1, 2, 3):
        answer = opened.evaluate("k => viewer.evaluateVote(k)", k)
        masks = [votes >= k for votes in votes_of(case, rules)]
        areas = [int(mask.sum()) for mask in masks]
        shared = [int((mask & (t > 0)).sum()) for mask, t in zip(masks, case.masks, strict=True)]
        dice = dice_of_counts(shared, areas, case.stats[0].true_px)
        assert answer["areas"] == areas
        assert answer["dice"] == dice.tolist()
        opened.locator("#k").fill(str(k))
        assert texts(opened, "#all-mean td")[0] == f"{mean_dice(dice):.6f}"


@pytest.mark.parametrize("field", ["", "-number"])
def test_each_slider_changes_the_metrics_to_python_s(open_case, field):
    rule = first = Triplet(0.6, 2000, 0.3, 0.2)
    case = make(80, rules=(rule,), labels=True)
    opened = open_case(case)
    chosen, has_truth = mean_dice(case.dice(rule)), case.stats[0].true_px > 0
    for name, place, key, value in (  # the area's slider has places, not areas
        ("top", 0.75, "top", 0.75),
        ("bottom", 0.405, "bottom", 0.405),
        ("label", 0.55, "label", 0.55),
        ("min-area", 100, "min_area_px", 15_000),
    ):
        rule = replace(rule, **{key: value})
        opened.locator(f"#{name}{field}").fill(str(value if field else place))
        if field:
            opened.keyboard.press("Enter")
        dice, areas = case.dice(rule), case.areas(rule)
        now, before, difference = texts(opened, "#all-mean td")
        assert (now, before) == (f"{mean_dice(dice):.6f}", f"{chosen:.6f}")
        assert float(difference) == pytest.approx(mean_dice(dice) - chosen, abs=1e-6)
        assert texts(opened, "#all-positive td")[0] == f"{mean_dice(dice[has_truth]):.6f}"
        assert texts(opened, "#all-with-mask td")[0] == f"{100 * (areas > 0).mean():.2f}"
        kinds = [(has_truth & (areas == 0)).sum(), (~has_truth & (areas > 0)).sum()]
        assert [texts(opened, f"#all-kind-{k} td")[0] for k in (0, 1)] == [str(n) for n in kinds]
        row = chosen_row(opened)
        assert texts(opened, "#chosen-dice") == [f"{dice[row]:.6f}"]
        scaled = math.floor(case.scaled(areas)[row] + 0.5)
        assert texts(opened, "#chosen-mask") == [f"{scaled:,} px of 1024²"]
    opened.locator("#label-on").uncheck()
    off = case.dice(replace(rule, label=None))
    assert texts(opened, "#all-mean td")[0] == f"{mean_dice(off):.6f}"
    opened.locator("#reset").click()
    assert texts(opened, "#all-mean td")[2] == "0.000000"
    assert opened.evaluate("viewer.state.rules[0]") == asdict(first)


def test_thresholds_push_each_other_and_change_for_one_model_or_all(open_case):
    other = Triplet(0.7, 100, 0.2)
    opened = open_case(make(6, rules=(RULE, other)))
    opened.locator("#bottom").fill("0.8")
    assert rules_of(opened, "top") == [0.8, 0.7]
    opened.locator("#top").fill("0.1")
    assert rules_of(opened, "bottom") == [0.1, 0.2]
    assert opened.locator("#bottom-number").input_value() == "0.1"
    opened.select_option("#model", "1")
    assert opened.locator("#top-number").input_value() == "0.7"
    opened.locator("#top").fill("0.9")
    assert rules_of(opened, "top") == [0.1, 0.9]
    opened.locator("#one-rule").check()
    assert rules_of(opened, "top") == [0.9, 0.9]
    opened.locator("#min-area").fill("0")
    assert rules_of(opened, "min_area_px") == [0, 0]
    opened.locator("#reset").click()
    assert opened.evaluate("viewer.state.rules") == [asdict(RULE), asdict(other)]


def test_a_vote_has_no_metrics_once_a_rule_changes(open_case):
    case = make(8, rules=(RULE, RULE, RULE), vote=2)
    opened = open_case(case)
    assert opened.locator("#caution").is_hidden()
    assert opened.locator("#top").is_disabled()
    opened.select_option("#model", "1")
    opened.locator("#top").fill("1")
    opened.select_option("#model", "3")
    assert opened.locator("#caution").is_visible()
    assert texts(opened, "#all-mean td")[0] == "–"
    assert texts(opened, "#chosen-mask") == ["–"]
    # The picture follows: only the other two models predict a mask.
    for row, votes in enumerate(votes_of(case, (RULE, Triplet(1, 2000, 0.3), RULE))):
        choose(opened, row)
        assert predicted_px(opened) == (votes >= 2).sum()
    opened.locator("#reset").click()
    assert opened.locator("#caution").is_hidden()
    assert opened.evaluate("viewer.state.rules[1]") == asdict(RULE)


def test_the_union_of_agreeing_masks_is_drawn(open_case):
    first, second, apart = masks = np.zeros((3, 30, 40), np.uint8)
    first[2:10, 2:10], second[8:16, 8:16], apart[20:28, 30:38] = 255, 255, 255
    rules = (Triplet(0.5, 0, 0.5),) * 3
    maps = [[level_map] for level_map in masks]
    opened = open_case(case_of([0 * first], maps, rules, vote=1, combine="member_union"))
    for k, area in ((1, 64 * 3 - 4), (2, 64 * 2 - 4), (3, 0)):
        opened.locator("#k").fill(str(k))
        assert predicted_px(opened) == area


def images_of(case: Case, rule: Triplet = RULE) -> pd.DataFrame:
    """Return the columns of the page's list as Python has them, a row for each image."""
    areas, truth = case.areas(rule), case.stats[0].true_px
    order = np.where(truth > 0, np.where(areas > 0, 2, 0), np.where(areas > 0, 1, 3))
    kinds = ["false negative", "false positive", "true positive", "true negative"]
    return pd.DataFrame({
        "id": case.payload["images"]["id"], "fold": case.payload["images"]["fold"],
        "kind": order, "name": np.array(kinds)[order], "dice": case.dice(rule),
        "area": case.scaled(areas), "truth": case.scaled(truth),
        "max-probability": [np.flatnonzero(hist).max() / 255 for hist in case.stats[0].hist_all],
    })  # fmt: skip


def test_the_list_is_sorted_as_python_sorts_and_begins_at_its_top(open_case):
    case = make(120, embed=3)
    opened = open_case(case)
    # The page opens with the dice, lowest first.
    for column in ("dice", "id", "fold", "kind", "area", "truth", "max-probability"):
        low_first = column in ("id", "fold", "kind")
        for down in (not low_first, low_first):
            opened.evaluate("document.getElementById('list').scrollTop = 1e9")
            opened.locator(f"#head .{column} button").click()
            assert opened.evaluate("document.getElementById('list').scrollTop") == 0
            order = images_of(case).sort_values(column, ascending=not down, kind="stable").index
            assert listed_rows(opened) == order.tolist()
            sort = opened.locator(f"#head .{column}").get_attribute("aria-sort")
            assert sort == ("descending" if down else "ascending")
        rows = "all => all.sort((a, b) => a.offsetTop - b.offsetTop).map(r => +r.dataset.row)"
        shown = opened.eval_on_selector_all(".row", rows)
        assert shown == order.tolist()[: len(shown)]
    assert opened.locator(".row .id").first.text_content() in images_of(case)["id"].tolist()


def test_filters_leave_the_rows_that_python_leaves_and_follow_the_rule(open_case):
    case = make(150, embed=60)
    opened, images = open_case(case), images_of(case)

    def check(passing: pd.Series) -> None:
        rows = images[passing].sort_values("dice", kind="stable").index.tolist()
        assert listed_rows(opened) == rows
        assert 0 < len(rows) < 150
        assert texts(opened, "#count") == [f"{len(rows)} of 150 images"]
        assert texts(opened, "#listed-mean td")[0] == f"{mean_dice(images['dice'][rows]):.6f}"
        opened.locator("#clear").click()
        assert len(listed_rows(opened)) == 150

    opened.locator("#text").fill(" SE-1")
    check(images["id"].str.contains("se-1"))
    opened.select_option("#fold", "3")
    check(images["fold"] == 3)
    opened.locator("#kind-0").uncheck()
    opened.locator("#kind-3").uncheck()
    check(images["name"].isin(["false positive", "true positive"]))
    opened.locator("#more summary").click()
    opened.locator("#embedded").check()
    check(images.index < 60)
    for column, low, high in (("dice", 0.2, 0.95), ("area", 1, 150_000)):
        opened.locator(f"#{column}-min").fill(str(low))
        opened.locator(f"#{column}-max").fill(str(high))
        check(images[column].between(low, high))
    opened.locator("#max-probability-max").fill("0.7")
    opened.select_option("#fold", "1")
    check((images["max-probability"] <= 0.7) & (images["fold"] == 1))
    opened.locator("#kind-3").uncheck()
    opened.locator("#top").fill("0.9")
    images = images_of(case, replace(RULE, top=0.9))
    check(images["name"] != "true negative")


def test_masks_on_the_canvas_have_the_area_of_the_table(open_case):
    case = make(15)
    opened, n_masks = open_case(case), 0
    for row, rule in enumerate(random_triplets(np.random.default_rng(5), 15, labels=False)):
        for name, value in (("top", rule.top), ("bottom", rule.bottom), ("top", rule.top)):
            enter(opened, f"#{name}-number", value)
        enter(opened, "#min-area-number", rule.min_area_px)
        choose(opened, row)
        area = case.areas(rule)[row]
        assert predicted_px(opened) == area
        n_masks += area > 0
        only(opened, "truth")
        assert count_of(canvas_pixels(opened), TRUTH) == case.stats[0].true_px[row]
    assert n_masks > 3


def test_layers_are_composed_as_stated(open_case):
    case, row = make(3), 0
    grey = pixels_of(case.payload["pictures"][row]["image"]).astype(int)
    opened = open_case(case)
    opened.locator("#one-to-one").click()

    def drawn() -> np.ndarray:
        """Return the picture's part (h, w, 3) of the canvas at 1:1."""
        pixels = canvas_pixels(opened).astype(int)
        (height, width), (h, w) = pixels.shape[:2], grey.shape
        top, left = math.floor(height / 2 - h / 2 + 0.5), math.floor(width / 2 - w / 2 + 0.5)
        return pixels[top : top + h, left : left + w]

    only(opened)
    assert not drawn().any()
    only(opened, "image")
    shown = drawn()
    assert np.abs(shown - grey[..., None]).max() <= 2  # two JPEG decoders
    assert np.ptp(shown, axis=2).max() == 0
    opened.locator("#image-opacity").fill("0.5")
    assert np.abs(drawn() - shown / 2).max() <= 1
    opened.locator("#image-opacity").fill("1")
    enter(opened, "#window-level-number", 100)
    enter(opened, "#window-width-number", 50)
    windowed = np.clip((shown - 75) * 255 / 50, 0, 255)
    assert np.abs(drawn() - windowed).max() <= 1
    opened.locator("#window-reset").click()
    assert (drawn() == shown).all()
    only(opened, "image", "prediction")
    opened.locator("#prediction-opacity").fill("0.5")
    mask = apply_rule(case.maps[0][row], RULE).astype(bool)
    mixed = np.where(mask[..., None], (shown + PREDICTION) / 2, shown)
    assert np.abs(drawn() - mixed).max() <= 1
    only(opened, "probability")
    colour, levels = drawn().sum(axis=2), case.maps[0][row]
    assert (colour[levels == 0] == 0).all()
    means = [colour[levels == level].mean() for level in np.unique(levels)]
    assert (np.diff(means) > -1).all()  # the brighter the more probable


def test_contours_run_along_the_mask_s_edge(open_case):
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = mask[20:25, 10:15] = True  # an L
    mask[20:30, 30:40] = True  # touches it at a corner
    opened = open_case(case_of([mask], [[mask.astype(np.uint8) * 255]], (Triplet(0.5, 0, 0.5),)))
    for name, colour in (("truth", TRUTH), ("prediction", PREDICTION)):
        only(opened, name)
        opened.locator(f"#{name}-fill").uncheck()
        assert not canvas_pixels(opened).any()
        opened.locator(f"#{name}-contour").check()
        pixels = canvas_pixels(opened)
        assert opened.evaluate("viewer.state.view.zoom") == 1
        height, width = pixels.shape[:2]
        scale = min(height / 40, width / 50)
        left, top = round(width / 2 - 25 * scale), round(height / 2 - 20 * scale)
        # Lines end between pixels: these are theirs for the most part.
        ys, xs = np.nonzero(np.abs(pixels.astype(int) - colour).max(axis=2) < 90)
        points = np.stack([xs + 0.5 - left, ys + 0.5 - top], axis=1) / scale
        starts, ends = _edges(mask)
        ways = ends - starts
        along = np.einsum("pek,ek->pe", points[:, None] - starts, ways).clip(0, 1)
        nearest = starts + along[..., None] * ways
        away = np.linalg.norm(points[:, None] - nearest, axis=2) * scale  # (P, E) screen px
        assert away.min(axis=1).max() < 2.5
        lengths = np.linspace(0, 1, 9)[1:-1, None, None] * ways + starts  # points along the edges
        gaps = np.linalg.norm(lengths.reshape(-1, 1, 2) - points, axis=2).min(axis=1) * scale
        share = (gaps < 1.6).mean()
        assert share == 1 if name == "truth" else 0.4 < share < 0.95  # solid, dashed


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends (E, 2), as (x, y), of the unit edges of the mask."""
    ys, xs = np.nonzero(mask[1:] != mask[:-1])
    starts, ends = [np.stack([xs, ys + 1], axis=1)], [np.stack([xs + 1, ys + 1], axis=1)]
    ys, xs = np.nonzero(mask[:, 1:] != mask[:, :-1])
    starts.append(np.stack([xs + 1, ys], axis=1))
    ends.append(np.stack([xs + 1, ys + 1], axis=1))
    return np.concatenate(starts), np.concatenate(ends)


def test_panes_zoom_and_move_together(open_case):
    case = make(3)
    # The same maps twice, so that the panes must look alike.
    opened = open_case(case_of(case.masks, case.maps * 2, (RULE, RULE)))
    opened.locator("#shown-1").check()
    fitted = canvas_pixels(opened, 0)
    box = opened.locator("#panes canvas").first.bounding_box()
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.4 * box["height"]
    opened.mouse.move(x, y)
    before = opened.locator("#pointer").text_content()
    opened.mouse.wheel(0, -400)
    opened.wait_for_function("viewer.state.view.zoom > 1")
    assert opened.locator("#pointer").text_content() == before  # the pixel stays under the pointer
    for _ in range(3):
        opened.keyboard.press("+")  # about the middle
    assert opened.locator("#pointer").text_content() != before
    for _ in range(3):
        opened.keyboard.press("-")
    near = canvas_pixels(opened, 0)
    assert (near != fitted).any()
    assert (near == canvas_pixels(opened, 1)).all()
    opened.mouse.down()
    opened.mouse.move(x + 30, y + 10)
    opened.mouse.up()
    moved = canvas_pixels(opened, 1)
    assert (moved[10:, 30:] == near[:-10, :-30]).mean() > 0.98
    opened.locator("#panes canvas").nth(1).dblclick()
    assert (canvas_pixels(opened, 0) == fitted).all()
    opened.mouse.move(x, y)
    opened.mouse.down(button="right")
    opened.mouse.move(x - 60, y + 20)
    opened.mouse.up(button="right")
    expected = {"width": 195, "level": 137.5}
    assert opened.evaluate("viewer.state.windowing") == pytest.approx(expected, abs=1e-3)
    opened.keyboard.press("w")
    assert (canvas_pixels(opened, 0) == fitted).all()


def test_the_pixel_under_the_pointer_is_described(open_case):
    case, row = make(2), 0
    opened = open_case(case)
    h, w = case.masks[row].shape
    opened.locator("#one-to-one").click()
    box = opened.locator("#panes canvas").bounding_box()
    top, left = (math.floor((box[k] - n) / 2 + 0.5) for k, n in (("height", h), ("width", w)))
    for y, x in ((3, 5), (h - 4, w // 2), (h // 2, w - 3)):
        opened.mouse.move(box["x"] + left + x + 0.5, box["y"] + top + y + 0.5)
        level = case.maps[0][row][y, x]
        parts = opened.locator("#pointer").text_content().split(" · ")
        assert parts[:2] == [f"x {x}, y {y}", f"prob. {level / 255:.3f} ({level})"]
        assert parts[3] == f"ground truth {'yes' if case.masks[row][y, x] else 'no'}"


def test_without_truth_there_is_no_dice_and_nothing_is_cut_off(open_case):
    case = make(30, truth=False, ids=[f"i{k}" for k in range(30)])
    opened = open_case(case)
    assert opened.evaluate("rule => viewer.evaluate(0, rule).dice", asdict(RULE)) is None
    assert opened.locator("#all-mean, #chosen-dice, #truth-on, #head .dice, #dice-min").count() == 0
    areas = case.areas(RULE)
    n = (areas > 0).sum()
    assert texts(opened, "#kinds label") == [f" mask {n}", f" empty {30 - n}"]
    opened.locator("#kind-1").uncheck()
    order = np.argsort(-case.scaled(areas), kind="stable")[:n]
    assert listed_rows(opened) == order.tolist()
    opened.keyboard.press("4")  # there is no such layer
    assert predicted_px(opened) == areas[chosen_row(opened)]
    for width in (1280, 900, 400):
        opened.set_viewport_size({"width": width, "height": 700})
        assert opened.evaluate(CUT_OFF) == []


def test_ids_and_names_are_escaped(open_case):
    case = make(len(ODD_IDS), ids=ODD_IDS, embed=3, rules=(RULE, RULE))
    case.payload["title"] = ODD_IDS[1] + ODD_IDS[5]
    case.payload["notes"] = ODD_IDS
    for model, name in zip(case.payload["models"], ODD_IDS, strict=False):
        model["name"] = name
    opened = open_case(case)
    assert opened.title() == case.payload["title"]
    assert opened.locator("#title").text_content() == case.payload["title"]
    opened.locator("#notes summary").click()
    assert texts(opened, "#notes summary") + texts(opened, "#notes li") == ODD_IDS
    assert texts(opened, "#model option") == ODD_IDS[:2]
    opened.locator("#head .id button").click()
    assert texts(opened, ".row .id") == sorted(ODD_IDS)
    for row, name in enumerate(ODD_IDS):
        choose(opened, row)
        assert texts(opened, "#chosen-image") == [name]
        if row >= 3:
            assert f"--ids {name}\n" in opened.locator("#absent").text_content()
    opened.locator("#text").fill("<IMG")
    assert listed_rows(opened) == [0]
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img").count() == 0


def test_images_without_a_picture_show_metrics_and_how_to_embed_them(open_case):
    case = make(10, embed=2)
    case.payload["pictures"][1] |= {"image": None, "truth": None}
    opened = open_case(case)
    assert opened.locator(".row.absent").count() == 8
    name = case.payload["images"]["id"][7]
    opened.locator(".row", has_text=name).click()
    text = opened.locator("#absent").text_content()
    assert f"--ids {name}\n" in text
    assert f'viewer(ids=["{name}"])' in text
    assert opened.locator("#panes").is_hidden()
    assert texts(opened, "#chosen-dice") == [f"{case.dice(RULE)[7]:.6f}"]
    choose(opened, 1)  # only a map
    assert opened.locator("#panes").is_visible()
    assert "radiograph is not in the page" in opened.locator("#pointer").text_content()
    opened.locator("#one-to-one").click()
    only(opened, "prediction", "image", "truth")
    assert count_of(canvas_pixels(opened), PREDICTION) == case.areas(RULE)[1]


def test_a_page_without_any_picture_or_fold_opens(open_case):
    case = make(4, embed=0)
    case.payload["images"]["fold"] = [None] * 4
    case.payload["notes"] = []
    opened = open_case(case)
    assert opened.locator("#absent").is_visible()
    assert opened.locator("#fold").is_hidden()
    assert texts(opened, "#count") == ["4 of 4 images"]


def test_keys_do_what_their_list_states(open_case):
    opened = open_case(make(12))
    order = listed_rows(opened)
    choose(opened, order[3])
    for key, place in (("j", 4), ("ArrowDown", 5), ("k", 4), ("ArrowUp", 3)):
        opened.keyboard.press(key)
        assert chosen_row(opened) == order[place]
        assert opened.locator(f"#row-{order[place]}").get_attribute("aria-selected") == "true"
    for key, name in zip("1234", ("image", "probability", "prediction", "truth"), strict=True):
        before = opened.locator(f"#{name}-on").is_checked()
        opened.keyboard.press(key)
        assert opened.locator(f"#{name}-on").is_checked() != before
    opened.keyboard.press("c")
    assert not opened.locator("#truth-contour").is_checked()
    for key, change in (
        ("]", {"top": 0.61}), ("[", {}),
        ("'", {"bottom": 0.31}), (";", {}),
        (".", {"min_area_px": 2100}), (",", {}),
    ):  # fmt: skip
        opened.keyboard.press(key)
        assert opened.evaluate("viewer.state.rules[0]") == asdict(replace(RULE, **change))
    for key, zoom in (("+", 1.25), ("f", 1)):
        opened.keyboard.press(key)
        assert opened.evaluate("viewer.state.view.zoom") == zoom
    opened.keyboard.press("/")
    opened.keyboard.type("jk1?")  # in a field, keys are letters
    assert opened.locator("#text").input_value() == "jk1?"
    opened.keyboard.press("Escape")
    opened.keyboard.press("?")
    assert opened.locator("#help").is_visible()
    assert {*"jk1234cf0+-[];',.w/?"} <= set(texts(opened, "#shortcuts kbd"))
    opened.keyboard.press("Escape")
    assert opened.locator("#help").is_hidden()


def test_a_long_list_keeps_few_rows_in_the_page(open_case):
    n = 12_000
    hist = np.zeros((n, 256), np.int64)
    hist[:, 255] = np.arange(n) % 97
    hist[:, 0] = 4096 - hist[:, 255]
    case = make(1)
    ids = [f"image_{row}" for row in range(n)]
    images = {"id": ids, "fold": [0] * n, "height": [64] * n, "width": [64] * n}
    packed = pack([hist, hist // 2, np.full(n, -1)])
    case.payload |= {"images": images, "packed": packed, "pictures": []}
    opened = open_case(case)
    assert 10 < opened.locator(".row").count() < 60
    opened.evaluate("document.getElementById('list').scrollTop = 1e9")
    last = opened.evaluate("viewer.state.order[11999]")
    opened.locator(f"#row-{last}").click()
    assert chosen_row(opened) == last
    assert 10 < opened.locator(".row").count() < 60


# By window, CSS px; 853 × 480 and 600 × 413 are what is left of 1280 × 720 and 900 × 620 at 150 %.
@pytest.mark.parametrize(
    ("scale", "sizes"),
    [
        (1, [(1920, 1080), (1200, 800), (1151, 700), (900, 620), (861, 600), (700, 900)]),
        (1.25, [(1024, 576), (720, 496)]),
        (1.5, [(853, 480), (600, 413), (561, 700)]),
        (2, [(560, 700), (400, 800)]),
    ],
)
def test_nothing_is_cut_off_at_any_size(open_case, scale, sizes):
    uid = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875202.{}"
    ids = [uid.format(1000 + k, 900_000 + k) for k in range(12)]
    case = make(12, rules=(Triplet(0.5, 2000, 0.28039215686),) * 3, vote=2, ids=ids)
    for k, model in enumerate(case.payload["models"]):
        rule = model["rule"] | {"label": 0.12352941}
        model |= {"name": LONG_NAME.format(k), "labels": True, "rule": rule}
    case.payload["title"] = "deeplabv3plus_supervision_resnet_1024_v1_and_two_more, out of fold"
    case.payload["notes"] = [f"{word} note of a length that no header holds. " * 4 for word in "ab"]
    opened = open_case(case, device_scale_factor=scale)
    opened.select_option("#model", "1")
    assert opened.locator("#bottom-number").input_value() == "0.2804"
    assert opened.locator("#label-number").input_value() == "0.1235"
    opened.locator("#more summary").click()
    for width, height in sizes:
        opened.set_viewport_size({"width": width, "height": height})
        box = opened.locator("#panes canvas").bounding_box()
        assert min(box["height"], box["width"]) > 150
        opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert opened.evaluate(CUT_OFF) == []


def test_a_second_stage_s_ids_and_a_pane_s_numbers_are_seen_in_full(open_case):
    ids = [f"ID_{k:09x}" for k in range(200_000_000, 200_000_060)]
    case = make(60, rules=(RULE,) * 3, ids=ids)
    for k, model in enumerate(case.payload["models"]):
        model["name"] = LONG_NAME.format(k)
    opened = open_case(case)
    opened.locator("#shown-1").check()
    cut = "all => all.filter(item => item.scrollWidth > item.clientWidth).length"
    assert opened.eval_on_selector_all("figcaption span", cut) == 0
    for width in (1280, 900):
        opened.set_viewport_size({"width": width, "height": 720})
        assert opened.eval_on_selector_all(".row .id", cut) == 0


def test_a_page_that_a_browser_saved_opens_as_it_did(open_case, open_page):
    opened = open_case(make(9, rules=(RULE, RULE), labels=True))
    saved = ready(open_page(opened.content()))
    for selector in ("#kinds", "#rule", "#head", ".row", "#shown", "#layers", "#shortcuts", "main"):
        assert texts(saved, selector) == texts(opened, selector)


def test_an_odd_number_is_brought_within_the_bounds_or_refused(open_case):
    opened = open_case(make(3))
    for selector in ("#rule label[for=min-area]", "#unit", "figcaption", "#chosen-mask"):
        assert [text for text in texts(opened, selector) if "px of 1024²" in text]
    assert texts(opened, "#about") == ["Research only, not a medical device."]
    for box, kept, least, largest in (
        ("top", "0.6", "0", "1"),
        ("min-area", "2000", "0", "1048577"),
        ("window-width", "255", "1", "510"),
    ):
        number = opened.locator(f"#{box}-number")
        for typed, shown in {
            "abc": kept,
            "": kept,
            "--": kept,
            "1e9": largest,
            "-1": least,
        }.items():
            number.press("Control+a")
            number.press("Delete")
            opened.keyboard.type(typed)
            opened.keyboard.press("Enter")
            assert number.input_value() == shown


def test_an_old_browser_gets_an_error_message(open_page):
    opened = open_page(page(make(2).payload), init="delete window.DecompressionStream")
    assert "cannot unpack" in opened.locator("#fatal").text_content()
    assert opened.locator("main").is_hidden()


def test_pack_is_planes_of_little_endian_bytes():
    packed = pack([np.array([[1, 256], [65536, -1]]), np.array([2**31 - 1], np.int64)])
    assert unpacked(packed).tolist() == [1, 256, 65536, -1, 2**31 - 1]
    with pytest.raises(InputError, match="2147483648 is beyond 2147483647"):
        pack([np.array([2**31])])


def test_the_page_is_one_piece_and_refuses_nan():
    case = make(1, ids=["</script>"])
    text = page(case.payload)
    assert text.count("</script>") == 2  # of the data and of the code
    assert "://" not in text
    assert payload_of(text) == case.payload
    case.payload["models"][0]["rule"]["top"] = math.nan
    with pytest.raises(InputError, match="null"):
        page(case.payload)
