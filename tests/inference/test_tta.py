from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kernel_lib.errors import InputError
from kernel_lib.inference import tta
from kernel_lib.inference.tta import View

FLIPS = ("none", "hflip", "vflip", "flips", "hflip+vflip")
NAMES = (*tta.TTA, "hflip+vflip", "hflip+multiscale", "multiscale+flips")


def there_and_back(view: View, x: torch.Tensor) -> torch.Tensor:
    """What a network that returns its input would give."""
    return view.inverse(view.forward(x).float(), (x.shape[-2], x.shape[-1]))


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 1, 6, 10), (1, 1, 7, 5), (3, 1, 1, 3)])
def test_every_flip_has_its_exact_inverse(name, shape):
    size = shape[-2:]
    torch.manual_seed(0)
    for x in (torch.randn(shape), torch.randint(0, 256, shape, dtype=torch.uint8)):
        for view in tta.views(name):
            assert view.forward(x).dtype == x.dtype
            assert torch.equal(view.inverse(view.forward(x), size), x)
            assert torch.equal(view.forward(view.inverse(x, size)), x)


@pytest.mark.parametrize("name", NAMES)
def test_no_view_is_there_twice_and_the_first_is_the_image(name):
    x = torch.rand((1, 1, 128, 96), generator=torch.Generator().manual_seed(1))
    seen = [view.forward(x) for view in tta.views(name)]
    assert len({tuple(s.flatten().tolist()) for s in seen}) == len(seen)
    assert seen[0] is x


def test_what_the_flips_turn():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    seen = [view.forward(x).flatten().tolist() for view in tta.views("flips")]
    assert seen == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert [v.forward(x).flatten().tolist() for v in tta.views("hflip")] == [seen[0], seen[1]]
    assert [v.forward(x).flatten().tolist() for v in tta.views("vflip")] == [seen[0], seen[2]]


def test_names_join_to_all_products():
    joined = tta.views("hflip+multiscale")
    assert len(joined) == 6
    assert set(joined) == {View(hflip=h, scale=s) for h in (False, True) for s in (1, 0.75, 1.25)}
    assert set(tta.views("hflip+vflip")) == set(tta.views("flips"))
    assert set(tta.views("flips+multiscale")) == set(tta.views("multiscale+flips"))
    assert tta.views("hflip+hflip") == tta.views("none+hflip") == tta.views("hflip")


@pytest.mark.parametrize(
    ("side", "smaller", "larger"),
    [
        (1024, 768, 1280),
        (768, 576, 960),
        (512, 384, 640),
        (256, 192, 320),
        (192, 128, 256),  # 144 and 240 are halfway: away from 192
        (128, 96, 160),
        (96, 64, 128),
        (64, 32, 96),
        (32, 32, 32),
    ],
)
def test_scaled_sides_are_multiples_of_32(side, smaller, larger):
    sizes = [(side, 32), (smaller, 32), (larger, 32)]
    x = torch.zeros((1, 1, side, 32), dtype=torch.uint8)
    for view, size in zip(tta.views("multiscale"), sizes, strict=True):
        assert view.size_of((side, 32)) == size == view.forward(x).shape[2:]


@given(st.integers(1, 400), st.floats(0.1, 3).filter(lambda s: s != 1))
def test_a_scaled_side_is_the_nearest_multiple_that_there_is(side, scale):
    scaled, _ = View(scale=scale).size_of((side, 32))
    assert scaled % 32 == 0
    assert scaled >= 32
    assert scaled == 32 or abs(scaled - side * scale) <= 16 + 1e-6


def test_views_of_one_size_are_one_view():
    chosen = tta.views("hflip+multiscale")
    assert tta.distinct(chosen, (32, 32)) == (View(), View(hflip=True))
    assert tta.distinct(chosen, (64, 32)) == chosen  # one side is enough
    assert tta.distinct(chosen, (512, 512)) == chosen
    assert len(tta.distinct(chosen, torch.zeros((1, 1, 32, 32)).shape[-2:])) == 2  # torch's own
    x = torch.randint(0, 256, (1, 1, 32, 32), dtype=torch.uint8)
    assert all(view.forward(x).dtype == torch.uint8 for view in chosen)  # nothing was resized


@pytest.mark.parametrize("scale", [0.75, 1.25])
@pytest.mark.parametrize("shape", [(1, 1, 128, 128), (2, 1, 96, 160), (1, 1, 101, 67)])
def test_a_constant_survives_a_scale(scale, shape):
    x = torch.full(shape, 77, dtype=torch.uint8)
    looked_at = View(scale=scale).forward(x)
    assert looked_at.dtype == torch.float32
    torch.testing.assert_close(looked_at, torch.full_like(looked_at, 77.0))
    torch.testing.assert_close(there_and_back(View(scale=scale), x), x.float())


