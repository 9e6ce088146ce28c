"""Networks as ONNX: onnxruntime gives torch's numbers, and a file says what it is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from kernel_lib.artifacts.lineage import Lineage
from kernel_lib.config import Experiment
from kernel_lib.engine import Engine
from kernel_lib.errors import InputError
from kernel_lib.inference import onnx_file, onnx_network, predictions, tta
from kernel_lib.inference.onnx_file import OnnxFacts, OnnxModel
from kernel_lib.models import networks
from kernel_lib.models.base import Network
from kernel_lib.postprocess.triplet import Triplet

onnx = pytest.importorskip("onnx", reason="no onnx here")
pytest.importorskip("onnxruntime", reason="no onnxruntime here")

SIZE = 64
TINY = Experiment(
    name="tiny", encoder="tu-test_efficientnet", decoder_channels=(16,) * 5, size=SIZE,
    label_weight=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_generator():
    with torch.random.fork_rng(devices=[]):
        yield


def pixels(n: int, size: int = SIZE) -> torch.Tensor:
    """Smooth levels (n, 1, size, size) uint8, as radiographs are."""
    coarse = torch.rand(n, 1, 8, 8) * 255
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return fine.clamp(0, 255).to(torch.uint8)


def network(row: Experiment, seed: int = 0) -> Network:
    """A random network whose features have the sizes of a trained one, and logits of both signs."""
    torch.manual_seed(seed)
    model = networks.build(row).train()
    for norm in networks.batch_norms(model):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model(pixels(8, row.size))
        output = model.eval()(pixels(8, row.size))
        last = [model.label.logit] if model.label is not None else []
        if output.mask is not None:
            last.append(model.head[0] if hasattr(model.head, "__getitem__") else model.head.logit)
        for layer, logits in zip(last, reversed([x for x in output[:2] if x is not None])):  # noqa: B905
            scale = 6 / (logits.max() - logits.min())
            layer.weight *= scale
            layer.bias.copy_((layer.bias - logits.mean()) * scale)
    return model


@pytest.mark.parametrize("encoder", ["timm-tf_efficientnet_lite0", "tu-resnet10t"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_any_number_of_images_gets_the_logits_of_torch(name, encoder):
    row = TINY.model_copy(update={"network": name, "encoder": encoder})
    model, levels = network(row), pixels(5)
    with torch.no_grad():
        expected = model(levels)
    session = onnx_file.session(onnx_network.to_onnx([model], SIZE), 1)
    for some in (levels, levels[:1]):
        outputs = onnx_file.run(session, some.numpy())
        heads = {"mask": expected.mask, "label": expected.label}
        assert list(outputs) == [head for head, logits in heads.items() if logits is not None]
        for head, found in outputs.items():
            logits = heads[head].numpy()
            assert np.ptp(logits) > 1
            wanted = logits if head == "mask" else logits[:, None]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted[: len(some)], rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    ("encoder", "channels"),
    [("timm-tf_efficientnet_lite0", 1), ("tu-resnet10t", 2), ("mit_b0", 2), ("densenet121", 2)],
)
def test_a_merged_stem_is_the_same_function_of_the_grey_level(encoder, channels):
    model = networks.build(TINY.model_copy(update={"encoder": encoder})).eval().double()
    merged = onnx_network.with_merged_stem(model)
    layers = (m for m in merged.encoder.modules() if isinstance(m, torch.nn.Conv2d))
    read = [layer.in_channels for layer in layers]
    assert channels in read
    assert 3 not in read
    levels = pixels(2)
    with torch.no_grad():
        found = [each(levels).mask for each in (merged, model)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-9)


def facts(**changes) -> OnnxFacts:
    given = {
        "name": "tiny", "experiment": TINY, "rule": Triplet(0.6, 2000, 0.5, 0.3), "gate": "label",
        "tta": "hflip", "lineage": Lineage(images=("a", "b"), ancestors=("parent",)),
        "score": {"honest": {"dice": 0.8}}, "licence": "MIT", "fold": 3, "combine": "vote",
        "input": {"mean": [0.5] * 3},
    }  # fmt: skip
    return OnnxFacts(**(given | changes))


@pytest.fixture(scope="module")
def exported() -> tuple[list[Network], bytes]:
    """Two checkpoints of a network with mask and label, and both as one ONNX network."""
    models = [network(TINY, seed) for seed in (0, 1)]
    return models, onnx_network.to_onnx(models, SIZE)


def test_several_checkpoints_and_views_predict_as_by_torch(exported, tmp_path):
    models, content = exported
    levels = pixels(5)
    ids = [f"i{n}" for n in range(5)]
    facts(tta="flips").save(content, tmp_path / "x.onnx")
    prepared = SimpleNamespace(
        table=pd.DataFrame({"image_id": ids}), image=lambda row: levels[row, 0].numpy()
    )
    found = list(OnnxModel.load(tmp_path / "x.onnx", 1).predict(prepared, 2))
    engine = Engine(torch.device("cpu"), torch.float32)
    batches = [(levels[:3], torch.arange(3)), (levels[3:], torch.arange(3, 5))]
    expected = list(predictions.predict(models, batches, tta.views("flips"), engine, ids))
    assert [name for name, _ in found] == ids
    for (_, here), (_, there) in zip(found, expected, strict=True):
        apart = np.abs(here.levels.astype(int) - there.levels)
        assert apart.max() <= 1  # a probability on the border of two levels
        assert np.count_nonzero(apart) <= 8
        assert here.label == pytest.approx(there.label, abs=1e-5)


def test_a_file_holds_what_is_known_of_its_network(exported, tmp_path):
    path = tmp_path / "models" / "x.onnx"
    size = facts().save(exported[1], path)
    assert size == path.stat().st_size
    found = OnnxModel.load(path)
    assert OnnxFacts(**{k: getattr(found, k) for k in vars(facts())}) == facts()
    onnx.checker.check_model(onnx.load(path), full_check=True)


def rewritten(path: Path, **texts: str | None) -> None:
    """Change or delete entries of a file's metadata_props."""
    model = onnx.load(path)
    given = {prop.key: prop.value for prop in model.metadata_props} | texts
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {k: v for k, v in given.items() if v is not None})
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ({"schema": None}, "schema is None"),
        ({"schema": "pneumothorax-onnx-0"}, "another version .*'pneumothorax-onnx-0'"),
        ({"rule": None}, "damaged .*lacks 'rule'"),
        ({"fold": None}, "damaged .*lacks 'fold'"),
        ({"rule": "{}"}, "damaged"),
        ({"rule": "[]"}, "damaged"),
        ({"lineage": "[]"}, "damaged"),
        ({"input": "{"}, "damaged"),
        ({"fold": "first"}, "damaged .*first"),
        ({"gate": "perhaps"}, "damaged .*'perhaps'"),
        ({"combine": "member_vote"}, "damaged .*'member_vote'"),
        ({"tta": "unknown"}, "damaged .*unknown"),
        ({"tta": "multiscale"}, "damaged .*other sizes"),
        ({"experiment": TINY.model_copy(update={"size": 96}).model_dump_json()}, "damaged .*96"),
    ],
)
def test_another_version_or_a_damaged_text_is_named(exported, tmp_path, texts, pattern):
    path = tmp_path / "x.onnx"
    facts().save(exported[1], path)
    rewritten(path, **texts)
    with pytest.raises(InputError, match=rf"--onnx .*x\.onnx is .*{pattern}.*export-onnx") as error:
        OnnxModel.load(path)
    assert "\n" not in str(error.value)


