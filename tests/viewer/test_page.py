"""The viewer's page in a real browser: its numbers are Python's, its pixels what it says."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import cv2
import numpy as np
import pytest

from kernel_lib.errors import InputError
from kernel_lib.postprocess import histograms
from kernel_lib.postprocess.metrics import dice_of_counts, mean_dice
from kernel_lib.postprocess.triplet import Triplet, apply_rule
from kernel_lib.viewer.page import pack, page

ODD_IDS = [
    "<img src=x onerror=\"window.hacked='id'\">",
    "</script><script>window.hacked='script'</script>",
    "<!--<script>",
    "\"double\" and 'single' quotes",
    "&amp; &lt;b&gt;",
    "radiograph 🫁 of Ærø",
    "back\\slash {{brace}} \u2028 $& <!-- style -->",
]
TRUTH, PREDICTION = (255, 176, 0), (79, 195, 247)
EVALUATED = "asked => JSON.stringify(asked.map(one => viewer.evaluate(...one)))"
RULE = Triplet(0.6, 2000, 0.3)
# What is cut off although no title gives it in full, number boxes at their largest values, controls
# that lie over one another, and a page wider than its window.
CUT_OFF = """() => {
  const wrong = [];
  const known = (one) => `${one.tagName} ${one.id} ${one.className} ${one.textContent}`;
  for (const one of document.querySelectorAll("input[type=number]")) {
    one.value = one.max > 1 || /area|truth/.test(one.id) ? "1048577" : "0.9980";
  }
  const shown = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility());
  for (const one of shown) {
    const hides = getComputedStyle(one).overflowX !== "visible";
    const field = one.type === "number";
    // Both widths are rounded: at a fraction of a pixel they differ by 1 where nothing is cut.
    const cut = one.scrollWidth > one.clientWidth + 1;
    if (hides && cut && (field || !one.title)) wrong.push(known(one));
  }
  const seen = (one) => {
    const box = one.getBoundingClientRect();
    const within = one.parentElement.closest("#shown, #panel, #list")?.getBoundingClientRect();
    const bottom = Math.min(box.bottom, within?.bottom ?? Infinity);
    return { one, left: box.left, right: box.right, top: box.top, bottom };
  };
  const controls = shown.filter((one) => one.matches("button, select, input, label")).map(seen);
  for (const a of controls) for (const b of controls) {
    if (a === b || a.one.contains(b.one) || b.one.contains(a.one)) continue;
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) wrong.push(`${known(a.one)} over ${known(b.one)}`);
  }
  const { scrollWidth } = document.documentElement;
  return scrollWidth > innerWidth ? [...wrong, `${scrollWidth} px of ${innerWidth}`] : wrong;
}"""


@dataclass
class Case:
    """What a page is made of: its images, their maps (one list a model) and true masks."""

    payload: dict
    masks: list[np.ndarray]
    maps: list[list[np.ndarray]]
    stats: list[histograms.Stacked]


def make(
    n: int = 40,
    *,
    rules: tuple[Triplet, ...] = (RULE,),
    labels: bool = False,
    truth: bool = True,
    vote: int = 0,
    union: bool = False,
    embed: int | None = None,
    ids: list[str] | None = None,
    seed: int = 0,
) -> Case:
    """Random images of several sizes; `vote` is its k, over all models."""
    rng = np.random.default_rng(seed)
    shapes = [(int(h), int(w)) for h, w in rng.integers(20, 70, (n, 2))]
    masks = [_blob(rng, shape) > 0.5 if rng.random() < 0.6 else np.zeros(shape) for shape in shapes]
    maps = [[_prob(rng, mask) for mask in masks] for _ in rules]
    levels = [rng.integers(0, 256, n).tolist() if labels else [None] * n for _ in rules]
    stats = [
        histograms.stack(
            histograms.statistics(prob, mask if truth else None, label)
            for prob, mask, label in zip(*one, masks, *given, strict=True)
        )
        for one, given in zip([(m,) for m in maps], [(given,) for given in levels], strict=True)
    ]
    arrays = []
    for one in stats:
        arrays += [one.hist_all, *([one.hist_true] if truth else []), one.label]
    names = [f"seed {model}" for model in range(len(rules))]
    payload = {
        "title": "A page of phantoms",
        "notes": ["The first sentence.", "The second."],
        "images": {
            "id": ids or [f"case-{rng.integers(1e6):06d}-{row}" for row in range(n)],
            "fold": [int(fold) for fold in rng.integers(0, 5, n)],
            "height": [h for h, _ in shapes],
            "width": [w for _, w in shapes],
        },
        "truth": truth,
        "models": [
            {"name": name, "labels": labels, "rule": asdict(rule)}
            for name, rule in zip(names, rules, strict=True)
        ],
        "one_rule": False,
        "vote": None,
    }
    if vote:
        models = list(range(len(rules)))
        payload["vote"] = {"name": "vote", "models": models, "at_least": vote, "union": union}
        counts = [_votes(maps, rules, row) for row in range(n)]
        arrays.append([[(count > k).sum() for k in models] for count in counts])
        if truth:
            both = zip(counts, masks, strict=True)
            arrays.append([[((c > k) & (m > 0)).sum() for k in models] for c, m in both])
    payload["packed"] = pack([np.asarray(array) for array in arrays])
    rows = range(n if embed is None else embed)
    payload["pictures"] = [_picture(masks[row], [m[row] for m in maps], row, truth) for row in rows]
    return Case(payload, masks, maps, stats)


def _votes(maps: list, rules: tuple, row: int) -> np.ndarray:
    return sum(apply_rule(one[row], rule) for one, rule in zip(maps, rules, strict=True))


def _blob(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random(shape), (0, 0), 6)
    return (noise - noise.min()) / np.ptp(noise) > rng.uniform(0.5, 0.95)


def _prob(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    soft = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 2) * rng.uniform(0.3, 1)
    return np.rint(255 * np.clip(soft + 0.5 * rng.random() * rng.random(mask.shape), 0, 1)).astype(
        np.uint8
    )


def _picture(mask: np.ndarray, maps: list[np.ndarray], row: int, truth: bool) -> dict:
    height, width = mask.shape
    grey = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    return {
        "row": row,
        "size": [width, height],
        "image": _encoded(".jpg", grey),
        "truth": _encoded(".png", (mask > 0).astype(np.uint8) * 255) if truth else None,
        "maps": [_encoded(".png", one) for one in maps],
    }


def _encoded(kind: str, pixels: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(kind, pixels)[1].tobytes()).decode()


def ready(opened):
    """The page once its numbers and its first picture are there."""
    opened.evaluate("async () => { await viewer.ready; await viewer.shown() }")
    return opened


def texts(opened, selector: str) -> list[str]:
    return opened.eval_on_selector_all(selector, "all => all.map(one => one.textContent)")


def canvas_pixels(opened, place: int = 0) -> np.ndarray:
    """RGB (H, W, 3) of a pane's canvas."""
    script = "place => document.querySelectorAll('#panes canvas')[place].toDataURL('image/png')"
    png = base64.b64decode(opened.evaluate(script, place).partition(",")[2])
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def count_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def dice_of(case: Case, rule: Triplet, model: int = 0) -> np.ndarray:
    return histograms.per_image_dice(case.stats[model], rule)


