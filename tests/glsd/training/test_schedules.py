"""The schedules against arrays built as the authors build them: linspace for a warm-up, a cosine over arange."""

import numpy as np
import pytest

from glsd.config import ObjectiveConfig, OptimConfig
from glsd.training.schedules import learning_rate, teacher_momentum, teacher_temperature, weight_decay


def cosine_array(start: float, end: float, num_steps: int, warmup_steps: int = 0) -> np.ndarray:
    steps = np.arange(num_steps - warmup_steps)
    cosine = end + 0.5 * (start - end) * (1 + np.cos(np.pi * steps / len(steps)))
    return np.concatenate([np.linspace(0, start, warmup_steps), cosine])


@pytest.mark.parametrize(("epochs", "warmup_epochs", "steps_per_epoch"), [(7, 2, 5), (3, 0, 4), (4, 1, 1), (5, 5, 3)])
def test_learning_rate_is_the_linear_warm_up_and_the_cosine_of_the_authors(epochs, warmup_epochs, steps_per_epoch):
    optim = OptimConfig(epochs=epochs, warmup_epochs=warmup_epochs, batch_size=384, base_lr=1e-3, min_lr=1e-5)
    expected = cosine_array(1.5e-3, 1e-5, epochs * steps_per_epoch, warmup_epochs * steps_per_epoch)
    found = [learning_rate(step, optim, steps_per_epoch) for step in range(epochs * steps_per_epoch)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_weight_decay_and_momentum_are_cosines_over_the_whole_run_that_approach_their_end():
    optim = OptimConfig(epochs=6)
    steps = range(6 * 7)
    np.testing.assert_allclose([weight_decay(s, optim, 7) for s in steps], cosine_array(0.04, 0.4, 42), rtol=1e-12)
    momenta = [teacher_momentum(s, optim, 7) for s in steps]
    np.testing.assert_allclose(momenta, cosine_array(0.996, 1.0, 42), rtol=1e-12)
    assert momenta[-1] < 1


def test_teacher_temperature_rises_linearly_by_epoch_and_then_stays():
    objective = ObjectiveConfig(teacher_temperature_warmup_epochs=30)
    expected = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(10, 0.07)])
    np.testing.assert_allclose([teacher_temperature(epoch, objective) for epoch in range(40)], expected, rtol=1e-12)
    assert teacher_temperature(0, ObjectiveConfig(teacher_temperature_warmup_epochs=0)) == 0.07