def test_what_is_no_onnx_file_is_named(exported, tmp_path, monkeypatch):
    path = tmp_path / "x.onnx"
    for there in ("missing", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            OnnxModel.load(tmp_path / there)
    facts().save(exported[1], path)
    for content in (b"", b"no network", path.read_bytes()[:-1000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.onnx is no ") as error:
            OnnxModel.load(path)
        assert "\n" not in str(error.value)
    classifier = TINY.model_copy(update={"network": "Classifier"})
    facts().save(onnx_network.to_onnx([network(classifier)], SIZE), path)
    with pytest.raises(InputError, match=r"its outputs are label"):
        OnnxModel.load(path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed: pip install"):
        OnnxModel.load(path)


def test_files_that_do_not_belong_together_are_refused(exported, tmp_path):
    path = tmp_path / "x.onnx"
    facts().save(exported[1], path)
    model = OnnxModel.load(path)
    onnx_file.check_together([model, replace(model, fold=1)])
    with pytest.raises(InputError, match=r"fold 3 of tiny, and so is .*x\.onnx"):
        onnx_file.check_together([model, model])
    larger = TINY.model_copy(update={"size": 96})
    for change, pattern in (
        ({"name": "other"}, "the name other, and .* tiny"),
        ({"rule": Triplet(0.5, 2000, 0.5)}, r"the rule top 0\.5"),
        ({"gate": "none"}, "the gate none"),
        ({"tta": "none"}, "the TTA none"),
        ({"combine": "mean"}, "the combine mean"),
        ({"experiment": larger}, "the size 96"),
    ):
        with pytest.raises(InputError, match=pattern):
            onnx_file.check_together([model, replace(model, fold=1, **change)])


def test_an_export_that_fails_or_differs_is_refused(monkeypatch):
    model = network(TINY)
    monkeypatch.setattr(onnx_file, "run", lambda s, x, run=onnx_file.run: {
        name: logits + np.float32(0.02) for name, logits in run(s, x).items()
    })  # fmt: skip
    with pytest.raises(InputError, match=r"mask logits differ from torch's by 0\.02"):
        onnx_network.to_onnx([model], SIZE)
    monkeypatch.undo()
    model.head.logit.register_forward_hook(lambda _, __, x: torch.linalg.matrix_exp(x))
    with pytest.raises(InputError, match="cannot be exported to ONNX") as error:
        onnx_network.to_onnx([model], SIZE)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"onnx is not installed: pip install"):
        onnx_network.to_onnx([model], SIZE)