def chosen_row(opened) -> int:
    return opened.evaluate("viewer.state.chosen")


def random_triplets(rng: np.random.Generator, n: int, labels: bool) -> list[Triplet]:
    """Thresholds on levels, beside them and anywhere; areas from none to most of the image."""
    found = []
    for _ in range(n):
        kinds = [rng.random(), float(rng.integers(0, 256)) / 255, round(rng.random(), 2), 0.0, 1.0]
        top, bottom, label = rng.choice(kinds[:3] * 4 + kinds[3:], 3)
        top, bottom = max(top, bottom), min(top, bottom)
        area = int(rng.choice([0, 1, 200, 3500, 17_000, 60_000, 400_000]) * rng.uniform(0.5, 1.5))
        found.append(Triplet(top, area, bottom, label if labels and rng.random() < 0.8 else None))
    return found


@pytest.mark.parametrize("labels", [False, True])
def test_areas_dice_and_means_are_python_s(open_page: Callable, labels: bool) -> None:
    case = make(300, rules=(RULE, RULE), labels=labels, embed=1)
    rules = random_triplets(np.random.default_rng(1), 240, labels)
    opened = ready(open_page(page(case.payload)))
    asked = [[k % 2, asdict(rule)] for k, rule in enumerate(rules)]
    told = json.loads(opened.evaluate(EVALUATED, asked))
    empty = 0
    for (model, _), rule, found in zip(asked, rules, told, strict=True):
        areas, dice = histograms.areas(case.stats[model], rule), dice_of(case, rule, model)
        assert found["areas"] == areas.tolist()
        assert found["dice"] == dice.tolist()
        assert found["mean"] == pytest.approx(mean_dice(dice), abs=1e-12)
        empty += (areas == 0).mean()
    assert 0.2 < empty / len(rules) < 0.8  # the triplets do tell masks apart


@pytest.mark.parametrize("union", [False, True])
def test_a_vote_s_numbers_come_with_the_page(open_page: Callable, union: bool) -> None:
    rules = (RULE, Triplet(0.5, 9000, 0.5), Triplet(0.8, 0, 0.1))
    case = make(30, rules=rules, vote=2, union=union)
    opened = ready(open_page(page(case.payload)))
    for k in (1, 2, 3):
        found = opened.evaluate("k => viewer.evaluateVote(k)", k)
        masks = [_votes(case.maps, rules, row) >= k for row in range(30)]
        areas = [int(mask.sum()) for mask in masks]
        shared = [int((one & (t > 0)).sum()) for one, t in zip(masks, case.masks, strict=True)]
        dice = dice_of_counts(shared, areas, case.stats[0].true_px)
        assert found["areas"] == areas
        assert found["dice"] == dice.tolist()
        opened.locator("#k").fill(str(k))
        assert texts(opened, "#all-mean td")[0] == f"{mean_dice(dice):.6f}"


