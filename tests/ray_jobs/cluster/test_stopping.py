"""SIGTERM ends a process at once, and a training in its own time."""

import os
import signal
from contextlib import ExitStack

import pytest

from ray_jobs.cluster.stopping import is_asked, sigterm_asks, sigterm_ends


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_unwinds_the_stack_with_its_status() -> None:
    before, unwound = signal.getsignal(signal.SIGTERM), list[bool]()
    with sigterm_ends(), ExitStack() as stack:
        stack.callback(unwound.append, True)
        with pytest.raises(SystemExit) as ended:
            sigterm()
    assert (ended.value.code, unwound) == (128 + signal.SIGTERM, [True])
    assert signal.getsignal(signal.SIGTERM) == before


def test_where_it_is_heeded_the_first_sigterm_asks_and_the_second_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with sigterm_ends():
        with sigterm_asks():
            assert not is_asked()
            sigterm()
            assert is_asked()
            assert "a checkpoint is saved" in capsys.readouterr().err
            with pytest.raises(SystemExit):
                sigterm()
        assert not is_asked()
        with sigterm_asks():
            assert not is_asked()
        with pytest.raises(SystemExit):
            sigterm()
