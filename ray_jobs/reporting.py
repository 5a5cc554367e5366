"""`glsd report`: a run, an evaluation or a sweep as one HTML file that opens anywhere.

What a run directory or an evaluation folder holds becomes sections of a page; the blocks and the page itself are
`glsd.reporting.html`'s, and what a sweep has to say is `ray_jobs.sweep_report`'s. A run that is still at work, or that
was interrupted, is reported as far as it is.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from glsd.config import Config, LinearConfig, documentation, explained
from glsd.evaluation.verdict import COLLAPSE_MEASURES, Verdict, collapse_verdict, standard_error
from glsd.reporting.charts import Chart, Line, number_text
from glsd.reporting.html import (
    Badge,
    Bar,
    Bars,
    Block,
    Charts,
    Code,
    Details,
    Facts,
    FigureBlock,
    Page,
    Points,
    Prose,
    Section,
    Table,
    Tiles,
    share_text,
)
from glsd.runs.directory import CONFIG, DATA, ENVIRONMENT, EVALUATION, RunDirectory
from glsd.runs.lease import TIMES, read_holder
from glsd.runs.log import FIGURES, read_metrics, read_skipped
from glsd.runs.sweep import SWEEP
from glsd.storage.folder import Folder
from glsd.storage.replacing import replace_file
from glsd.storage.uris import is_remote
from ray_jobs.sweep_report import sweep_page

REPORT = "report.html"
_MAX_SKIPPED = 50


def report(path: str, out: str | None = None) -> str:
    """Write the report of a run directory, an evaluation's folder or a sweep, and return where it lies.

    A sweep's tables and figures are also written into its folder as files.

    Args:
        path: the folder, local or a URI.
        out: a local file for the page; without it, `report.html` in the folder.

    Raises:
        ValueError: the folder is none of these, its settings are not of this version, or `out` names no local file.
    """
    if out is not None and (is_remote(out) or Path(out).is_dir()):
        raise ValueError(f"--out must name a local file for the page, such as {REPORT}, not {out}")
    folder = RunDirectory(path)
    if folder.read(SWEEP) is not None:
        page = sweep_page(path)
    elif folder.sizes().keys() >= {CONFIG, DATA}:
        page = run_page(folder)
    elif (evaluation := folder.read(EVALUATION)) is not None:
        page = evaluation_page(folder, json.loads(evaluation))
    else:
        raise ValueError(
            f"{path} is neither a run nor an evaluation nor a sweep: it holds no {CONFIG} with {DATA}, no {EVALUATION} "
            f"and no {SWEEP}"
        )
    content = page.html().encode()
    if out is None:
        folder.write(REPORT, content)
        return folder.uri(REPORT)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(out), content)
    return out


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
        badges=[_state(run, config, steps, steps_per_epoch), *_verdict_badges(verdict)],
        lead=f"{config.model.backbone} in the {config.objective.setting} setting: {config.optim.epochs:,} epochs of "
        f"{data['images']:,} images{regime} in batches of {config.optim.batch_size:,}.",
        sections=[
            Section("Results", _run_results(config, metrics, summary, verdict)),
            Section("Curves", _curves(config, metrics, steps_per_epoch, summary)),
            *_figures(run),
            Section("Skipped images", _skipped(read_skipped(run))),
            Section("Use the backbone", _run_loading(run, summary)),
            Section("Settings", [*_settings(config), Prose("The same run again:"), Code(_pretrain_command(run, data))]),
            Section("Data and environment", [Facts(_texts(data)), *_environment(run)]),
        ],
        footer=_footer(run),
    )


def evaluation_page(folder: Folder, evaluation: Mapping[str, Any]) -> Page:
    """The page of an evaluation, with the probes that it holds."""
    verdict = None
    if "collapse" in evaluation:
        verdict = Verdict(evaluation["collapse"]["verdict"], tuple(evaluation["collapse"]["reasons"]))
    tested = "" if evaluation["test"] is None else f", tested on {_listed(evaluation['test'])}"
    model, classes = evaluation["model"], evaluation["classes"]
    return Page(
        kind="glsd · evaluation",
        title=model,
        badges=_verdict_badges(verdict),
        lead=f"{evaluation['backbone']} on {_listed(evaluation['data'])}{tested}: {evaluation['num_images']:,} images"
        + ("" if classes is None else f" of {len(classes):,} classes")
        + f", resized to {evaluation['resize']} px and cropped to {evaluation['crop']} px.",
        sections=[
            Section("Results", _evaluation_results(evaluation, verdict)),
            *(Section(title, blocks(evaluation[key])) for key, (title, blocks) in _PROBES.items() if key in evaluation),
            *_figures(folder),
            Section("Skipped images", _skipped(evaluation["skipped"])),
            Section("Use the backbone", _loading("from glsd.evaluation import load_model", "load_model", model)),
            Section("Settings", [Code(_evaluate_command(folder, evaluation))]),
            Section("Environment", [Facts(_texts(evaluation["environment"]))]),
        ],
        footer=_footer(folder),
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


def _verdict_badges(verdict: Verdict | None) -> list[Badge]:
    return [] if verdict is None else [Badge("good" if verdict.label == "healthy" else "bad", verdict.label)]


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
        bars = [_bar("k-NN of the teacher", last["knn"], last["knn_queries"], emphasised=True)]
        if first["step"] == 0 and first is not last:
            bars.append(_bar("the same backbone before training", first["knn"], first["knn_queries"]))
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
    blocks += _reasons(verdict)
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


def _evaluation_results(evaluation: Mapping[str, Any], verdict: Verdict | None) -> list[Block]:
    bars, notes = [], []
    if "knn" in evaluation:
        knn = evaluation["knn"]
        chosen = next((result for result in knn["results"] if result["k"] == _MAIN_K), knn["results"][-1])
        untrained = {result["k"]: result for result in knn["untrained"]}
        bars.append(_bar(f"k-NN, k = {chosen['k']}", chosen["top1"], knn["num_queries"], emphasised=True))
        if chosen["k"] in untrained:
            bars.append(_bar("k-NN, untrained backbone", untrained[chosen["k"]]["top1"], knn["num_queries"]))
        bars.append(Bar("always the most frequent class", knn["majority"]))
        notes.append(f"{knn['num_anchors']:,} images vote on {knn['num_queries']:,} others.")
    if "linear" in evaluation:
        bars.append(Bar("linear layer", evaluation["linear"]["top1"], emphasised=True))
    if "linear_quick" in evaluation:
        quick = evaluation["linear_quick"]
        bars.append(_bar("logistic regression", quick["top1"], quick["num_test"], emphasised=True))
    if "correspondence" in evaluation:
        bars.append(Bar("correspondences", evaluation["correspondence"]["accuracy"], emphasised=True))
    blocks: list[Block] = [Bars(bars)] if bars else []
    if any(bar.error is not None for bar in bars):
        notes.append("Whiskers and ± are one standard error.")
    if notes:
        blocks.append(Prose(" ".join(notes)))
    return [*blocks, *_reasons(verdict)] or [Prose("What was measured stands below.")]


def _reasons(verdict: Verdict | None) -> list[Block]:
    return [Points(verdict.reasons)] if verdict is not None and verdict.reasons else []


def _bar(name: str, share: float, num_tested: int, emphasised: bool = False) -> Bar:
    return Bar(name, share, standard_error(share, num_tested), emphasised)


def _knn(knn: Mapping[str, Any]) -> list[Block]:
    untrained = {result["k"]: result for result in knn["untrained"]}
    num_top = knn["results"][0]["num_top"]
    rows = [
        [
            str(result["k"]),
            share_text(result["top1"], standard_error(result["top1"], knn["num_queries"])),
            share_text(result["top5"]),
            share_text(untrained[result["k"]]["top1"]) if result["k"] in untrained else "–",
            share_text(untrained[result["k"]]["top5"]) if result["k"] in untrained else "–",
        ]
        for result in knn["results"]
    ]
    header = ["k", "top 1", f"top {num_top}", "untrained, top 1", f"untrained, top {num_top}"]
    weights = f"A neighbour of cosine similarity s votes with weight exp(s / {knn['temperature']})."
    return [Prose(weights), Table(header, rows)]


def _linear(linear: Mapping[str, Any]) -> list[Block]:
    tiles = [
        (share_text(linear["top1"]), "top 1"),
        (share_text(linear["top5"]), f"top {linear['num_top']}"),
        (f"{linear['epochs']:,}", "epochs"),
    ]
    return [Tiles(tiles), Details("Settings of the probe", [Facts(_texts(linear["settings"]))])]


def _linear_quick(quick: Mapping[str, Any]) -> list[Block]:
    tiles = [
        (share_text(quick["top1"], standard_error(quick["top1"], quick["num_test"])), "top 1"),
        (share_text(quick["top5"]), f"top {quick['num_top']}"),
        (number_text(quick["strength"]), "strength of the regularisation, chosen on held-out training images"),
    ]
    rows = [[number_text(strength), share_text(accuracy)] for strength, accuracy in quick["validation"]]
    return [Tiles(tiles), Details("All strengths", [Table(["strength", "accuracy on held-out images"], rows)])]


def _correspondence(found: Mapping[str, Any]) -> list[Block]:
    kinds = (("all", ""), (f"{found['num_top']} most similar", "_top"))
    rows = [[name, _matched(found, top), _matched(found["untrained"], top)] for name, top in kinds]
    about = (
        f"Two augmentations of {found['num_images']:,} images at {found['size']} px: how many locations have the right "
        "one of the other view as their most similar, and how far off the matches lie on average."
    )
    blocks: list[Block] = [Prose(about), Table(["locations of an image", "this model", "untrained"], rows)]
    if "scenes" in found:
        rows = [
            [
                f"{Path(scene['image_a']).name} and {Path(scene['image_b']).name}",
                str(scene["num_locations"]),
                *(_matched(model, top) for top in ("", "_top") for model in (scene, scene["untrained"])),
            ]
            for scene in found["scenes"]["pairs"]
        ]
        header = ["photographs", "locations in both", "all", "untrained", "most similar", "untrained"]
        blocks += [Prose("Pairs of photographs, held to the homography between them."), Table(header, rows)]
    return blocks


def _matched(means: Mapping[str, Any], top: str) -> str:
    """Accuracy and mean distance error."""
    return f"{share_text(means[f'accuracy{top}'])}, {means[f'error{top}_px']:.1f} px"


def _collapse(collapse: Mapping[str, Any]) -> list[Block]:
    rows = []
    for key, value in collapse["metrics"].items():
        title, meaning = COLLAPSE_MEASURES[key]
        rows.append([title, number_text(value), meaning])
    return [Table(["measure", "value", "how to read it"], rows)]


_MAIN_K = 20
_PROBES = {
    "knn": ("k-NN", _knn),
    "linear": ("Linear layer", _linear),
    "linear_quick": ("Logistic regression", _linear_quick),
    "correspondence": ("Correspondence", _correspondence),
    "collapse": ("Collapse", _collapse),
}


def _figures(folder: Folder) -> list[Section]:
    """A section with the folder's figures in the order of `_CAPTIONS`, if it has any."""
    figures = Folder(folder.uri(FIGURES))
    there = {name.removesuffix(".png") for name in figures.sizes() if name.endswith(".png")} - _SHOWN_AS_CHARTS
    stems = [stem for stem in _CAPTIONS if stem in there] + sorted(there - _CAPTIONS.keys())
    blocks = []
    for stem in stems:
        title, caption = _CAPTIONS.get(stem, (stem.replace("_", " "), ""))
        blocks.append(FigureBlock(figures.read(f"{stem}.png") or b"", title, caption))
    return [Section("Figures", blocks)] if blocks else []


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not skipped:
        return [Prose("None: every image that was needed could be decoded.")]
    sentence = f"{len(skipped):,} could not be decoded."
    if len(skipped) > _MAX_SKIPPED:
        sentence += f" The first {_MAX_SKIPPED}:"
    rows = [[str(line["image_id"]), line["uri"], line["reason"]] for line in skipped[:_MAX_SKIPPED]]
    return [Prose(sentence), Table(["image", "file", "reason"], rows)]