@pytest.mark.parametrize("field", ["", "-number"])
def test_each_slider_moves_the_numbers_to_python_s(open_page: Callable, field: str) -> None:
    rule = Triplet(0.6, 2000, 0.3, 0.2)
    case = make(80, rules=(rule,), labels=True)
    opened = ready(open_page(page(case.payload)))
    chosen = mean_dice(dice_of(case, rule))
    steps = opened.evaluate("Array.from(document.querySelectorAll('#rule input'), one => one.id)")
    assert {"top", "min-area", "bottom", "label"} <= set(steps)
    moves = {
        "top": ("0.75", {"top": 0.75}),
        "bottom": ("0.405", {"bottom": 0.405}),
        "label": ("0.55", {"label": 0.55}),
        "min-area": ("100", {"min_area_px": 15_000}),
    }
    values = asdict(rule)
    for name, (place, change) in moves.items():
        values |= change
        [value] = change.values()
        opened.locator(f"#{name}{field}").fill(str(value) if field else place)
        if field:
            opened.keyboard.press("Enter")
        moved = Triplet(**values)
        dice, areas = dice_of(case, moved), histograms.areas(case.stats[0], moved)
        now, before, difference = texts(opened, "#all-mean td")
        assert (now, before) == (f"{mean_dice(dice):.6f}", f"{chosen:.6f}")
        assert float(difference) == pytest.approx(mean_dice(dice) - chosen, abs=1e-6)
        has_truth = case.stats[0].true_px > 0
        assert texts(opened, "#all-positive td")[0] == f"{mean_dice(dice[has_truth]):.6f}"
        assert texts(opened, "#all-with-mask td")[0] == f"{100 * (areas > 0).mean():.2f}"
        kinds = np.array([has_truth & (areas == 0), ~has_truth & (areas > 0)]).sum(axis=1)
        assert [texts(opened, f"#all-kind-{k} td")[0] for k in (0, 1)] == [str(n) for n in kinds]
        row = chosen_row(opened)
        assert texts(opened, "#chosen-dice") == [f"{dice[row]:.6f}"]
        scaled = areas[row] * 2**20 / case.stats[0].n_px[row]
        words = f"{math.floor(scaled + 0.5):,} px of 1024²"
        assert texts(opened, "#chosen-mask") == [words]
    opened.locator("#label-on").uncheck()
    off = Triplet(**(values | {"label": None}))
    assert texts(opened, "#all-mean td")[0] == f"{mean_dice(dice_of(case, off)):.6f}"
    opened.locator("#reset").click()
    assert texts(opened, "#all-mean td")[2] == "0.000000"
    assert opened.evaluate("viewer.state.rules[0]") == asdict(rule)


def test_bottom_and_top_push_each_other(open_page: Callable) -> None:
    opened = ready(open_page(page(make(5).payload)))
    opened.locator("#bottom").fill("0.8")
    assert opened.evaluate("viewer.state.rules[0].top") == 0.8
    opened.locator("#top").fill("0.1")
    assert opened.evaluate("viewer.state.rules[0].bottom") == 0.1
    assert opened.locator("#bottom-number").input_value() == "0.1"


def test_one_rule_moves_all_voices_and_own_rules_one(open_page: Callable) -> None:
    other = Triplet(0.7, 100, 0.2)
    opened = ready(open_page(page(make(6, rules=(RULE, other)).payload)))
    opened.select_option("#model", "1")
    assert opened.locator("#top-number").input_value() == "0.7"
    opened.locator("#top").fill("0.9")
    assert opened.evaluate("viewer.state.rules.map(one => one.top)") == [0.6, 0.9]
    opened.locator("#one-rule").check()
    assert opened.evaluate("viewer.state.rules.map(one => one.top)") == [0.9, 0.9]
    opened.locator("#min-area").fill("0")
    assert opened.evaluate("viewer.state.rules.map(one => one.min_area_px)") == [0, 0]
    opened.locator("#reset").click()
    assert opened.evaluate("viewer.state.rules") == [asdict(RULE), asdict(other)]


def test_a_vote_s_numbers_end_where_a_member_s_rule_moves(open_page: Callable) -> None:
    case = make(8, rules=(RULE, RULE, RULE), vote=2)
    opened = ready(open_page(page(case.payload)))
    assert opened.locator("#caution").is_hidden()
    assert opened.locator("#top").is_disabled()
    opened.select_option("#model", "1")
    opened.locator("#top").fill("1")
    opened.select_option("#model", "3")
    assert opened.locator("#caution").is_visible()
    assert texts(opened, "#all-mean td")[0] == "–"
    assert texts(opened, "#chosen-mask") == ["–"]
    only(opened, "prediction")
    for row in range(8):  # the picture follows: only the other two members speak
        opened.evaluate("row => viewer.choose(row)", row)
        opened.locator("#one-to-one").click()
        rules = (RULE, Triplet(1, 2000, 0.3), RULE)
        mask = _votes(case.maps, rules, row) >= 2
        assert count_of(canvas_pixels(opened), PREDICTION) == mask.sum()
    opened.locator("#reset").click()
    assert opened.locator("#caution").is_hidden()
    assert opened.evaluate("viewer.state.rules[1]") == asdict(RULE)


