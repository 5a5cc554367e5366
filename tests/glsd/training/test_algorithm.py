"""Algorithm 1 written out: the loss in loops, AdamW by hand, each schedule as the values of its steps.

Forward passes are the networks' own, in float64 and without dropped paths; all else is here.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from glsd.config import Config
from glsd.losses.outputs import ViewOutputs
from glsd.models.student_teacher import Network, build_student_teacher
from glsd.training.batch import Batch, to_device
from glsd.training.schedules import schedule
from glsd.training.state import initial_state
from glsd.training.step import train_step
from tests import oracles
from tests.glsd.training.small import small_config, units

CPU = torch.device("cpu")


def cosine(start: float, end: float, num_steps: int) -> list[float]:
    return [end + (start - end) * (1 + math.cos(math.pi * step / num_steps)) / 2 for step in range(num_steps)]


# Three epochs of two steps, the first of them warm-up.
LEARNING_RATES = [0.0, 1e-3, *cosine(1e-3, 1e-5, 4)]
WEIGHT_DECAYS = cosine(1.0, 8.0, 6)
MOMENTA = cosine(0.6, 1.0, 6)
TEMPERATURES = [0.04, 0.04, 0.055, 0.055, 0.07, 0.07]
FROZEN = [True, True, False, False, False, False]
SETTINGS = {
    "optim.epochs": 3,
    "optim.batch_size": 2,
    "optim.base_lr": 0.128,
    "optim.min_lr": 1e-5,
    "optim.warmup_epochs": 1,
    "optim.weight_decay": 1.0,
    "optim.weight_decay_end": 8.0,
    "optim.teacher_momentum": 0.6,
    "optim.clip_grad": 0.3,  # of the tensors, some are clipped and some are not
    "optim.freeze_last_layer_epochs": 1,
    "objective.teacher_temperature_warmup_epochs": 3,
}


def cross_entropy(p: Tensor, logits: Tensor) -> Tensor:
    """Eq. 3 with the student's temperature."""
    return -(p * torch.log_softmax(logits / 0.1, dim=0)).sum()


def matches(
    setting: str, z_s: Tensor, geo_s: Sequence[float], z_t: Tensor, geo_t: Sequence[float]
) -> list[tuple[int, bool]]:
    """For each of the student's locations k* and whether it counts."""
    if setting == "similarity":
        best = oracles.most_similar(z_s.flatten(0, 1).tolist(), z_t.flatten(0, 1).tolist())
        return [(k_star, True) for k_star in best]
    grid_s, grid_t = z_s.shape[:2], z_t.shape[:2]
    e_s = [point for row in oracles.positions(geo_s, *grid_s) for point in row]
    e_t = [point for row in oracles.positions(geo_t, *grid_t) for point in row]
    s = oracles.threshold(geo_s, grid_s, geo_t, grid_t)
    return [(k_star, distance < s) for k_star, distance in oracles.nearest(e_s, e_t)]


def loss(
    networks: tuple[Network, Network],
    groups: list[ViewOutputs],
    teacher: ViewOutputs,
    geo: Tensor,
    centers: list[Tensor],
    temperature: float,
    setting: str,
) -> Tensor:
    """The mean over images, teacher views t and all other views v."""
    w_s, w_t = (network.heads["global"].last_layer_weight() for network in networks)
    global_terms, local_terms = [], []
    for b in range(len(geo)):
        views = [(group, v) for group in groups for v in range(group.z.shape[1])]
        for t in range(2):
            p = torch.softmax((w_t @ teacher.u["global"][b, t] - centers[0]) / temperature, dim=0)
            for view, (group, v) in enumerate(views):
                if view == t:
                    continue
                global_terms.append(cross_entropy(p, w_s @ group.u["global"][b, v]))
                if setting == "vanilla":
                    continue
                v_s, v_t = (network.heads["dense"].last_layer_weight() for network in networks)
                u_s, u_t = group.u["dense"][b, v].flatten(0, 1), teacher.u["dense"][b, t].flatten(0, 1)
                found = matches(setting, group.z[b, v], geo[b, view].tolist(), teacher.z[b, t], geo[b, t].tolist())
                terms = [
                    cross_entropy(torch.softmax((v_t @ u_t[k_star] - centers[1]) / temperature, dim=0), v_s @ u_s[k])
                    for k, (k_star, counts) in enumerate(found)
                    if counts
                ]
                local_terms.append(sum(terms, torch.zeros(())) / len(found))
    global_loss = sum(global_terms) / len(global_terms)
    if setting == "vanilla":
        return global_loss
    return 0.5 * global_loss + 0.5 * sum(local_terms) / len(local_terms)


