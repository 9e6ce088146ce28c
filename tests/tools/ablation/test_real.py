from itertools import pairwise

import pandas as pd
import pytest
from click.testing import CliRunner

from kernel_lib.experiments import EXPERIMENTS
from tools.ablation import real
from tools.ablation.__main__ import main
from tools.phantoms import competition

TINY = EXPERIMENTS["demo_UNetResNet10_128_v1"].differing(
    name="tiny_64", encoder="tu-test_resnet", size=64, epochs=2, min_epochs=1, keep=1, tta="none"
)
STUDY = real.Study(
    chain=(TINY, TINY.differing(name="tiny_96", size=96, weights="tiny_64")),
    variants={
        "dice": real.Variant("BCE + dice", {"loss": {"bce": 1.0, "dice": 1.0}}),
        "never": real.Variant("left out", {"lr": 0.1}),
    },
    training=real.STUDY.training,
    marks=real.STUDY.marks,
    n_folds=2,
)


def test_without_data_nothing_is_done(tmp_path):
    result = CliRunner().invoke(main, ["real", "--data", str(tmp_path / "none")])
    assert result.exit_code == 0
    assert "skipped" in result.output


def test_sensitivity_and_specificity_count_images_with_a_mask():
    images = pd.DataFrame({"predicted_px": [5, 0, 3, 0, 0], "truth_px": [9, 9, 0, 0, 0]})
    assert real.image_level(images) == (1 / 2, 2 / 3)


@pytest.mark.parametrize("study", [real.STUDY, real.GPU_STUDY], ids=["cpu", "gpu"])
def test_each_variant_differs_from_the_experiment_in_what_it_tries_and_in_nothing_else(study):
    rows, small = study.rows, study.first
    for parent, row in pairwise(study.chain):
        assert row.weights == parent.name
    for name, variant in study.variants.items():
        row = rows[study.name(name)]
        changed = {k for k in type(row).model_fields if getattr(row, k) != getattr(small, k)}
        assert changed - {"name", "parent"} == set(variant.changes), name


@pytest.mark.slow
def test_a_small_study_is_trained_scored_and_compared(tmp_path):
    competition.write_competition(tmp_path / "data", 40, 2, size=128, difficulty=0.1)
    text = real.run(tmp_path / "data", tmp_path / "out", only=["dice"], study=STUDY)
    scored, compared = (part.splitlines() for part in text.strip().split("\n\n"))
    both = "`tiny_64` + `tiny_96`"
    assert [line.split(" | ")[0][2:] for line in scored[2:]] == ["`tiny_64`", "`tiny_96`", both]
    assert [line.split(" | ")[1:4] for line in compared[2:]] == [
        ["`tiny_96`", "`tiny_64`", "0, 1"],
        [both, "`tiny_96`", "0, 1"],
        ["`tiny_64_dice`", "`tiny_64`", "0"],
    ]
    document = tmp_path / "results.md"
    begin, end = STUDY.marks
    document.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    real.write(document, text, STUDY)
    assert document.read_text(encoding="utf-8") == f"before\n{begin}\n{text}{end}\nafter\n"