def test_the_union_of_agreeing_masks_is_drawn(open_page: Callable) -> None:
    first, second, apart = (np.zeros((30, 40), np.uint8) for _ in range(3))
    first[2:10, 2:10], second[8:16, 8:16], apart[20:28, 30:38] = 255, 255, 255
    case = make(1, rules=(Triplet(0.5, 0, 0.5),) * 3, vote=1, union=True)
    case.payload["images"] |= {"height": [30], "width": [40]}
    hists = [histograms.statistics(one, None).hist_all for one in (first, second, apart)]
    arrays = [part for hist in hists for part in (hist, 0 * hist, np.array([-1]))]
    case.payload["packed"] = pack([*arrays, np.zeros(3, int), np.zeros(3, int)])
    case.payload["pictures"] = [_picture(0 * first, [first, second, apart], 0, True)]
    opened = ready(open_page(page(case.payload)))
    opened.locator("#one-to-one").click()
    only(opened, "prediction")
    for k, area in ((1, 64 * 3 - 4), (2, 64 * 2 - 4), (3, 0)):
        opened.locator("#k").fill(str(k))
        assert count_of(canvas_pixels(opened), PREDICTION) == area


def listed_in_python(case: Case, rule: Triplet, passes: Callable, key: Callable, down: bool):
    dice, areas = dice_of(case, rule), histograms.areas(case.stats[0], rule)
    stats, images = case.stats[0], case.payload["images"]
    rows = []
    for row, name in enumerate(images["id"]):
        has, found = stats.true_px[row] > 0, areas[row] > 0
        kind = [["true negative", "false positive"], ["false negative", "true positive"]][int(has)][
            int(found)
        ]
        full = 2**20 / int(stats.n_px[row])
        score = np.flatnonzero(stats.hist_all[row]).max() / 255
        worst = ["false negative", "false positive", "true positive", "true negative"].index(kind)
        one = {
            "row": row,
            "id": name,
            "fold": images["fold"][row],
            "kind": kind,
            "max-probability": score,
        }
        one |= {"dice": dice[row], "area": areas[row] * full, "worst": worst}
        one |= {"truth": stats.true_px[row] * full}
        if passes(one):
            rows.append(one)
    return [one["row"] for one in sorted(rows, key=key, reverse=down)]


@pytest.mark.parametrize(
    ("column", "key", "downs"),
    [
        ("id", lambda one: one["id"], [False, True]),
        ("fold", lambda one: one["fold"], [False, True]),
        ("kind", lambda one: one["worst"], [False, True]),
        ("dice", lambda one: one["dice"], [True, False]),  # the page opens with it, worst first
        ("area", lambda one: one["area"], [True, False]),
        ("truth", lambda one: one["truth"], [True, False]),
        ("max-probability", lambda one: one["max-probability"], [True, False]),
    ],
)
def test_the_list_is_sorted_as_python_sorts(
    open_page: Callable, column: str, key: Callable, downs: list[bool]
) -> None:
    case = make(120, embed=3)
    opened = ready(open_page(page(case.payload)))
    for down in downs:
        opened.locator(f"#head .{column} button").click()
        order = opened.evaluate("Array.from(viewer.state.order)")
        assert order == listed_in_python(case, RULE, lambda one: True, key, down)
        sort = opened.locator(f"#head .{column}").get_attribute("aria-sort")
        assert sort == ("descending" if down else "ascending")
        opened.evaluate("document.getElementById('list').scrollTop = 0")
    ids = [case.payload["images"]["id"][row] for row in order]
    drawn = opened.eval_on_selector_all(
        ".row", "all => all.sort((a, b) => a.offsetTop - b.offsetTop).map(r => r.dataset.row)"
    )
    assert [int(row) for row in drawn] == order[: len(drawn)]
    assert opened.locator(".row .id").first.text_content() in ids


def test_filters_leave_the_rows_that_python_leaves(open_page: Callable) -> None:
    case = make(150, embed=60)
    opened = ready(open_page(page(case.payload)))

    def check(passes: Callable) -> None:
        rows = listed_in_python(case, RULE, passes, lambda one: one["dice"], False)
        assert opened.evaluate("Array.from(viewer.state.order)") == rows
        assert 0 < len(rows) < 150
        assert texts(opened, "#count") == [f"{len(rows)} of 150 images"]
        dice = dice_of(case, RULE)[rows]
        assert texts(opened, "#listed-mean td")[0] == f"{mean_dice(dice):.6f}"
        opened.locator("#clear").click()
        assert opened.evaluate("viewer.state.order.length") == 150

    opened.locator("#text").fill(" SE-1")
    check(lambda one: "se-1" in one["id"])
    opened.select_option("#fold", "3")
    check(lambda one: one["fold"] == 3)
    opened.locator("#kind-0").uncheck()
    opened.locator("#kind-3").uncheck()
    check(lambda one: one["kind"] in ("false positive", "true positive"))
    opened.locator("#more summary").click()
    opened.locator("#embedded").check()
    check(lambda one: one["row"] < 60)
    opened.locator("#dice-min").fill("0.2")
    opened.locator("#dice-max").fill("0.95")
    check(lambda one: 0.2 <= one["dice"] <= 0.95)
    opened.locator("#area-min").fill("1")
    opened.locator("#area-max").fill("150000")
    check(lambda one: 1 <= one["area"] <= 150_000)
    opened.locator("#max-probability-max").fill("0.7")
    opened.select_option("#fold", "1")
    check(lambda one: one["max-probability"] <= 0.7 and one["fold"] == 1)


