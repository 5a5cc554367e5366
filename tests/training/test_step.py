"""One step of Algorithm 1: what moves, what stays, and what the number of units and workers may not change."""

import copy
from pathlib import Path

import pytest
import torch

from glsd.config import Config
from glsd.training import Metrics, TrainState, initial_state, to_device, train, train_step
from tests.processes import run_in_two
from tests.training.small import small_config, small_order, units

CPU = torch.device("cpu")


def stepped(config: Config, num_steps: int = 1) -> tuple[TrainState, list[torch.Tensor]]:
    """A state after some steps, and the losses of each."""
    state, arriving, losses = initial_state(config, CPU), units(config), []
    for _ in range(num_steps):
        batches = [to_device(next(arriving), config.augment, CPU) for _ in range(config.units_per_step)]
        report = train_step(state, state.student, batches, len(batches), config, small_order(config).steps_per_epoch)
        losses.append(report.losses)
        state.step += 1
    return state, losses


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    named = {f"student.{name}": value for name, value in state.student.state_dict().items()}
    named |= {f"teacher.{name}": value for name, value in state.teacher.state_dict().items()}
    return named | {f"centers.{name}": value for name, value in state.centers._asdict().items() if value is not None}


@pytest.mark.parametrize("setting", ["vanilla", "similarity", "geometric"])
def test_a_batch_in_several_units_teaches_what_one_unit_of_it_teaches(setting):
    one, _ = stepped(small_config(setting, **{"data.unit_size": 4, "optim.freeze_last_layer_epochs": 0}), 2)
    two, _ = stepped(small_config(setting, **{"data.unit_size": 2, "optim.freeze_last_layer_epochs": 0}), 2)
    for name, value in tensors(two).items():
        torch.testing.assert_close(value, tensors(one)[name], rtol=1e-4, atol=1e-5, msg=name)


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
    assert torch.equal(one.centers.global_, other.centers.global_)  # means of what the teacher gives
    assert torch.equal(one.centers.dense, other.centers.dense)
    assert losses[0][0] != others[0][0]


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
    logits: dict[str, list[torch.Tensor]] = {"global_": [], "dense": []}
    arriving = units(config)
    batches = [to_device(next(arriving), config.augment, CPU) for _ in range(2)]
    with torch.no_grad():
        for batch in batches:
            (views,) = teacher(batch.crops[:1])
            logits["global_"] += list(views.u_bar.flatten(0, -2) @ teacher.head.last_layer_weight().T)
            logits["dense"] += list(views.u.flatten(0, -2) @ teacher.dense_head.last_layer_weight().T)
    train_step(state, state.student, batches, 2, config, 3)
    for name, rows in logits.items():
        expected = 0.1 * torch.stack(rows).mean(0)
        torch.testing.assert_close(getattr(state.centers, name), expected, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_not_finite_changes_nothing():
    config = small_config()
    state, _ = stepped(config)
    before = {name: value.clone() for name, value in tensors(state).items()}
    batch = to_device(next(units(config, 1)), config.augment, CPU)
    batch.crops[0][0, 0, 0, 0, 0] = torch.inf
    report = train_step(state, state.student, [batch], 1, config, 3)
    assert not report.applied
    for name, value in tensors(state).items():
        assert torch.equal(value, before[name]), name


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
    torch.save({"tensors": tensors(state), "losses": losses}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_with_twice_the_units_learns(tmp_path: Path):
    config = small_config(**{"optim.freeze_last_layer_epochs": 0, "model.drop_path": 0.3, "optim.base_lr": 0.005})
    run_in_two(_worker, str(tmp_path), config)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    state = initial_state(config, CPU)
    losses: list[float] = []
    train(state, units(config), config, 3, CPU, lambda metrics, _: losses.append(metrics["loss"]))
    torch.testing.assert_close(ranks[0]["losses"], losses, rtol=1e-5, atol=1e-6)
    for name, value in tensors(state).items():
        assert torch.equal(ranks[0]["tensors"][name], ranks[1]["tensors"][name]), name
        torch.testing.assert_close(ranks[0]["tensors"][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_train_a_backbone_with_layers_that_reach_no_loss(tmp_path: Path):
    config = small_config(backbone="lcnet_050", **{"optim.epochs": 1})
    run_in_two(_worker, str(tmp_path), config)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first["losses"]) == 3
    for name, parameter in initial_state(config, CPU).student.named_parameters():
        assert torch.equal(first["tensors"][f"student.{name}"], second["tensors"][f"student.{name}"]), name
        assert parameter.requires_grad or torch.equal(first["tensors"][f"student.{name}"], parameter), name
