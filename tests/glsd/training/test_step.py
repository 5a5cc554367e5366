"""One step of Algorithm 1: what moves, what stays, and what the number of units and workers may not change."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glsd.config import Config
from glsd.losses.cross_entropy import CHUNK_BYTES_CPU
from glsd.losses.outputs import ViewOutputs
from glsd.training.batch import to_device
from glsd.training.determinism import same_sums
from glsd.training.loop import Metrics, NonFiniteLoss
from glsd.training.schedules import schedule
from glsd.training.state import TrainState, initial_state
from glsd.training.step import train_step, unit_losses
from tests.glsd.training.small import small_config, small_order, train, units
from tests.processes import run_in_two

CPU = torch.device("cpu")
WHOLE = {"optim.freeze_last_layer_epochs": 0, "optim.clip_grad": 0.3}
"""Every tensor learns; the clip is active on about a third of them, and the others show the scale of the gradients."""


def stepped(config: Config, num_steps: int = 1) -> tuple[TrainState, list[torch.Tensor]]:
    """A state after some steps, and the losses of each."""
    state, arriving, losses = initial_state(config, CPU), units(config), []
    for _ in range(num_steps):
        batches = [to_device(next(arriving), config.augment, CPU) for _ in range(config.units_per_step)]
        now = schedule(state.step, config, small_order(config).steps_per_epoch)
        losses.append(train_step(state, batches, now, config).losses)
    return state, losses


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    named = {f"student.{name}": value for name, value in state.student.state_dict().items()}
    named |= {f"teacher.{name}": value for name, value in state.teacher.state_dict().items()}
    named |= {f"centers.{name}": value for name, value in state.centers.items()}
    for name, parameter in state.student.named_parameters():
        named |= {f"{key}.{name}": value for key, value in state.optimizer.state.get(parameter, {}).items()}
    return named


def assert_learned_alike(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """AdamW hides the scale of gradients, its moments tell it: from 1e-9 to 1e3, so each is held to its own largest."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        atol = 1e-4 * value.abs().max().item() if name.startswith("exp_avg") else 1e-5
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=name)