def test_filters_follow_the_rule(open_page: Callable) -> None:
    case = make(60)
    opened = ready(open_page(page(case.payload)))
    opened.locator("#kind-3").uncheck()
    opened.locator("#top").fill("0.9")
    rule = Triplet(0.9, 2000, 0.3)
    rows = listed_in_python(
        case, rule, lambda one: one["kind"] != "true negative", lambda one: one["dice"], False
    )
    assert opened.evaluate("Array.from(viewer.state.order)") == rows


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


def only(opened, *layers: str) -> None:
    """These layers alone, filled, opaque, without contours."""
    opened.evaluate(ONLY, layers)


def test_masks_on_the_canvas_have_the_area_of_the_table(open_page: Callable) -> None:
    case = make(15)
    opened = ready(open_page(page(case.payload)))
    rng = np.random.default_rng(5)
    seen = 0
    for row, rule in enumerate(random_triplets(rng, 15, labels=False)):
        for name, value in (("top", rule.top), ("bottom", rule.bottom), ("top", rule.top)):
            opened.locator(f"#{name}-number").fill(repr(value))
            opened.keyboard.press("Enter")
        opened.locator("#min-area-number").fill(str(rule.min_area_px))
        opened.keyboard.press("Enter")
        opened.evaluate("row => viewer.choose(row)", row)
        opened.locator("#one-to-one").click()
        only(opened, "prediction")
        area = histograms.areas(case.stats[0], rule)[row]
        assert count_of(canvas_pixels(opened), PREDICTION) == area
        seen += area > 0
        only(opened, "truth")
        assert count_of(canvas_pixels(opened), TRUTH) == case.stats[0].true_px[row]
    assert seen > 3


def drawn_at(opened, case: Case, row: int, place: int = 0) -> np.ndarray:
    """The picture's part (h, w, 3) of a pane's canvas at 1:1."""
    pixels = canvas_pixels(opened, place).astype(int)
    (height, width), (h, w) = pixels.shape[:2], case.masks[row].shape
    top, left = math.floor(height / 2 - h / 2 + 0.5), math.floor(width / 2 - w / 2 + 0.5)
    return pixels[top : top + h, left : left + w]


def test_layers_lie_over_one_another_as_stated(open_page: Callable) -> None:
    case = make(3)
    row = 0
    jpeg = base64.b64decode(case.payload["pictures"][row]["image"])
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE).astype(int)
    opened = ready(open_page(page(case.payload)))
    opened.locator("#one-to-one").click()
    only(opened)
    assert not drawn_at(opened, case, row).any()
    only(opened, "image")
    shown = drawn_at(opened, case, row)
    assert np.abs(shown - grey[..., None]).max() <= 2  # two JPEG decoders
    assert np.ptp(shown, axis=2).max() == 0
    opened.locator("#image-opacity").fill("0.5")
    assert np.abs(drawn_at(opened, case, row) - shown / 2).max() <= 1
    opened.locator("#image-opacity").fill("1")
    opened.locator("#window-level-number").fill("100")
    opened.keyboard.press("Enter")
    opened.locator("#window-width-number").fill("50")
    opened.keyboard.press("Enter")
    windowed = np.clip((shown - 75) * 255 / 50, 0, 255)
    assert np.abs(drawn_at(opened, case, row) - windowed).max() <= 1
    opened.locator("#window-reset").click()
    assert (drawn_at(opened, case, row) == shown).all()
    only(opened, "image", "prediction")
    opened.locator("#prediction-opacity").fill("0.5")
    mask = apply_rule(case.maps[0][row], RULE).astype(bool)
    mixed = np.where(mask[..., None], (shown + PREDICTION) / 2, shown)
    assert np.abs(drawn_at(opened, case, row) - mixed).max() <= 1
    only(opened, "probability")
    colour, levels = drawn_at(opened, case, row).sum(axis=2), case.maps[0][row]
    assert (colour[levels == 0] == 0).all()
    means = [colour[levels == level].mean() for level in np.unique(levels)]
    assert (np.diff(means) > -1).all()  # the brighter the more probable