def _run_loading(run: RunDirectory, summary: Mapping[str, Any] | None) -> list[Block]:
    ours = _loading("import glsd", "glsd.load_encoder", run.out)
    if summary is None:
        return ours
    difference = f"z̄ differs from that of glsd by {summary['timm_difference']:.2g} at most"
    return [Prose(f"With timm alone, whose {difference}:"), Code(summary["timm"]), *ours]


def _loading(imported: str, function: str, model: str) -> list[Block]:
    about = "With glsd; z̄ (B, d) represents an image and z (B, H, W, d) its locations:"
    return [Prose(about), Code(f"{imported}\nencoder = {function}({model!r})\nz_bar, z = encoder(images)")]


def _settings(config: Config) -> list[Block]:
    documents = documentation()
    changed = [
        [key, _value(value), _value(default), documents[key]]
        for key, (default, value) in Config().differences(config).items()
    ]
    everything = [[key, _value(value), documents[key]] for key, value in config.flat().items()]
    return [
        Table(["setting", "value", "default", "meaning"], changed, "Settings that differ from the defaults")
        if changed
        else Prose("All settings are the defaults."),
        Details(f"All {len(everything)} settings", [Table(["setting", "value", "meaning"], everything)]),
    ]


def _environment(run: RunDirectory) -> list[Block]:
    content = run.read(ENVIRONMENT)
    return [] if content is None else [Facts(_texts(json.loads(content)))]


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