# The antialiasing window is cut at whole pixels: its middle is off by a hundredth of one.
@pytest.mark.parametrize(("scale", "off"), [(0.75, 0.02), (1.25, 1e-3)])
@pytest.mark.parametrize("vertical", [False, True])
def test_a_ramp_survives_a_scale(scale, off, vertical):
    x = torch.arange(128.0).expand(1, 1, 128, 128)
    x = x.transpose(-1, -2).contiguous() if vertical else x.contiguous()
    error = (there_and_back(View(scale=scale), x) - x).abs()
    assert error[..., 4:-4, 4:-4].max() < off
    assert error.max() < 1  # at the edge there is nothing to go on


def centroid(x: torch.Tensor) -> list[float]:
    weights = x[0, 0].double()
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in weights.shape)
    return (torch.stack([weights.sum(1) @ rows, weights.sum(0) @ columns]) / weights.sum()).tolist()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(128, 128), (96, 160), (101, 67)])
@pytest.mark.parametrize("sigma", [1.5, 5.0])
def test_a_blob_stays_where_it_is(name, size, sigma):
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    at = (0.4 * size[0] + 0.3, 0.6 * size[1] - 0.2)
    squared = (rows - at[0]) ** 2 + (columns - at[1]) ** 2
    blob = (255 * torch.exp(-squared / (2 * sigma**2))).round().to(torch.uint8)[None, None]
    before = centroid(blob)
    for view in tta.views(name):
        back = there_and_back(view, blob)
        assert back.shape == blob.shape
        assert math.dist(centroid(back), before) < 0.5


def test_a_shrunk_view_sees_what_lies_between_its_pixels():
    """Without antialiasing a line one pixel wide could vanish, or weigh more than it is."""
    for column in range(20, 28):
        x = torch.zeros((1, 1, 128, 128))
        x[..., column] = 100.0
        small = View(scale=0.25).forward(x)
        assert float(small[0, 0, 5].sum()) == pytest.approx(25.0, rel=1e-4)


def test_flip_and_scale_commute():
    x = torch.randint(0, 256, (1, 1, 64, 96), dtype=torch.uint8)
    both = View(hflip=True, scale=1.25).forward(x)
    torch.testing.assert_close(both, View(scale=1.25).forward(x).flip(-1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hflp", "TTA 'hflp' is unknown; nearest: hflip"),
        ("hflip+multscale", r"TTA 'hflip\+multscale': 'multscale' is unknown; nearest: multisc"),
        ("", "TTA '' is unknown; nearest: none, hflip, vflip, flips, multiscale"),
        ("hflip+", r"TTA 'hflip\+': '' is unknown.*names join with \+"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        tta.views(name)


P, Q, HALF = [[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize("as_pixels", [torch.tensor, lambda x: np.array(x, np.float32)])
@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([P, P], 0.0),
        ([P, Q], 1 - 2 * 1 / (2 + 1)),
        ([P, HALF], 1 - 2 * 1 / (2 + 1)),
        ([Q, HALF], 1 - 2 * 0.5 / (1 + 1)),
        ([P, P[::-1]], 1.0),
        ([P, Q, HALF], (1 / 3 + 1 / 3 + 1 / 2) / 3),
        ([P, P, Q], 2 * (1 / 3) / 3),
    ],
)
def test_views_disagree_by_one_less_the_mean_soft_dice_of_their_pairs(as_pixels, views, expected):
    prob = [as_pixels([[view], [P]]) for view in views]  # (2, 1, H, W): an image, and the same one
    if as_pixels is torch.tensor:
        prob = [one.float() for one in prob]
    found = tta.disagreement(prob)
    assert found.shape == (2, 1)
    assert found[0].item() == pytest.approx(expected, abs=1e-7)
    others = tta.disagreement([as_pixels(P) * 1.0] * len(views))
    assert others == 0


def test_maps_that_are_all_but_zero_do_not_disagree_and_one_view_cannot():
    tiny = torch.full((1, 8, 8), 1e-4)
    assert tta.disagreement([tiny, 9 * tiny]).item() < 1e-4
    assert tta.disagreement([0 * tiny, 0 * tiny]).item() == 0
    assert tta.disagreement([tiny]) is None
    assert tta.disagreement([]) is None


@given(
    array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
        lambda shape: arrays(
            np.float32, (shape[0] + 1, *shape[1:]), elements=st.floats(0, 1, width=32)
        )
    ),
    st.randoms(use_true_random=False),
)
def test_disagreement_is_from_0_to_1_in_any_order_and_as_defined(prob, random):
    views = list(prob)
    found = tta.disagreement(views)
    assert 0 <= found <= 1
    assert tta.disagreement(views[:2]) == tta.disagreement(views[1::-1])
    assert tta.disagreement([views[0]] * 3) == 0
    pairs = [
        ((p - q) ** 2).sum() / max((p**2).sum() + (q**2).sum(), 1)
        for p, q in combinations(prob.astype(np.float64), 2)
    ]
    assert found == pytest.approx(np.mean(pairs), abs=1e-5)
    random.shuffle(views)
    assert tta.disagreement(views) == pytest.approx(found, abs=1e-6)


def test_the_number_of_threads_does_not_change_a_disagreement():
    prob = torch.rand((2, 1, 1, 512, 512), generator=torch.Generator().manual_seed(0)).unbind()
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            found.append(tta.disagreement(prob).item())
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