def test_contours_run_along_the_mask_s_edge(open_page: Callable) -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:20, 10:30] = mask[20:25, 10:15] = True  # an L
    mask[20:30, 30:40] = True  # touches it at a corner
    case = make(1)
    case.payload["images"] |= {"height": [40], "width": [50]}
    stats = histograms.statistics(mask.astype(np.uint8) * 255, mask)
    case.payload["packed"] = pack([stats.hist_all, stats.hist_true, np.array([-1])])
    case.payload["pictures"] = [_picture(mask, [mask.astype(np.uint8) * 255], 0, True)]
    opened = ready(open_page(page(case.payload)))
    for name in ("truth", "prediction"):
        only(opened, name)
        opened.locator(f"#{name}-fill").uncheck()
        assert not canvas_pixels(opened).any()
        opened.locator(f"#{name}-contour").check()
        pixels = canvas_pixels(opened)
        zoom = opened.evaluate("viewer.state.view.zoom")
        assert zoom == 1
        height, width = pixels.shape[:2]
        scale = min(height / 40, width / 50)
        left, top = round(width / 2 - 25 * scale), round(height / 2 - 20 * scale)
        colour = {"truth": TRUTH, "prediction": PREDICTION}[name]
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
    """Starts and ends (E, 2), as (x, y), of the unit edges between the mask and what is not."""
    ys, xs = np.nonzero(mask[1:] != mask[:-1])
    starts, ends = [np.stack([xs, ys + 1], axis=1)], [np.stack([xs + 1, ys + 1], axis=1)]
    ys, xs = np.nonzero(mask[:, 1:] != mask[:, :-1])
    starts.append(np.stack([xs + 1, ys], axis=1))
    ends.append(np.stack([xs + 1, ys + 1], axis=1))
    return np.concatenate(starts), np.concatenate(ends)


def test_panes_zoom_and_move_together(open_page: Callable) -> None:
    case = make(3, rules=(RULE, RULE))
    for picture in case.payload["pictures"]:
        picture["maps"][1] = picture["maps"][0]  # so that the panes must look alike
    hist, true = case.stats[0].hist_all, case.stats[0].hist_true
    label = np.full(3, -1)
    case.payload["packed"] = pack([hist, true, label, hist, true, label])
    opened = ready(open_page(page(case.payload)))
    opened.locator("#shown-1").check()
    whole = canvas_pixels(opened, 0)
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
    assert (near != whole).any()
    assert (near == canvas_pixels(opened, 1)).all()
    opened.mouse.down()
    opened.mouse.move(x + 30, y + 10)
    opened.mouse.up()
    moved = canvas_pixels(opened, 1)
    assert (moved[10:, 30:] == near[:-10, :-30]).mean() > 0.98
    opened.locator("#panes canvas").nth(1).dblclick()
    assert (canvas_pixels(opened, 0) == whole).all()
    opened.mouse.move(x, y)
    opened.mouse.down(button="right")
    opened.mouse.move(x - 60, y + 20)
    opened.mouse.up(button="right")
    assert opened.evaluate("viewer.state.windowing") == pytest.approx(
        {"width": 195, "level": 137.5}, abs=1e-3
    )
    opened.keyboard.press("w")
    assert (canvas_pixels(opened, 0) == whole).all()