def _evaluate_command(folder: Folder, evaluation: Mapping[str, Any]) -> str:
    options = ["--data", *evaluation["data"]]
    if evaluation["test"] is not None:
        options += ["--test", *evaluation["test"]]
    options += ["--probes", *(key for key in _PROBES if key in evaluation)]
    for key in ("resize", "crop", "anchors"):
        options += [f"--{key}", str(evaluation[key])]
    if "knn" in evaluation:
        options += ["--ks", *(str(result["k"]) for result in evaluation["knn"]["results"])]
    if "correspondence" in evaluation:
        options += ["--pairs", str(evaluation["correspondence"]["num_images"])]
        if "scenes" in evaluation["correspondence"]:
            options += ["--scenes", evaluation["correspondence"]["scenes"]["file"]]
    if "linear" in evaluation:
        linear = LinearConfig.model_validate(evaluation["linear"]["settings"])
        for key, value in linear.model_dump().items():
            if value != getattr(LinearConfig(), key):
                options += [f"--linear.{key}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(["glsd", "evaluate", evaluation["model"], *options, "--out", folder.out])


def _footer(folder: Folder) -> str:
    return f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from {folder.out}."


def _texts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a JSON file for people; those of an inner object stand after its outer ones."""
    flat = [(name.replace("_", " "), _text(value)) for name, value in facts.items() if not isinstance(value, Mapping)]
    inner = [pair for value in facts.values() if isinstance(value, Mapping) for pair in _texts(value)]
    return flat + inner


def _text(value: Any) -> str:
    if isinstance(value, list):
        return _listed(value)
    return "–" if value is None else str(value)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _value(value: Any) -> str:
    """A setting as YAML spells it."""
    return json.dumps(value)


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
_CAPTIONS = {
    "crops": ("Crops", "Where crops lie in their images: global ones thick, local ones thin and dashed."),
    "matchings": (
        "Geometric matchings",
        "Patches of two crops that belong together by where they lay in the image. A white ring is a patch without a "
        "partner.",
    ),
    "matchings_similarity": (
        "Similarity matchings",
        "Patches of the same crops that belong together by the teacher's features.",
    ),
    "correspondences": (
        "Correspondences",
        "Patches of an image and of its mirrored and recoloured view, joined by the similarity of their features.",
    ),
    "different_images": ("Two different images", "The 15 most similar patches of two images."),
    "scenes": (
        "Two photographs of a scene",
        "The 15 most similar patches of two photographs, held to their homography.",
    ),
    "neighbours": (
        "Nearest neighbours",
        "Tested images, each beside the most similar of those that vote, with their cosine similarity. The figure of a "
        "run has the most similar of a thousand of them.",
    ),
    "feature_map": ("Map of the features", "Principal components of z̄: near points are similar images."),
    "feature_map_umap": ("Map of the features by UMAP", "Near points are similar images; far distances mean little."),
    "collapse": ("Collapse over training", "What the teacher still tells apart, step by step."),
}
"""Title and caption of a figure by its file's name, in the order in which they are shown."""
_SHOWN_AS_CHARTS = {"curves"}
