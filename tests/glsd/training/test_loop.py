"""The loop: logs, checkpoints, probes, the exact resume, and the stop at a loss that is not finite."""

import copy
import io
import math
from collections.abc import Iterator

import pytest
import torch
from torch.utils._pytree import tree_map_only

from glsd.evaluation.collapse import collapse_metrics
from glsd.training.batch import Batch, Unit
from glsd.training.loop import Metrics, NonFiniteLoss
from glsd.training.state import TrainState, initial_state
from tests.glsd.training.small import small_config, train, units
from tests.processes import run_in_two

CPU = torch.device("cpu")


def saved(state: TrainState) -> bytes:
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    return buffer.getvalue()


def assert_equal_states(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal_states(one[key], other[key])
    elif isinstance(one, list | tuple):
        for mine, others in zip(one, other, strict=True):
            assert_equal_states(mine, others)
    else:
        assert one == other


@pytest.mark.parametrize("backbone", ["test_convnext", "test_resnet", "test_vit"])
def test_a_run_continued_from_any_checkpoint_ends_bit_for_bit_as_one_that_was_never_interrupted(backbone):
    config = small_config(backbone=backbone, **{"model.drop_path": 0.2, "checkpoint_every_steps": 1})
    checkpoints: dict[int, bytes] = {}

    def keep(metrics: dict[str, float], state: TrainState | None) -> None:
        if state is not None:
            checkpoints[state.step] = saved(state)

    train(initial_state(config, CPU), units(config), config, 3, CPU, keep)
    assert sorted(checkpoints) == [1, 2, 3, 4, 5, 6]
    final = torch.load(io.BytesIO(checkpoints[6]), weights_only=True)
    for step in (1, 3, 5):
        state = initial_state(config, CPU)
        state.load_state_dict(torch.load(io.BytesIO(checkpoints[step]), weights_only=True))
        train(state, units(config, step), config, 3, CPU, lambda metrics, state: None)
        assert_equal_states(state.state_dict(), final)


def test_a_resume_does_not_depend_on_how_the_saved_tensors_lie_in_memory():
    config = small_config(backbone="test_resnet", **{"checkpoint_every_steps": 1})
    checkpoints: list[bytes] = []

    def keep(metrics: dict[str, float], state: TrainState | None) -> None:
        if state is not None:
            checkpoints.append(saved(state))

    train(initial_state(config, CPU), units(config), config, 3, CPU, keep)
    loaded = torch.load(io.BytesIO(checkpoints[2]), weights_only=True)
    state = initial_state(config, CPU)
    state.load_state_dict(tree_map_only(torch.Tensor, torch.Tensor.contiguous, loaded))
    for weight, moments in state.optimizer.state.items():
        assert weight.stride() == moments["exp_avg"].stride() == moments["exp_avg_sq"].stride()
    kernels = [weight for weight in state.student.backbone.parameters() if weight.ndim == 4]
    assert len(kernels) > 10
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    train(state, units(config, 3), config, 3, CPU, lambda metrics, state: None)
    assert_equal_states(state.state_dict(), torch.load(io.BytesIO(checkpoints[5]), weights_only=True))


def test_logs_come_at_the_interval_and_checkpoints_at_the_end_of_each_epoch():
    config = small_config(**{"log_every_steps": 2})
    seen: list[tuple[int, bool]] = []
    train(
        initial_state(config, CPU), units(config), config, 3, CPU, lambda m, s: seen.append((m["step"], s is not None))
    )
    assert seen == [(2, False), (3, True), (4, False), (6, True)]


def test_a_line_holds_the_mean_losses_since_the_last_one_and_the_schedules_of_its_last_step():
    def lines(log_every_steps: int) -> list[Metrics]:
        settings = {"log_every_steps": log_every_steps, "objective.teacher_temperature_warmup_epochs": 2}
        config, logged = small_config(**settings), list[Metrics]()
        train(initial_state(config, CPU), units(config), config, 3, CPU, lambda metrics, _: logged.append(metrics))
        return logged

    each, some = lines(1), lines(2)
    assert [line["step"] for line in some] == [2, 3, 4, 6]
    for line, steps in zip(some, ([1, 2], [3], [4], [5, 6]), strict=True):
        for name in ("loss", "loss_global", "loss_local", "matched"):
            mean = sum(each[step - 1][name] for step in steps) / len(steps)
            assert line[name] == pytest.approx(mean, rel=1e-5)
        left = (1 + math.cos(math.pi * (steps[-1] - 1) / 6)) / 2  # of a cosine over the six steps
        assert line["lr"] == pytest.approx(1e-6 + (0.05 * 4 / 256 - 1e-6) * left)
        assert line["weight_decay"] == pytest.approx(0.4 - 0.36 * left)
        assert line["teacher_momentum"] == pytest.approx(1 - 0.1 * left)
    assert [line["teacher_temperature"] for line in some] == [0.04, 0.04, 0.07, 0.07]
    assert [line["epoch"] for line in some] == [2 / 3, 1, 4 / 3, 2]


def test_a_vanilla_run_logs_neither_a_local_loss_nor_a_share_of_matches():
    config, logged = small_config("vanilla", **{"optim.epochs": 1}), list[Metrics]()
    train(initial_state(config, CPU), units(config), config, 1, CPU, lambda metrics, _: logged.append(metrics))
    assert [line["loss"] == line["loss_global"] for line in logged] == [True]
    assert not {"loss_local", "matched"} & logged[0].keys()


class Clock:
    """A clock that stands still until it is told what something took."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


def test_speed_is_that_of_the_steps_since_the_last_line_without_probes_and_checkpoints(monkeypatch):
    config = small_config(
        "vanilla",
        **{
            "log_every_steps": 2,
            "evaluation.knn_every_epochs": 1,  # a probe after steps 3 and 6
            "checkpoint_every_epochs": 2,
            "checkpoint_every_steps": 4,  # a checkpoint after steps 4 and 6
        },
    )
    clock, state, lines = Clock(), initial_state(config, CPU), list[tuple[float, ...]]()
    monkeypatch.setattr("glsd.training.loop.time", clock)

    def arriving() -> Iterator[Unit]:
        for unit in units(config):
            clock.seconds += 1
            yield unit

    def computing(module: torch.nn.Module, arguments: tuple[object, ...]) -> None:
        clock.seconds += 3 if state.step < 3 else 1

    def probe(teacher: torch.nn.Module, step: int) -> Metrics:
        clock.seconds += 1000
        return {}

    def log(metrics: Metrics, due: TrainState | None) -> None:
        clock.seconds += 0 if due is None else 1000
        lines.append(tuple(metrics[name] for name in ("step", "images_per_s", "data_wait", "seconds_left")))

    state.student.register_forward_pre_hook(computing)
    train(state, arriving(), config, 3, CPU, log, {"knn": probe})
    # Two units a step: at first it takes 8 s, 2 of them waiting, and then 4 s; what is left goes by a slow mean.
    assert lines == [
        (2, 4 / 8, 2 / 8, 4 * 8),
        (3, 4 / 8, 2 / 8, 3 * 8),
        (4, 4 / 4, 2 / 4, pytest.approx(2 * (0.7 * 8 + 0.3 * 4))),
        (6, 4 / 4, 2 / 4, 0.0),
    ]


@pytest.mark.parametrize(("every", "expected"), [(0, [3]), (2, [2, 3]), (5, [3])])
def test_the_teacher_is_probed_every_so_many_epochs_and_at_the_end(every, expected):
    config = small_config("vanilla", **{"optim.epochs": 3, "evaluation.knn_every_epochs": every})
    probed: list[int] = []

    def probe(teacher: torch.nn.Module, step: int) -> Metrics:
        probed.append(step)
        return {}

    train(initial_state(config, CPU), units(config), config, 1, CPU, lambda metrics, _: None, {"knn": probe})
    assert probed == expected


def test_probes_see_the_teacher_at_their_epochs_and_change_nothing():
    plain = initial_state(small_config(), CPU)
    train(plain, units(small_config()), small_config(), 3, CPU, lambda metrics, state: None)

    config = small_config(**{"evaluation.knn_every_epochs": 1})
    probed, measured = initial_state(config, CPU), []
    probe = {"knn": lambda teacher, step: {"knn": 10.0 * step}}
    train(probed, units(config), config, 3, CPU, lambda m, s: measured.append((m["step"], m.get("knn"))), probe)
    assert [pair for pair in measured if pair[1] is not None] == [(3, 30.0), (6, 60.0)]
    assert_equal_states(probed.state_dict(), plain.state_dict())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_training_with_a_look_for_collapse_ends_bit_for_bit_as_training_without(backbone):
    config = small_config(backbone=backbone, **{"model.drop_path": 0.2 if backbone != "test_resnet" else 0.0})
    plain, watched = initial_state(config, CPU), initial_state(config, CPU)
    train(plain, units(config), config, 3, CPU, lambda metrics, state: None)

    def diagnose(state: TrainState, batch: Batch) -> dict[str, torch.Tensor]:
        return collapse_metrics(state.teacher, batch, state.centers, config, 0.04)

    logged: list[dict[str, float]] = []
    train(watched, units(config), config, 3, CPU, lambda m, s: logged.append(m), None, diagnose)
    assert_equal_states(watched.state_dict(), plain.state_dict())
    assert all(0 < metrics["feature_std"] < 2 for metrics in logged)


def test_a_diagnosis_is_made_when_metrics_are_logged_of_the_last_unit_and_goes_into_them():
    config = small_config(**{"log_every_steps": 2})
    ids = {int(unit["unit"][0]): unit["image_id"].tolist() for unit in units(config)}
    seen: list[tuple[int, list[int]]] = []

    def diagnose(state: TrainState, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append((state.step, batch.image_ids.tolist()))
        return {"seen": torch.tensor(10 * state.step)}

    logged: list[tuple[float, float]] = []
    train(
        initial_state(config, CPU),
        units(config),
        config,
        3,
        CPU,
        lambda metrics, state: logged.append((metrics["step"], metrics["seen"])),
        diagnose=diagnose,
    )
    assert seen == [(step, ids[2 * step - 1]) for step in (2, 3, 4, 6)]  # two units a step
    assert logged == [(2, 20.0), (3, 30.0), (4, 40.0), (6, 60.0)]


@pytest.mark.parametrize("interval", ["log_every_steps", "checkpoint_every_steps"])
def test_a_loss_that_is_not_finite_stops_the_run_at_the_next_reading_and_names_step_parts_and_images(interval):
    config = small_config("vanilla", **{"log_every_steps": 100, "checkpoint_every_epochs": 2, interval: 2})
    state = initial_state(config, CPU)

    def poisoned() -> Iterator[Unit]:
        for unit in units(config):
            if unit["unit"][0] == 4:  # the third step's first unit
                with torch.no_grad():
                    state.teacher.heads["global"].last_layer.weight_g.fill_(torch.inf)
            yield unit

    ids = sorted({int(i) for unit in list(units(config))[4:8] for i in unit["image_id"]})  # of steps 3 and 4
    reached: list[float] = []
    with pytest.raises(NonFiniteLoss, match="not finite at step 3") as caught:
        train(state, poisoned(), config, 3, CPU, lambda metrics, state: reached.append(metrics["step"]))
    assert "loss nan" in str(caught.value)
    assert f"since the last reading: {ids}." in str(caught.value)
    assert reached == [2]


def test_a_unit_out_of_order_is_never_trained_on():
    config = small_config()
    arriving = list(units(config))
    arriving[2], arriving[3] = arriving[3], arriving[2]
    with pytest.raises(AssertionError, match="came in place of 2"):
        train(initial_state(config, CPU), iter(arriving), config, 3, CPU, lambda metrics, state: None)


def test_a_step_that_does_not_fit_into_memory_is_answered_with_the_largest_unit_that_does():
    config = small_config(**{"data.unit_size": 8, "optim.batch_size": 8})
    state = initial_state(config, CPU)
    trained = [parameter for parameter in state.student.parameters() if parameter.requires_grad]

    def room_for_five_images(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        gradients = all(parameter.grad is not None for parameter in trained)
        moments = all("exp_avg" in state.optimizer.state.get(parameter, {}) for parameter in trained)
        images = len(arguments[0]) / 2  # two global crops each
        # All gradients take as much room as half an image, all moments as much as one: 4 images fit beside either and
        # only 2 beside both.
        if images + gradients / 2 + moments > 5:
            raise torch.OutOfMemoryError("a device of little memory")

    state.teacher.backbone.register_forward_pre_hook(room_for_five_images)
    with pytest.raises(torch.OutOfMemoryError, match=r"data\.unit_size 8 does not fit .* data\.unit_size 2 does"):
        train(state, units(config), config, 1, CPU, lambda metrics, state: None)
    for name in ("student", "teacher", "centers"):
        assert_equal_states(state.state_dict()[name], initial_state(config, CPU).state_dict()[name])


def _starts_from_weights_of_its_own(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    config = small_config(backbone="test_resnet")
    state = initial_state(config.with_overrides({"seed": rank}), CPU)
    for network in (state.student, state.teacher):
        for buffer in network.buffers():
            buffer.fill_(rank)
    networks = {"student": state.student, "teacher": state.teacher}
    before = {name: copy.deepcopy(network.state_dict()) for name, network in networks.items()}
    state.step = 6  # the last one: no step changes what the workers have agreed on
    train(state, iter(()), config, 3, CPU, lambda metrics, state: None)
    after = {name: network.state_dict() for name, network in networks.items()}
    torch.save({"before": before, "after": after}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_workers_train_the_student_and_the_teacher_of_rank_0(tmp_path):
    run_in_two(_starts_from_weights_of_its_own, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for network in ("student", "teacher"):
        name = next(name for name in first["before"][network] if name.endswith("conv1.weight"))
        assert not torch.equal(first["before"][network][name], second["before"][network][name])
    assert_equal_states(first["after"], first["before"])
    assert_equal_states(second["after"], first["before"])
