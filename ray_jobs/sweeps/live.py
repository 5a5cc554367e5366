"""What a sweep shows while it runs."""

import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from glsd.reporting.console import states_table
from glsd.runs.sweep import TrialState, trial_states


@contextmanager
def shown(out: str) -> Iterator[None]:
    """The table of all trials: redrawn in place on a terminal, printed every minute elsewhere."""
    stop = threading.Event()

    def show() -> None:
        states, lines_above = list[TrialState](), 0
        interval = _TERMINAL_S if sys.stderr.isatty() else _PRINTED_S
        stopped = False
        while not stopped:
            stopped = stop.wait(interval)
            with suppress(OSError):  # the storage failed; the next table has what is missing
                states = trial_states(out, states)
            if sys.stderr.isatty():
                columns, lines = shutil.get_terminal_size()
                table = "\n".join(line[:columns] for line in fitting_table(states, lines - 1).splitlines())
                sys.stderr.write(f"\x1b[{lines_above}F\x1b[J" if lines_above else "")
                lines_above = table.count("\n") + 1
            else:
                table = states_table(states)
            sys.stderr.write(table + "\n")
            sys.stderr.flush()

    thread = threading.Thread(target=show, name="glsd-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def fitting_table(states: Sequence[TrialState], height: int) -> str:
    """The trials for a terminal of that many lines; where they do not fit, running ones come first."""
    if len(states) < height:
        return states_table(states)
    ordered = sorted(states, key=lambda state: state.status != "started")
    num_shown = max(0, height - 2)
    shown, others = ordered[:num_shown], Counter(state.status for state in ordered[num_shown:])
    return "\n".join([states_table(shown), f"and {', '.join(f'{count} {name}' for name, count in others.items())}"])


_TERMINAL_S, _PRINTED_S = 2.0, 60.0
