"""The page of a run, also of one that is at work or was interrupted."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from glsd.config import Config
from glsd.evaluation.verdict import Verdict, collapse_verdict
from glsd.record import documentation
from glsd.reporting.figures.charts import Chart, Level, chart_svg
from glsd.reporting.figures.curves import run_charts, steps_per_epoch
from glsd.reporting.page import html
from glsd.reporting.page.html import Bar, Html
from glsd.reporting.pages import common
from glsd.runs.directory import CONFIG, RunDirectory
from glsd.runs.log import read_metrics, read_skipped
from glsd.runs.records import Environment, RunData, Summary, read_record


def run_page(run: RunDirectory) -> str:
    """The page of a run, finished or not."""
    config, metrics, summary = run.config, read_metrics(run), run.finished
    data, _ = records = read_record(run, RunData), read_record(run, Environment)
    assert config is not None
    assert data is not None
    verdict = _verdict(metrics)
    results = [*_results(config, metrics, summary), *common.reasons(verdict)]
    regime = " (a regime of them is trained on)" if config.data.images_per_class or config.data.fraction else ""
    badge = html.badge("good", "finished")
    if summary is None:
        badge = common.unfinished_badge(run, _so_far(config, metrics))
    lead = (
        f"{config.model.backbone} in the {config.objective.setting} setting: {config.optim.epochs:,} epochs of "
        f"{data.images:,} images{regime} in batches of {config.optim.batch_size:,}."
    )
    return html.page(
        html.Head("glsd · pretraining", run.name, [badge, *common.verdict_badges(verdict)], lead),
        {
            "Results": results or [html.prose("Nothing has been measured yet.")],
            "Curves": _curves(config, metrics, summary),
            **common.figure_section(run),
            "Skipped images": common.skipped_block(read_skipped(run)),
            "Use the backbone": _loading(run, summary),
            "Settings": [*_settings(config), html.prose("The same run again:"), html.code(_command(run, data))],
            "Data and environment": [html.facts(common.texts(found.json_values())) for found in records if found],
        },
        common.footer(run),
    )


def _so_far(config: Config, metrics: Sequence[Mapping[str, Any]]) -> str:
    per_epoch = steps_per_epoch(metrics)
    if per_epoch is None:
        return "before its first logged step"
    last = next(line["step"] for line in reversed(metrics) if "epoch" in line)
    return f"step {last:,} of {config.optim.epochs * per_epoch:,}"


def _verdict(metrics: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """The verdict that was logged last, with the reasons in its measures; None where none was made."""
    line: Mapping[str, Any] = next((line for line in reversed(metrics) if "epoch" in line), {})
    if line.get("collapsed") is None:
        return None
    if not line["collapsed"]:
        return Verdict("healthy", ())
    # A value that was not finite is logged as null.
    measured = {key: math.nan if value is None else value for key, value in line.items()}
    return Verdict("collapsed", collapse_verdict(measured).reasons)


def _results(config: Config, metrics: Sequence[Mapping[str, Any]], summary: Summary | None) -> list[Html]:
    blocks: list[Html] = []
    tested = [line for line in metrics if line.get("knn") is not None]
    if tested:
        last, first = tested[-1], tested[0]
        bars = [common.accuracy("k-NN of the teacher", last["knn"], last["knn_queries"], emphasised=True)]
        if first["step"] == 0 and first is not last:
            bars.append(common.accuracy("the same backbone before training", first["knn"], first["knn_queries"]))
        if summary is not None and summary.knn_majority is not None:
            bars.append(Bar("always the most frequent class", summary.knn_majority))
        sentence = (
            f"After step {last['step']:,}, {min(config.evaluation.k, last['knn_anchors'])} neighbours among "
            f"{last['knn_anchors']:,} images vote on {last['knn_queries']:,} others. Whiskers and ± are one standard "
            "error."
        )
        blocks += [html.bars(bars), html.prose(sentence)]
    losses = [line for line in metrics if line.get("loss") is not None]
    if losses:
        step = losses[-1]["step"]
        images = f"{step * config.optim.batch_size:,}"
        tiles = [(f"{losses[-1]['loss']:.3f}", "loss"), (f"{step:,}", "steps"), (images, "images seen")]
        blocks.append(html.tiles(tiles))
    return blocks


def _curves(config: Config, metrics: Sequence[Mapping[str, Any]], summary: Summary | None) -> list[Html]:
    if steps_per_epoch(metrics) is None:
        return [html.prose("No step has been logged yet.")]
    levels: dict[str, Sequence[Level]] = {"Loss": [("ln I", math.log(config.model.num_prototypes))]}
    if summary is not None and summary.knn_majority is not None:
        levels["k-NN accuracy, %"] = [("majority", 100 * summary.knn_majority)]
    hidden = ("loss_global", "loss_local", "matched") if config.objective.weights[1] == 0 else ()
    charts = run_charts(metrics, levels, hidden)
    others = html.details("Schedules and throughput", [_drawn(charts.others)])
    return [_drawn([*charts.training, *charts.collapse]), others]


def _drawn(charts: Sequence[Chart]) -> Html:
    return html.charts([(chart.title, chart_svg(chart)) for chart in charts])


def _loading(run: RunDirectory, summary: Summary | None) -> list[Html]:
    ours = common.loading("import glsd", "glsd.load_encoder", run.out)
    if summary is None:
        return ours
    difference = f"z̄ differs from that of glsd by {summary.timm_difference:.2g} at most"
    return [html.prose(f"With timm only ({difference}):"), html.code(summary.timm), *ours]


def _settings(config: Config) -> list[Html]:
    documents = documentation(Config)
    changed = [
        [key, json.dumps(value), json.dumps(default), documents[key]]
        for key, (default, value) in Config().differences(config).items()
    ]
    everything = [[key, json.dumps(value), documents[key]] for key, value in config.flat().items()]
    return [
        html.table(["setting", "value", "default", "meaning"], changed, "Settings that differ from the defaults")
        if changed
        else html.prose("All settings are the defaults."),
        html.details(f"All {len(everything)} settings", [html.table(["setting", "value", "meaning"], everything)]),
    ]


def _command(run: RunDirectory, data: RunData) -> str:
    options = ["--data", *data.sources]
    if data.knn_sources is not None:
        options += ["--knn_data", *data.knn_sources]
    if data.init_from is not None:
        options += ["--init_from", data.init_from]
    options += ["--out", run.out]
    if run.is_local:
        return shlex.join(["glsd", "pretrain", run.uri(CONFIG), *options])
    return f"# where {run.uri(CONFIG)} was copied to {CONFIG}\n{shlex.join(['glsd', 'pretrain', CONFIG, *options])}"