class WithTable(nn.Module):
    """A student whose outputs depend on a table that is indexed often, as Swin's on that of relative positions."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        random = torch.Generator().manual_seed(0)
        self.index = torch.randint(0, 50, (50_000,), generator=random)
        self.weights = torch.randn(50_000, generator=random)
        self.table = nn.Parameter(torch.zeros(50))

    def forward(self, *arguments: Any) -> list[ViewOutputs]:
        shift = (self.table[self.index] * self.weights).mean()
        outputs: list[ViewOutputs] = self.network(*arguments)
        return [views._replace(u=views.u | {"global": views.u["global"] + shift}) for views in outputs]


@pytest.mark.usefixtures("several_threads")
def test_on_several_threads_a_step_has_the_same_gradients_each_time():
    config, gradients = small_config(), list[torch.Tensor]()
    batch = to_device(next(units(config)), config.augment, CPU)
    for _ in range(10):
        state = initial_state(config, CPU)
        state.replica = student = WithTable(state.student)
        train_step(state, [batch], schedule(0, config, 3), config)
        gradients.append(student.table.grad)
    assert gradients[0].any()
    assert all(torch.equal(again, gradients[0]) for again in gradients)


@pytest.mark.parametrize("filled", [False, True])
def test_the_same_sums_are_switched_on_for_the_process_and_leave_what_a_user_asked_for(filled: bool) -> None:
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    try:
        for mode, expected in ((0, (1, False)), (1, (1, filled)), (2, (2, filled))):
            torch.set_deterministic_debug_mode(mode)
            deterministic.fill_uninitialized_memory = filled
            same_sums()
            assert (torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory) == expected
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("setting", ["vanilla", "similarity", "geometric"])
def test_a_batch_in_several_units_teaches_what_one_unit_of_it_teaches(setting):
    one, _ = stepped(small_config(setting, **WHOLE, **{"data.unit_size": 4}), 2)
    two, _ = stepped(small_config(setting, **WHOLE, **{"data.unit_size": 2}), 2)
    assert_learned_alike(tensors(two), tensors(one))


def test_the_teacher_moves_by_the_moving_average_alone_and_receives_no_gradient():
    config = small_config()
    before = initial_state(config, CPU)
    state, _ = stepped(config)
    students = dict(state.student.named_parameters())
    starts = dict(before.teacher.named_parameters())
    for name, parameter in state.teacher.named_parameters():
        expected = 0.9 * starts[name] + 0.1 * students[name]
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
        assert parameter.grad is None


def test_only_the_student_drops_paths():
    configs = (small_config(backbone="test_vit", **{"model.drop_path": rate}) for rate in (0.0, 0.5))
    (one, losses), (other, others) = (stepped(config) for config in configs)
    assert torch.equal(one.centers["global"], other.centers["global"])  # means of what the teacher gives
    assert torch.equal(one.centers["dense"], other.centers["dense"])
    assert losses[0][0] != others[0][0]


def test_two_steps_and_two_seeds_drop_different_paths_of_the_same_batch_and_weights():
    config = small_config(backbone="test_vit", **{"model.drop_path": 0.5})
    state = initial_state(config, CPU)
    batch = to_device(next(units(config)), config.augment, CPU)

    def loss(seed: int, step: int) -> float:
        state.step = step
        with torch.no_grad():
            losses, _ = unit_losses(state, batch, 0.04, config.with_overrides({"seed": seed}))
        return losses.total.item()

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(seed, step) for seed in (0, 1) for step in (0, 1)}) == 4


def test_the_last_layers_stay_as_they_are_in_the_first_epoch_and_then_learn():
    config = small_config(**{"optim.freeze_last_layer_epochs": 1})
    start = {name: value.clone() for name, value in initial_state(config, CPU).student.state_dict().items()}
    last = [name for name in start if "last_layer" in name]
    assert len(last) == 4  # weight_g and weight_v of h̄ and of h
    frozen, _ = stepped(config, 3)
    assert all(torch.equal(frozen.student.state_dict()[name], start[name]) for name in last)
    learning, _ = stepped(config, 4)
    assert not any(torch.equal(learning.student.state_dict()[name], start[name]) for name in last)


def test_centres_are_the_running_mean_of_the_teachers_logits_over_the_whole_batch():
    config = small_config()
    state = initial_state(config, CPU)
    teacher = copy.deepcopy(state.teacher)
    logits: dict[str, list[torch.Tensor]] = {"global": [], "dense": []}
    arriving = units(config)
    batches = [to_device(next(arriving), config.augment, CPU) for _ in range(2)]
    with torch.no_grad():
        for batch in batches:
            (views,) = teacher(batch.crops[:1])
            for level, head in teacher.heads.items():
                logits[level] += list(views.u[level].flatten(0, -2) @ head.last_layer_weight().T)
    train_step(state, batches, schedule(0, config, 3), config)
    for name, rows in logits.items():
        expected = 0.1 * torch.stack(rows).mean(0)
        torch.testing.assert_close(state.centers[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("infinite", ["loss", "gradient"])
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_no_weight_moment_or_centre(infinite):
    config = small_config()
    state, _ = stepped(config)
    before = {name: value.clone() for name, value in tensors(state).items()}
    batch = to_device(next(units(config, 1)), config.augment, CPU)
    value = torch.inf if infinite == "gradient" else 0.0
    if infinite == "loss":
        batch.crops[0][0, 0, 0, 0, 0] = torch.inf
    for parameter in state.student.parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient: torch.full_like(gradient, value))
    report = train_step(state, [batch], schedule(state.step, config, 3), config)
    assert report.losses.isfinite().all() == (infinite == "gradient")
    assert not report.applied
    for name, value in tensors(state).items():
        assert torch.equal(value, before[name]), name


class NeverWaiting(TorchDispatchMode):
    """Refuses what the host would wait for on an accelerator: values, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2"), name
        if name in ("index", "index_put", "index_put_"):
            assert not any(index.dtype == torch.bool for index in args[1] if index is not None), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("setting", ["vanilla", "similarity", "geometric"])
def test_a_step_asks_the_device_for_no_value(setting):
    config = small_config(setting, "test_vit", **{"model.drop_path": 0.2})
    state = initial_state(config, CPU)
    arriving = [unit for unit, _ in zip(units(config), range(2), strict=False)]
    with NeverWaiting():
        batches = [to_device(unit, config.augment, CPU) for unit in arriving]
        train_step(state, batches, schedule(0, config, 3), config)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation gives."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.num_elements = max([self.num_elements, *(t.numel() for t in tree_leaves(outputs) if torch.is_tensor(t))])
        return outputs


