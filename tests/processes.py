"""Processes of tests, forked from one that has imported what they need."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

multiprocessing.set_forkserver_preload(["glsd.evaluation.knn", "glsd.training.loop", "pytest"])


def run_in_two(worker: Callable[..., None], *arguments: Any) -> None:
    """`worker(rank, *arguments)` in two processes at once."""
    torch.multiprocessing.start_processes(worker, arguments, nprocs=2, start_method="forkserver")


def exit_code(function: Callable[..., None], *arguments: Any) -> int | None:
    """What `function(*arguments)` leaves a process of its own with; minus the signal that ended it."""
    process = multiprocessing.get_context("forkserver").Process(target=function, args=arguments)
    process.start()
    process.join()
    return process.exitcode
