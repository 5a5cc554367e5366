"""Questions to nodes of a cluster, each answered by a task that takes no CPU of its node."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import ray

Answer = TypeVar("Answer")
_ANSWER_S: Final = 60


def asked_of(function: Callable[..., Answer], questions: Mapping[str, Sequence[Any]]) -> dict[str, Answer]:
    """What the function returns on each node for these arguments, by the node's id.

    A node that gives no answer within a minute is left out: it has just ended, or is very busy.
    """
    ask = ray.remote(num_cpus=0)(function)
    asked = {
        # By default a task of a trial would have to run where the trial has reserved something.
        ask.options(scheduling_strategy="DEFAULT", label_selector={"ray.io/node-id": node}).remote(*arguments): node
        for node, arguments in questions.items()
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S) if asked else ([], [])
    for question in silent:
        ray.cancel(question)
    return {asked[question]: ray.get(question) for question in answered}
