import pytest

from kernel_lib.config import TrainParameters
from kernel_lib.plan import plan_training
from kernel_lib.stages import train
from tools.ablation import arms, claims, runner, table
from tools.ablation.arms import Joined, Trained
from tools.ablation.claims import SECTIONS, Claim, Spread
from tools.ablation.paired import measure_named

ARMS = arms.build()
LINES = [line for lines in SECTIONS.values() for line in lines]
# What a pair may differ in and still differ in one thing: of a loss, its options; of a start, the
# shorter training that comes with it.
TOGETHER = (
    {"loss", "loss_options"},
    {"label_weight", "side_weight"},
    {"network", "decoder_channels"},  # whose first is the width of DeepLabV3+
)


TRAINED = [arm for arm in ARMS.values() if isinstance(arm, Trained)]


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_every_row_can_be_trained(arm):
    rows = {each.name: each.row for each in TRAINED}
    planned = plan_training(TrainParameters(experiment=arm.name, seed=1, device="cpu"), rows)
    assert planned.run == f"{arm.name}_seed1"
    train.check(planned)


def test_rows_of_the_baselines_own_size_differ_from_it_in_one_thing():
    base = ARMS["unet"].row.model_dump(exclude={"name", "parent", "says"})
    alone = [
        "accumulated", "batch_16", "kept_early", "bce_dice", "lovasz", "focal", "weighted_bce",
        "nonempty", "positive_share", "hard", "multitask_v1", "attention", "deeplab",
        "unet_middle", "unet_large", "pretrained", "deep_supervision_v1",
    ]  # fmt: skip
    for name in alone:
        row = ARMS[name].row.model_dump(exclude={"name", "parent", "says"})
        differs = {key for key in base if base[key] != row[key]}
        assert len(differs) == 1 or differs in TOGETHER, name


def test_fine_tuned_arms_differ_from_their_control_in_the_loss():
    tuned, control = (ARMS[n].row.model_dump() for n in ("tuned_bce_dice", "tuned_bce"))
    assert {k for k in tuned if tuned[k] != control[k]} == {"name", "loss"}
    assert ARMS["tuned_bce"].row.weights == "unet"
    assert ARMS["deeplab_large_warm"].row.weights == "deeplab"


def test_every_side_of_every_claim_exists():
    known = {*ARMS, runner.IMAGES}
    for line in LINES:
        if isinstance(line, Claim | Spread):
            assert table.arms_of(line) <= known, line
        if isinstance(line, Claim):
            kinds = {measure_named(side.partition(":")[2]).unit for side in (line.a, line.b)}
            assert len(kinds) == 1, line
            assert line.a != line.b


def test_every_arm_serves_a_claim():
    used = {name for line in LINES if isinstance(line, Claim) for name in table.arms_of(line)}
    ahead = list(used - {runner.IMAGES})
    while ahead:
        new = {need for need, _ in ARMS[ahead.pop()].needs} - used
        used |= new
        ahead += new
    assert set(ARMS) <= used


def test_every_checkpoint_of_the_reference_solution_has_a_claim():
    """The names of the notes' list, sizes and seeds aside; what is stated twice stands once."""
    said = " ".join(line.says for line in (*claims.CHECKPOINTS, *claims.CURRENT_BEST))
    for name in (
        "UNetResNet34_512_v1", "UNetResNet34_512_v2", "UNetResNet34_512_v3", "UNetResNet34_512_v4",
        "UNetResNet34_512_v5", "UNetResNet34_512_v6", "multitask_v1", "multitask_v2",
        "deep_supervision_v1", "deep_supervision_v2", "deeplabv3plus_512_v1",
        "deeplabv3plus_512_v2", "deeplabv3plus_1024_v1", "deeplabv3plus_768_v1",
        "UNetResNet34_768_v1", "deeplabv3plus_supervision_1024_v1", "deeplabv3plus_1024_v2",
        "UNetResNet34_1024_v1",
    ):  # fmt: skip
        assert name in said


def test_joined_arms_cost_nothing_and_views_less_than_training():
    assert arms.cost(ARMS["two_networks"]) == 0
    assert 0 < arms.cost(ARMS["unet_hflip"]) < arms.cost(ARMS["unet"])
    assert isinstance(ARMS["two_step"], Joined)
    sizes = [ARMS[name].row.size for name in ("deeplab", "unet", "unet_middle", "unet_large")]
    assert sizes == [96, 96, 128, 192]  # which stand in for 512, 768 and 1024