def test_the_pixel_under_the_pointer_is_told(open_page: Callable) -> None:
    case = make(2)
    opened = ready(open_page(page(case.payload)))
    row, (h, w) = 0, case.masks[0].shape
    opened.locator("#one-to-one").click()
    box = opened.locator("#panes canvas").bounding_box()
    top, left = (math.floor((box[k] - n) / 2 + 0.5) for k, n in (("height", h), ("width", w)))
    for y, x in ((3, 5), (h - 4, w // 2), (h // 2, w - 3)):
        opened.mouse.move(box["x"] + left + x + 0.5, box["y"] + top + y + 0.5)
        level = case.maps[0][row][y, x]
        words = opened.locator("#pointer").text_content().split(" · ")
        assert words[0] == f"x {x}, y {y}"
        assert words[1] == f"prob. {level / 255:.3f} ({level})"
        assert words[3] == ("ground truth yes" if case.masks[row][y, x] else "ground truth no")


def test_without_truth_there_is_no_dice(open_page: Callable) -> None:
    case = make(30, truth=False)
    opened = ready(open_page(page(case.payload)))
    assert opened.evaluate("rule => viewer.evaluate(0, rule).dice", asdict(RULE)) is None
    assert opened.locator("#all-mean, #chosen-dice, #truth-on, #head .dice, #dice-min").count() == 0
    areas = histograms.areas(case.stats[0], RULE)
    assert texts(opened, "#kinds label") == [
        f" mask {(areas > 0).sum()}",
        f" empty {(areas == 0).sum()}",
    ]
    opened.locator("#kind-1").uncheck()
    scaled = areas * 2**20 / case.stats[0].n_px
    order = [row for row in sorted(range(30), key=lambda row: -scaled[row]) if areas[row]]
    assert opened.evaluate("Array.from(viewer.state.order)") == order
    opened.keyboard.press("4")  # there is no such layer
    only(opened, "prediction")
    opened.locator("#one-to-one").click()
    assert count_of(canvas_pixels(opened), PREDICTION) == areas[chosen_row(opened)]


def test_nothing_is_cut_off_without_truth(open_page: Callable) -> None:
    opened = ready(open_page(page(make(30, truth=False, ids=[f"i{k}" for k in range(30)]).payload)))
    for width in (1280, 900, 400):
        opened.set_viewport_size({"width": width, "height": 700})
        assert opened.evaluate(CUT_OFF) == []


def test_ids_and_names_are_text_and_nothing_else(open_page: Callable) -> None:
    case = make(len(ODD_IDS), ids=ODD_IDS, embed=3, rules=(RULE, RULE))
    case.payload["title"] = ODD_IDS[1] + ODD_IDS[5]
    case.payload["notes"] = ODD_IDS
    for model, name in zip(case.payload["models"], ODD_IDS, strict=False):
        model["name"] = name
    opened = ready(open_page(page(case.payload)))
    assert opened.title() == case.payload["title"]
    assert opened.locator("#title").text_content() == case.payload["title"]
    opened.locator("#notes summary").click()
    assert texts(opened, "#notes summary") + texts(opened, "#notes li") == ODD_IDS
    assert texts(opened, "#model option") == ODD_IDS[:2]
    opened.locator("#head .id button").click()
    assert texts(opened, ".row .id") == sorted(ODD_IDS)
    for row, name in enumerate(ODD_IDS):
        opened.evaluate("row => viewer.choose(row)", row)
        assert texts(opened, "#chosen-image") == [name]
        if row >= 3:
            assert f"--ids {name}\n" in opened.locator("#absent").text_content()
    opened.locator("#text").fill("<IMG")
    assert opened.evaluate("Array.from(viewer.state.order)") == [0]
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img").count() == 0


def test_images_without_a_picture_show_numbers_and_the_way_to_one(open_page: Callable) -> None:
    case = make(10, embed=2)
    case.payload["pictures"][1] |= {"image": None, "truth": None}
    opened = ready(open_page(page(case.payload)))
    assert opened.locator(".row.absent").count() == 8
    name = case.payload["images"]["id"][7]
    opened.locator(".row", has_text=name).click()
    words = opened.locator("#absent").text_content()
    assert f"--ids {name}\n" in words
    assert f'viewer(ids=["{name}"])' in words
    assert opened.locator("#panes").is_hidden()
    assert texts(opened, "#chosen-dice") == [f"{dice_of(case, RULE)[7]:.6f}"]
    opened.evaluate("viewer.choose(1)")  # a map alone
    assert opened.locator("#panes").is_visible()
    assert "radiograph is not in the page" in opened.locator("#pointer").text_content()
    opened.locator("#one-to-one").click()
    only(opened, "prediction", "image", "truth")
    area = histograms.areas(case.stats[0], RULE)[1]
    assert count_of(canvas_pixels(opened), PREDICTION) == area


def test_a_page_without_any_picture_or_fold_opens(open_page: Callable) -> None:
    case = make(4, embed=0)
    case.payload["images"]["fold"] = [None] * 4
    case.payload["notes"] = []
    opened = ready(open_page(page(case.payload)))
    assert opened.locator("#absent").is_visible()
    assert opened.locator("#fold").is_hidden()
    assert texts(opened, "#count") == ["4 of 4 images"]


def test_keys_do_what_their_list_says(open_page: Callable) -> None:
    opened = ready(open_page(page(make(12).payload)))
    state = "viewer.state"
    order = opened.evaluate(f"Array.from({state}.order)")
    opened.evaluate("row => viewer.choose(row)", order[3])
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
    for key, rule in (
        ("]", (0.61, 2000, 0.3)),
        ("[", (0.6, 2000, 0.3)),
        ("'", (0.6, 2000, 0.31)),
        (";", (0.6, 2000, 0.3)),
        (".", (0.6, 2100, 0.3)),
        (",", (0.6, 2000, 0.3)),
    ):
        opened.keyboard.press(key)
        assert opened.evaluate(f"{state}.rules[0]") == asdict(Triplet(*rule))
    opened.keyboard.press("+")
    assert opened.evaluate(f"{state}.view.zoom") == 1.25
    opened.keyboard.press("f")
    assert opened.evaluate(f"{state}.view.zoom") == 1
    opened.keyboard.press("/")
    opened.keyboard.type("jk1?")  # in a field, keys are letters
    assert opened.locator("#text").input_value() == "jk1?"
    opened.keyboard.press("Escape")
    opened.keyboard.press("?")
    assert opened.locator("#help").is_visible()
    keys = texts(opened, "#shortcuts kbd")
    assert {*"jk1234cf0+-[];',.w/?"} <= set(keys)
    opened.keyboard.press("Escape")
    assert opened.locator("#help").is_hidden()


def test_a_long_list_keeps_few_rows_in_the_page(open_page: Callable) -> None:
    n = 12_000
    hist = np.zeros((n, 256), np.int64)
    hist[:, 255] = np.arange(n) % 97
    hist[:, 0] = 4096 - hist[:, 255]
    case = make(1)
    case.payload["images"] = {
        "id": [f"image_{row}" for row in range(n)],
        "fold": [0] * n,
        "height": [64] * n,
        "width": [64] * n,
    }
    case.payload |= {"packed": pack([hist, hist // 2, np.full(n, -1)]), "pictures": []}
    opened = ready(open_page(page(case.payload)))
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
def test_nothing_is_cut_off_at_any_size(
    open_page: Callable, scale: float, sizes: list[tuple[int, int]]
) -> None:
    uid = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875202.{}"
    ids = [uid.format(1000 + k, 900_000 + k) for k in range(12)]
    rules = (Triplet(0.5, 2000, 0.28039215686),) * 3
    case = make(12, rules=rules, vote=2, ids=ids)
    for k, model in enumerate(case.payload["models"]):
        name = f"deeplabv3plus_supervision_resnet_1024_v1_seed345{k}_size768_epochs12"
        model |= {"name": name, "labels": True, "rule": model["rule"] | {"label": 0.12352941}}
    case.payload["title"] = "deeplabv3plus_supervision_resnet_1024_v1_and_two_more, out of fold"
    case.payload["notes"] = [f"{word} note of a length that no header holds. " * 4 for word in "ab"]
    opened = ready(open_page(page(case.payload), device_scale_factor=scale))
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


def test_a_second_stage_s_ids_and_a_pane_s_numbers_are_seen_in_full(open_page: Callable) -> None:
    ids = [f"ID_{k:09x}" for k in range(200_000_000, 200_000_060)]
    case = make(60, rules=(RULE,) * 3, ids=ids)
    for k, model in enumerate(case.payload["models"]):
        model["name"] = f"deeplabv3plus_supervision_resnet_1024_v1_seed345{k}_size768_epochs12"
    opened = ready(open_page(page(case.payload)))
    opened.locator("#shown-1").check()
    cut = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
    assert opened.eval_on_selector_all("figcaption span", cut) == 0
    for width in (1280, 900):
        opened.set_viewport_size({"width": width, "height": 720})
        assert opened.eval_on_selector_all(".row .id", cut) == 0


def test_a_sorted_list_begins_at_its_top(open_page: Callable) -> None:
    opened = ready(open_page(page(make(80).payload)))
    opened.evaluate("document.getElementById('list').scrollTop = 1e9")
    opened.locator("#head .area button").click()
    assert opened.evaluate("document.getElementById('list').scrollTop") == 0


def test_a_page_that_a_browser_saved_opens_as_it_did(open_page: Callable) -> None:
    case = make(9, rules=(RULE, RULE), labels=True)
    opened = ready(open_page(page(case.payload)))
    saved = ready(open_page(opened.content()))
    for selector in ("#kinds", "#rule", "#head", ".row", "#shown", "#layers", "#shortcuts", "main"):
        assert texts(saved, selector) == texts(opened, selector)


@pytest.mark.parametrize(
    ("box", "kept", "least", "largest"),
    [
        ("top", "0.6", "0", "1"),
        ("min-area", "2000", "0", "1048577"),
        ("window-width", "255", "1", "510"),
    ],
)
def test_an_odd_number_is_brought_within_the_bounds_or_refused(
    open_page: Callable, box: str, kept: str, least: str, largest: str
) -> None:
    opened = ready(open_page(page(make(3).payload)))
    number = opened.locator(f"#{box}-number")
    odd = {"abc": kept, "": kept, "--": kept, "1e9": largest, "-1": least}
    for typed, shown in odd.items():
        number.press("Control+a")
        number.press("Delete")
        opened.keyboard.type(typed)
        opened.keyboard.press("Enter")
        assert number.input_value() == shown


def test_areas_name_their_unit_and_the_page_its_use(open_page: Callable) -> None:
    opened = ready(open_page(page(make(3).payload)))
    for selector in ("#rule label[for=min-area]", "#unit", "figcaption", "#chosen-mask"):
        assert [text for text in texts(opened, selector) if "px of 1024²" in text]
    assert texts(opened, "#about") == ["Research only, not a medical device."]


def test_an_old_browser_is_told_so_in_a_sentence(open_page: Callable) -> None:
    opened = open_page(page(make(2).payload), init="delete window.DecompressionStream")
    assert "cannot unpack" in opened.locator("#fatal").text_content()
    assert opened.locator("main").is_hidden()


def test_pack_is_planes_of_little_endian_bytes() -> None:
    arrays = [np.array([[1, 256], [65536, -1]]), np.array([2**31 - 1], np.int64)]
    planes = zlib.decompress(base64.b64decode(pack(arrays)))
    values = np.frombuffer(planes, np.uint8).reshape(4, 5).T.copy().view("<i4").ravel()
    assert values.tolist() == [1, 256, 65536, -1, 2**31 - 1]
    with pytest.raises(InputError, match="2147483648 is beyond 2147483647"):
        pack([np.array([2**31])])


def test_the_page_is_one_piece_and_knows_no_nan() -> None:
    case = make(1, ids=["</script>"])
    text = page(case.payload)
    assert text.count("</script>") == 2  # the data's and the code's
    assert "://" not in text
    data = text.split('id="payload">')[1].split("</script>")[0]
    assert json.loads(data) == case.payload
    case.payload["models"][0]["rule"]["top"] = math.nan
    with pytest.raises(InputError, match="null"):
        page(case.payload)