def test_no_more_logits_exist_at_a_time_than_fit_into_a_chunk():
    config = small_config(**{"model.num_prototypes": 65536, "model.bottleneck_dim": 8, "data.unit_size": 4})
    state = initial_state(config, CPU)
    batch = to_device(next(units(config)), config.augment, CPU)
    with Largest() as largest:
        losses, _ = unit_losses(state, batch, 0.04, config)
        losses.total.backward()
    num_rows = CHUNK_BYTES_CPU // (2 * 4 * 65536)  # logits and probabilities, in float32
    assert 8 < num_rows < 4 * 2 * 4  # beyond the last layer, and below the four images' global crops' locations
    assert largest.num_elements == num_rows * 65536


def test_a_loss_in_bfloat16_is_a_float32_near_that_of_float32():
    totals = {}
    for precision in ("float32", "bfloat16"):
        config = small_config("geometric", "test_vit", **{"optim.precision": precision})
        state = initial_state(config, CPU)
        batch = to_device(next(units(config)), config.augment, CPU)
        losses, _ = unit_losses(state, batch, 0.04, config)
        totals[precision] = losses.total
        assert train_step(state, [batch], schedule(state.step, config, 3), config).applied
    assert totals["bfloat16"].dtype == torch.float32
    assert totals["bfloat16"] != totals["float32"]
    torch.testing.assert_close(totals["bfloat16"], totals["float32"], rtol=2**-8, atol=0)  # it keeps eight bits


def _worker(rank: int, folder: str, config: Config) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    state = initial_state(config, CPU)
    losses: list[float] = []
    ranks: list[float] = []

    def log(metrics: Metrics, _: TrainState | None) -> None:
        losses.append(metrics["loss"])
        ranks.append(metrics["rank"])

    train(
        state,
        units(config, 0, rank, 2),
        config,
        3,
        CPU,
        log,
        diagnose=lambda state, batch: {"rank": torch.tensor(rank)},
    )
    assert ranks == [0.5] * len(losses)  # the mean over both workers, on both

    broken = initial_state(config, CPU)
    with torch.no_grad():
        broken.teacher.heads["global"].last_layer.weight_g.fill_(torch.inf)
    with pytest.raises(NonFiniteLoss) as caught:
        train(broken, units(config, 0, rank, 2), config, 3, CPU, log)
    torch.save({"tensors": tensors(state), "losses": losses, "error": str(caught.value)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def in_two_processes(config: Config, folder: Path) -> list[dict[str, Any]]:
    """What each of two workers has after a run, and what it says of a run whose first step is not finite."""
    run_in_two(_worker, str(folder), config)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_of_two_units_learn_what_one_of_one_unit_learns(tmp_path: Path):
    config = small_config(**WHOLE, **{"model.drop_path": 0.3, "optim.base_lr": 0.005, "data.unit_size": 1})
    first, second = in_two_processes(config, tmp_path)
    whole = config.with_overrides({"data.unit_size": 4})
    state = initial_state(whole, CPU)
    losses: list[float] = []
    train(state, units(whole), whole, 3, CPU, lambda metrics, _: losses.append(metrics["loss"]))
    torch.testing.assert_close(first["losses"], losses, rtol=1e-5, atol=1e-6)
    for name, value in first["tensors"].items():
        assert torch.equal(second["tensors"][name], value), name
    assert_learned_alike(first["tensors"], tensors(state))

    images = sorted(next(units(whole))["image_id"].tolist())
    assert all(f"since the last reading: {images}." in worker["error"] for worker in (first, second))


@pytest.mark.slow
def test_two_processes_train_a_backbone_with_layers_that_reach_no_loss(tmp_path: Path):
    config = small_config(backbone="lcnet_050", **{"optim.epochs": 1})
    first, second = in_two_processes(config, tmp_path)
    assert len(first["losses"]) == 3
    for name, parameter in initial_state(config, CPU).student.named_parameters():
        assert torch.equal(first["tensors"][f"student.{name}"], second["tensors"][f"student.{name}"]), name
        assert parameter.requires_grad or torch.equal(first["tensors"][f"student.{name}"], parameter), name
