"""The page of a run: what its directory holds becomes sections.

A run that is still at work, or that was interrupted, is reported as far as it is.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from glsd.config import Config, documentation, explained
from glsd.evaluation.verdict import Verdict, collapse_verdict, standard_error
from glsd.reporting.page.charts import Chart, Line
from glsd.reporting.page.html import (
    Badge,
    Bar,
    Bars,
    Block,
    Charts,
    Code,
    Details,
    Facts,
    Page,
    Prose,
    Section,
    Table,
    Tiles,
)
from glsd.reporting.pages.common import (
    bar,
    figure_blocks,
    footer,
    loading,
    reasons,
    skipped_block,
    texts,
    value_text,
    verdict_badges,
)
from glsd.runs.directory import CONFIG, DATA, ENVIRONMENT, RunDirectory
from glsd.runs.lease import TIMES, read_holder
from glsd.runs.log import read_metrics, read_skipped


def run_page(run: RunDirectory) -> Page:
    """The page of a run, finished or not."""
    config, metrics, summary = _config(run), read_metrics(run), run.finished
    data = json.loads(run.read(DATA) or b"{}")
    steps = [line for line in metrics if "epoch" in line]
    steps_per_epoch = round(steps[-1]["step"] / steps[-1]["epoch"]) if steps else None
    verdict = _verdict(steps[-1]) if steps else None
    regime = " (a regime of them is trained on)" if config.data.images_per_class or config.data.fraction else ""
    return Page(
        kind="glsd · pretraining",
        title=run.name,
        badges=[_state(run, config, steps, steps_per_epoch), *verdict_badges(verdict)],
        lead=f"{config.model.backbone} in the {config.objective.setting} setting: {config.optim.epochs:,} epochs of "
        f"{data['images']:,} images{regime} in batches of {config.optim.batch_size:,}.",
        sections=[
            Section("Results", _run_results(config, metrics, summary, verdict)),
            Section("Curves", _curves(config, metrics, steps_per_epoch, summary)),
            *figure_blocks(run),
            Section("Skipped images", skipped_block(read_skipped(run))),
            Section("Use the backbone", _run_loading(run, summary)),
            Section("Settings", [*_settings(config), Prose("The same run again:"), Code(_pretrain_command(run, data))]),
            Section("Data and environment", [Facts(texts(data)), *_environment(run)]),
        ],
        footer=footer(run),
    )


def _config(run: RunDirectory) -> Config:
    try:
        return Config.model_validate(yaml.safe_load(run.read(CONFIG) or b""))
    except ValidationError as error:
        message = f"{run.out}/{CONFIG} is not a configuration of this version of glsd: {explained(error)}"
        raise ValueError(message) from error


def _state(run: RunDirectory, config: Config, steps: Sequence[Mapping[str, Any]], per_epoch: int | None) -> Badge:
    if run.finished is not None:
        return Badge("good", "finished")
    at = "before its first logged step"
    if per_epoch is not None:
        at = f"step {steps[-1]['step']:,} of {config.optim.epochs * per_epoch:,}"
    holder = read_holder(run)
    if holder is not None and holder.silent_s < TIMES.lapse_s:
        return Badge("open", f"running, {at}")
    return Badge("bad", f"interrupted, {at}")


def _verdict(line: Mapping[str, Any]) -> Verdict | None:
    """The verdict that was logged with the line, with the reasons in its measures; None where none was made."""
    if line.get("collapsed") is None:
        return None
    if not line["collapsed"]:
        return Verdict("healthy", ())
    # A value that was not finite is logged as null.
    measured = {key: math.nan if value is None else value for key, value in line.items()}
    return Verdict("collapsed", collapse_verdict(measured).reasons)


def _run_results(
    config: Config,
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    verdict: Verdict | None,
) -> list[Block]:
    blocks: list[Block] = []
    tested = [line for line in metrics if line.get("knn") is not None]
    if tested:
        last, first = tested[-1], tested[0]
        bars = [bar("k-NN of the teacher", last["knn"], last["knn_queries"], emphasised=True)]
        if first["step"] == 0 and first is not last:
            bars.append(bar("the same backbone before training", first["knn"], first["knn_queries"]))
        if summary is not None:
            bars.append(Bar("always the most frequent class", summary["knn_majority"]))
        k = min(config.evaluation.k, last["knn_anchors"])
        sentence = (
            f"After step {last['step']:,}, {k} neighbours among {last['knn_anchors']:,} images vote on "
            f"{last['knn_queries']:,} others. Whiskers and ± are one standard error."
        )
        blocks += [Bars(bars), Prose(sentence)]
    losses = [line for line in metrics if line.get("loss") is not None]
    if losses:
        step = losses[-1]["step"]
        tiles = [
            (f"{losses[-1]['loss']:.3f}", "loss"),
            (f"{step:,}", "steps"),
            (f"{step * config.optim.batch_size:,}", "images seen"),
        ]
        blocks.append(Tiles(tiles))
    blocks += reasons(verdict)
    return blocks or [Prose("Nothing has been measured yet.")]


def _curves(
    config: Config,
    metrics: Sequence[Mapping[str, Any]],
    steps_per_epoch: int | None,
    summary: Mapping[str, Any] | None,
) -> list[Block]:
    if steps_per_epoch is None:
        return [Prose("No step has been logged yet.")]
    measured = {key for row in metrics for key, value in row.items() if value is not None} - _NO_CURVES
    if config.objective.weights[1] == 0:
        measured -= {"loss_global", "loss_local", "matched"}
    levels = {"Loss": [("ln I", math.log(config.model.num_prototypes))], **_COLLAPSE_LEVELS}
    if "knn" in measured and summary is not None:
        levels["k-NN accuracy, %"] = [("majority", 100 * summary["knn_majority"])]

    def chart(title: str, names: Mapping[str, str]) -> Chart:
        lines = [_line(metrics, key, name, steps_per_epoch) for key, name in names.items() if key in measured]
        return Chart(title, lines, levels.get(title, ()))

    charts = [chart(title, names) for title, names in _CHARTS.items() if measured & names.keys()]
    charted = {key for names in _CHARTS.values() for key in names}
    others = [chart(_TITLES.get(key, key.replace("_", " ")), {key: ""}) for key in sorted(measured - charted)]
    return [Charts(charts), Details("Schedules and throughput", [Charts(others)])]


def _line(metrics: Sequence[Mapping[str, Any]], key: str, name: str, steps_per_epoch: int) -> Line:
    rows = [row for row in metrics if key in row]
    scale = 100.0 if key in ("knn", "matched") else 1.0
    x = [row["step"] / steps_per_epoch for row in rows]
    y = [None if row[key] is None else scale * row[key] for row in rows]
    errors = [scale * standard_error(row["knn"], row["knn_queries"]) for row in rows] if key == "knn" else None
    return Line(name, x, y, errors)


def _run_loading(run: RunDirectory, summary: Mapping[str, Any] | None) -> list[Block]:
    ours = loading("import glsd", "glsd.load_encoder", run.out)
    if summary is None:
        return ours
    difference = f"z̄ differs from that of glsd by {summary['timm_difference']:.2g} at most"
    return [Prose(f"With timm alone, whose {difference}:"), Code(summary["timm"]), *ours]


def _settings(config: Config) -> list[Block]:
    documents = documentation()
    changed = [
        [key, value_text(value), value_text(default), documents[key]]
        for key, (default, value) in Config().differences(config).items()
    ]
    everything = [[key, value_text(value), documents[key]] for key, value in config.flat().items()]
    return [
        Table(["setting", "value", "default", "meaning"], changed, "Settings that differ from the defaults")
        if changed
        else Prose("All settings are the defaults."),
        Details(f"All {len(everything)} settings", [Table(["setting", "value", "meaning"], everything)]),
    ]


def _environment(run: RunDirectory) -> list[Block]:
    content = run.read(ENVIRONMENT)
    return [] if content is None else [Facts(texts(json.loads(content)))]


def _pretrain_command(run: RunDirectory, data: Mapping[str, Any]) -> str:
    options = ["--data", *data["sources"]]
    if "knn_sources" in data:
        options += ["--knn_data", *data["knn_sources"]]
    if "init_from" in data:
        options += ["--init_from", data["init_from"]]
    options += ["--out", run.out]
    if run.is_local:
        return shlex.join(["glsd", "pretrain", run.uri(CONFIG), *options])
    return f"# where {run.uri(CONFIG)} was copied to {CONFIG}\n{shlex.join(['glsd', 'pretrain', CONFIG, *options])}"


_CHARTS = {
    "Loss": {"loss": "total", "loss_global": "global", "loss_local": "local"},
    "k-NN accuracy, %": {"knn": "teacher"},
    "Locations with a match, %": {"matched": ""},
    "Collapse: features": {"feature_std": "deviation", "effective_rank": "rank"},
    "Collapse: matched locations": {"k_star_entropy": "entropy", "k_star_distinct": "distinct"},
    "Collapse: entropy of the heads": {"entropy_global": "global", "entropy_dense": "dense"},
    "Collapse: information of the heads": {"information_global": "global", "information_dense": "dense"},
}
"""Charts of a run: the names of their metrics' lines."""
_COLLAPSE_LEVELS = {
    "Collapse: features": [("all alike", 0.0)],
    "Collapse: matched locations": [("one location", 0.0)],
    "Collapse: entropy of the heads": [("one prototype", 0.0), ("uniform", 1.0)],
    "Collapse: information of the heads": [("all alike", 0.0)],
}
"""Where a collapse ends."""
_TITLES = {
    "data_wait": "Share of time spent waiting for data",
    "images_per_s": "Images per second",
    "lr": "Learning rate",
    "teacher_momentum": "Momentum of the teacher",
    "teacher_temperature": "Temperature of the teacher",
    "weight_decay": "Weight decay",
}
_NO_CURVES = {"step", "epoch", "seconds_left", "knn_anchors", "knn_queries", "loss_share", "collapsed"}