def algorithm_1(config: Config, batches: list[Batch]) -> tuple[Network, Network, list[Tensor]]:
    """Student, teacher and centres after one step on each batch."""
    student, teacher = (network.double() for network in build_student_teacher(config))
    trained = {name: theta for name, theta in student.named_parameters() if theta.requires_grad}
    m = {name: torch.zeros_like(theta) for name, theta in trained.items()}
    v = {name: torch.zeros_like(theta) for name, theta in trained.items()}
    updates = dict.fromkeys(trained, 0)
    centers = [torch.zeros(24, dtype=torch.float64) for _ in teacher.heads]
    for step, batch in enumerate(batches):
        with torch.no_grad():
            (z_t,) = teacher(batch.crops[:1])
        total = loss(
            (student, teacher),
            student(batch.crops),
            z_t,
            batch.geo,
            centers,
            TEMPERATURES[step],
            config.objective.setting,
        )
        gradients = torch.autograd.grad(total, trained.values())
        with torch.no_grad():
            for (name, theta), gradient in zip(trained.items(), gradients, strict=True):
                if FROZEN[step] and "last_layer" in name:
                    continue
                g = gradient * min(1.0, 0.3 / (gradient.norm().item() + 1e-6))
                updates[name] += 1
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                m_hat, v_hat = m[name] / (1 - 0.9 ** updates[name]), v[name] / (1 - 0.999 ** updates[name])
                decay = WEIGHT_DECAYS[step] * theta if theta.ndim >= 2 else torch.zeros_like(theta)
                theta -= LEARNING_RATES[step] * (m_hat / (v_hat.sqrt() + 1e-8) + decay)
            logits = [z_t.u[level].flatten(0, -2) @ head.last_layer_weight().T for level, head in teacher.heads.items()]
            for theta_t, theta_s in zip(teacher.parameters(), student.parameters(), strict=True):
                theta_t.copy_(MOMENTA[step] * theta_t + (1 - MOMENTA[step]) * theta_s)
            centers = [0.9 * center + 0.1 * rows.mean(0) for center, rows in zip(centers, logits, strict=True)]
    return student, teacher, centers


@pytest.mark.parametrize(
    ("setting", "local_sizes"),
    [
        ("vanilla", (32,)),
        ("similarity", (32, 48)),
        ("geometric", ()),
        ("geometric", (32, 48)),
    ],
)
def test_a_run_is_algorithm_1_in_every_setting_and_with_any_local_crops(setting, local_sizes):
    crops = {"augment.local_sizes": local_sizes, "augment.num_local_crops": (2,) * len(local_sizes)}
    config = small_config(setting, "test_vit", **SETTINGS, **crops)
    state = initial_state(config, CPU)
    state.student.double()
    state.teacher.double()
    batches = []
    for unit, _ in zip(units(config), range(6), strict=False):
        batch = to_device(unit, config.augment, CPU)
        batches.append(batch._replace(crops=[crops.double() for crops in batch.crops]))
        assert train_step(state, batches[-1:], schedule(state.step, config, 2), config).applied

    student, teacher, centers = algorithm_1(config, batches)
    # The code takes the centres' means in float32, and AdamW makes much of small differences.
    for found, expected in ((state.student, student), (state.teacher, teacher)):
        theta = dict(expected.named_parameters())
        for name, parameter in found.named_parameters():
            torch.testing.assert_close(parameter, theta[name], rtol=0, atol=1e-5, msg=name)
    for center, expected in zip(state.centers.values(), centers, strict=True):
        torch.testing.assert_close(center.double(), expected, rtol=0, atol=1e-7)
