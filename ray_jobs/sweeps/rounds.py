"""The trials of a sweep in rounds: those of the grid, and those that a search proposes."""

import json
from collections.abc import Callable, Iterator

from glsd.runs.log import read_metrics
from glsd.runs.sweep import SWEEP, TRIALS, evaluation
from glsd.storage.folder import Folder
from glsd.storage.uris import joined
from ray_jobs.sweeps.grids import Space, Trial, drawn_trial, trials
from ray_jobs.sweeps.optuna_search import suggest
from ray_jobs.sweeps.planning import Shared
from ray_jobs.sweeps.trial import outcome

_MOST_DRAWS = 20


def rounds(
    space: Space, shared: Shared, samples: int, search: str, at_once: Callable[[], int]
) -> Iterator[list[Trial]]:
    """Trials to run, and then, where a search learns from them, these and the next ones."""
    if search == "random":
        yield trials(space, list(shared.data), samples, shared.base.seed)
        return
    (data,) = shared.data
    cells = _recorded(space, data, shared.out)
    if cells:
        yield cells
    while len(cells) < samples:
        values = {cell.name: reached(joined(shared.out, f"{TRIALS}/{cell.name}")) for cell in cells}
        ended = [(cell.overrides, value) for cell in cells if (value := values[cell.name]) is not None]
        count = min(at_once(), samples - len(cells))
        num_known = len(cells)
        for attempt in range(_MOST_DRAWS):  # of lists, the same values may be drawn again
            for draw in suggest(space, ended, count, shared.base.seed + attempt * samples):
                cell = drawn_trial(space, data, draw, {known.name for known in cells})
                if all(cell.overrides != known.overrides for known in cells):
                    cells = [*cells, cell]
            if len(cells) > num_known:
                break
        if len(cells) == num_known:
            return
        yield cells


def _recorded(space: Space, data: str, out: str) -> list[Trial]:
    """The trials of the space that were asked for before, in their order."""
    content = json.loads(Folder(out).read(SWEEP) or b'{"trials": {}}')
    return [
        Trial(name, data, facts["overrides"])
        for name, facts in content["trials"].items()
        if facts["data"] == data and space.holds(facts["overrides"])
    ]


def reached(place: str) -> float | None:
    """What a search learns from the trial in that folder; None while it has not ended.

    It is the k-NN accuracy of its evaluation, the last online one where a scheduler stopped it, 0 where the loss was
    not finite.
    """
    ended, found = outcome(Folder(place)), evaluation(Folder(place))
    if ended is None:
        return None
    if ended["status"] == "not finite":
        return 0.0
    if found is not None:
        return float(found["knn"]["results"][0]["top1"])
    tested = [line["knn"] for line in read_metrics(place) if line["step"] and line.get("knn") is not None]
    return float(tested[-1]) if tested else 0.0
