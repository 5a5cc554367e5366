import html
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glsd.config import Config, LinearConfig
from glsd.experiments import load_config
from glsd.reporting.report import report
from glsd.runs.directory import RunDirectory
from glsd.runs.lease import LeaseTimes
from glsd.runs.log import RunLog
from glsd.runs.records import RunData, Summary
from ray_jobs.cli.main import parse
from tests.glsd.storage.object_store import object_store

QUICK = LeaseTimes(heartbeat_s=0.05, grace_s=0.2, lapse_s=0.3, settle_s=0.05)
CONFIG = load_config("demo", {"optim.epochs": 4, "augment.hue": 0.03125})
DATA = {"sources": ["/data/a folder/train.csv"], "images": 320, "digest": "0123abcd"} | {
    "knn_sources": ["/data/test.csv"], "knn_images": 400, "knn_digest": "4567cdef", "init_from": "timm:test_resnet"
}  # fmt: skip
HOSTILE = "<script>document.title = 'run'</script>.png"
SUMMARY = {
    "config_digest": CONFIG.digest, "steps": 40, "images_seen": 1280, "loss": 3.25, "knn": 0.8, "knn_untrained": 0.5,
    "knn_majority": 0.28125, "knn_k": 20, "num_anchors": 320, "num_queries": 400, "timm": "import timm\nmodel = 1 < 2",
    "timm_difference": 0.0,
}  # fmt: skip
KNN = {"knn_anchors": 320, "knn_queries": 400}


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), shade, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def a_run(folder: Path, last_step: int = 40, num_skipped: int = 1, config: Config = CONFIG) -> RunDirectory:
    """A run of 10 steps an epoch, as training leaves it, without a summary."""
    run = RunDirectory(folder)
    run.claim(config, RunData.model_validate(DATA))
    with RunLog(run) as log:
        log.log(0, {"knn": 0.5} | KNN)
        for step in range(5, last_step + 1, 5):
            losses = {"loss": 7 - 0.09375 * step, "loss_global": 3.5, "loss_local": 3.0, "matched": 0.9}
            log.log(step, losses | {"lr": 0.001, "epoch": step / 10, "seconds_left": 1.0})
        if last_step == 40:
            log.log(40, {"knn": 0.8, "epoch": 4.0} | KNN)
        for image_id in range(num_skipped):
            log.skip(10, image_id, f"/data/{image_id}{HOSTILE}", "truncated")
    return run


def a_finished_run(folder: Path, **facts: Any) -> RunDirectory:
    run = a_run(folder, **facts)
    for name, shade in (("matchings", 50), ("crops", 100), ("curves", 150), ("one_of_mine", 200)):
        run.write(f"figures/{name}.png", picture(shade))
    run.write("figures/crops.svg", b"<svg/>")
    run.finish(Summary.model_validate(SUMMARY))
    return run


EVALUATION: dict[str, Any] = {
    "model": "runs/mine", "backbone": "test_resnet", "data": ["train.csv"], "test": ["test.csv"], "num_images": 720,
    "classes": ["cat", "dog"], "resize": 256, "crop": 224, "anchors": "full",
    "model_digest": "89ef", "data_digest": "0123abcd", "test_digest": "4567cdef",
    "environment": {"python": "3.11", "packages": {"timm": "1"}},
    "skipped": [{"image_id": image_id, "uri": f"{image_id}{HOSTILE}", "reason": "empty"} for image_id in range(60)],
    "knn": {
        "temperature": 0.07, "num_anchors": 320, "num_queries": 400, "majority": 0.28125,
        "results": [{"k": k, "top1": 0.8 - k / 1000, "top5": 1.0, "num_top": 2} for k in (10, 20, 100, 200)],
        "untrained": [{"k": k, "top1": 0.5, "top5": 1.0, "num_top": 2} for k in (10, 20, 100, 200)],
    },
    "linear": {
        "top1": 0.84375, "top5": 1.0, "num_top": 2, "epochs": 100, "settings": {"base_lr": 0.002, "scale": [0.25, 1.0]}
    },
    "linear_quick": {
        "top1": 0.8125, "top5": 1.0, "num_top": 2, "strength": 0.01, "validation": [[0.01, 0.71875], [0.1, 0.703125]],
        "num_train": 320, "num_test": 400,
    },
    "correspondence": {
        "accuracy": 0.40625, "error_px": 18.25, "accuracy_top": 0.90625, "error_top_px": 5.25, "num_top": 10,
        "num_images": 400, "size": 224,
        "untrained": {"accuracy": 0.125, "error_px": 60.5, "accuracy_top": 0.25, "error_top_px": 50.5}
        | {"num_top": 10, "num_images": 400},
        "scenes": {
            "file": "walls/scenes.csv",
            "pairs": [
                {
                    "image_a": "/photos/wall <1>.png", "image_b": "/photos/wall 3.png", "accuracy": 0.21875,
                    "error_px": 40.5, "accuracy_top": 0.75, "error_top_px": 9.25, "num_top": 10, "num_images": 1,
                    "num_locations": 32,
                    "untrained": {"accuracy": 0.0625, "error_px": 80.5, "accuracy_top": 0.5, "error_top_px": 70.5}
                    | {"num_top": 10, "num_images": 1},
                }
            ],
        },
    },
    "collapse": {
        "verdict": "collapsed", "reasons": ["effective rank 1.5, less than 4"],
        "metrics": {"effective_rank": 1.5, "input_gradient_norm": 0.000123},
    },
}  # fmt: skip


def an_evaluation(folder: Path, evaluation: dict[str, Any] = EVALUATION) -> Path:
    (folder / "figures").mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "figures/correspondences.png").write_bytes(picture(80))
    return folder


def text_of(page: str) -> str:
    """What a reader sees: without tags, styles and pictures, with single spaces."""
    body = page[page.index("<body>") :].replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def section(page: str, name: str) -> str:
    (found,) = re.findall(rf'<section id="{name}">(.*?)</section>', page, re.DOTALL)
    return text_of(f"<body>{found}")


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)">', page)


def test_a_finished_run_is_reported_into_its_directory(tmp_path: Path) -> None:
    run = a_finished_run(tmp_path / "mine")
    assert report(run.out) == f"{run.out}/report.html"
    page = (tmp_path / "mine/report.html").read_text("utf-8")
    assert sections(page) == [
        *("results", "curves", "figures", "skipped-images", "use-the-backbone", "settings", "data-and-environment")
    ]
    assert "✓ finished" in text_of(page)
    # sqrt(0.8 * 0.2 / 400) = 0.02 and sqrt(0.5 * 0.5 / 400) = 0.025
    assert section(page, "results").startswith(
        "Results k-NN of the teacher 80.0 % ± 2.0 the same backbone before training 50.0 % ± 2.5 "
        "always the most frequent class 28.1 % After step 40, 20 neighbours among 320 images vote on 400 others."
    )
    assert "import timm model = 1 < 2" in section(page, "use-the-backbone")
    assert f"glsd.load_encoder('{run.out}')" in section(page, "use-the-backbone")
    report(run.out)  # again, a report being no part of the run


def test_a_run_that_is_at_work_says_how_far_it_is_and_one_that_is_not_that_it_was_interrupted(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine", last_step=15)
    with run.lease(times=QUICK):
        assert "○ running, step 15 of 40" in text_of(Path(report(run.out)).read_text("utf-8"))
    page = Path(report(run.out)).read_text("utf-8")
    assert "✗ interrupted, step 15 of 40" in text_of(page)
    assert "k-NN of the teacher 50.0 % ± 2.5" in section(page, "results")
    assert "before training" not in section(page, "results")
    assert "figures" not in sections(page)


def test_a_run_that_has_logged_nothing_has_a_report(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    run.claim(CONFIG, RunData.model_validate(DATA))
    page = Path(report(run.out)).read_text("utf-8")
    assert "interrupted, before its first logged step" in text_of(page)
    assert "Nothing has been measured yet." in section(page, "results")
    assert "No step has been logged yet." in section(page, "curves")


def test_a_run_without_labels_has_no_accuracy_and_its_loss_may_have_been_infinite(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    data = {key: value for key, value in DATA.items() if not key.startswith("knn")}
    run.claim(CONFIG, RunData.model_validate(data))
    with RunLog(run) as log:
        log.log(10, {"loss": float("inf"), "epoch": 1.0})
        log.log(20, {"loss": 5.0, "epoch": 2.0})
    page = Path(report(run.out)).read_text("utf-8")
    assert "k-NN" not in section(page, "results")
    assert "5.000 loss 20 steps 640 images seen" in section(page, "results")


def test_curves_end_in_the_last_values_and_stand_beside_what_they_are_compared_with(tmp_path: Path) -> None:
    curves = section(Path(report(a_finished_run(tmp_path / "mine").out)).read_text("utf-8"), "curves")
    for label in ("total 3.25", "global 3.5", "local 3", "ln I 6.93", "teacher 80", "majority 28.1"):
        assert f" {label} " in curves
    assert "Locations with a match, %" in curves
    assert "Learning rate" in curves
    assert "seconds left" not in curves
    config = CONFIG.with_overrides({"objective.setting": "vanilla"})
    curves = section(Path(report(a_finished_run(tmp_path / "vanilla", config=config).out)).read_text("utf-8"), "curves")
    assert " total 3.25 " in curves
    assert "local" not in curves
    assert "match" not in curves


def test_a_run_shows_its_last_verdict_with_the_reasons_for_a_collapse(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "mine")
    run.claim(CONFIG, RunData.model_validate(DATA))
    step = {"loss": 5.0, "epoch": 1.0, "feature_std": 0.9, "information_dense": 0.25}
    with RunLog(run) as log:
        log.log(10, step)
    page = Path(report(run.out)).read_text("utf-8")
    assert "✓" not in text_of(page)  # there is no verdict in the warm-up
    assert "✗ collapsed" not in text_of(page)
    assert "deviation 0.9 all alike 0" in section(page, "curves")
    with RunLog(run, resume_step=10) as log:
        log.log(20, step | {"epoch": 2.0, "collapsed": 0.0})
    assert "✓ healthy" in text_of(Path(report(run.out)).read_text("utf-8"))
    with RunLog(run, resume_step=20) as log:
        log.log(30, step | {"epoch": 3.0, "collapsed": 1.0, "information_dense": 0.0005})
    page = Path(report(run.out)).read_text("utf-8")
    assert "✗ collapsed" in text_of(page)
    assert "information_dense 0.0005 is below" in section(page, "results")
    with RunLog(run, resume_step=30) as log:
        log.log(40, step | {"epoch": 4.0, "collapsed": 1.0, "feature_std": math.nan})
    assert "feature_std is nan" in section(Path(report(run.out)).read_text("utf-8"), "results")


def test_figures_are_embedded_in_their_order_with_captions(tmp_path: Path) -> None:
    page = Path(report(a_finished_run(tmp_path / "mine").out)).read_text("utf-8")
    assert re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]*)"', page) == [
        *("Crops", "Geometric matchings", "one of mine")
    ]
    assert "A white ring is a patch without a partner." in section(page, "figures")


def test_names_of_files_are_text(tmp_path: Path) -> None:
    page = Path(report(a_finished_run(tmp_path / "mine").out)).read_text("utf-8")
    assert "<script" not in page
    assert f"/data/0{HOSTILE} truncated" in section(page, "skipped-images")


def test_the_first_fifty_skipped_images_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    page = Path(report(a_finished_run(tmp_path / "mine", num_skipped=60).out)).read_text("utf-8")
    listed = section(page, "skipped-images")
    assert "60 could not be decoded. The first 50:" in listed
    assert listed.count("truncated") == 50
    page = Path(report(a_finished_run(tmp_path / "other", num_skipped=0).out)).read_text("utf-8")
    assert "None" in section(page, "skipped-images")


def test_settings_that_differ_come_first_and_all_are_there_with_their_documentation(tmp_path: Path) -> None:
    page = Path(report(a_finished_run(tmp_path / "mine").out)).read_text("utf-8")
    differing, everything = section(page, "settings").split(f"All {len(CONFIG.flat())} settings")
    assert "augment.hue 0.03125 0.1 Hue shift is drawn from" in differing
    assert "augment.saturation 0.2 Saturation" not in differing
    assert "augment.saturation 0.2 Saturation factor is drawn" in everything
    assert "data.digest" not in page
    assert "knn digest 4567cdef" in section(page, "data-and-environment")


def test_the_command_of_a_report_is_the_same_run_again(tmp_path: Path) -> None:
    run = a_finished_run(tmp_path / "my runs")
    page = Path(report(run.out)).read_text("utf-8")
    (command,) = re.findall(r"<code>(glsd pretrain [^<]*)</code>", page)
    program, *arguments = shlex.split(html.unescape(command))
    again = parse(arguments)
    assert program == "glsd"
    assert (again.config, [*again.data], again.out) == (CONFIG, DATA["sources"], run.out)
    assert ([*again.options.knn_data], again.options.init_from) == (DATA["knn_sources"], "timm:test_resnet")


def test_the_command_of_a_report_is_the_same_evaluation_again(tmp_path: Path) -> None:
    folder = an_evaluation(tmp_path / "all")
    (command,) = re.findall(r"<code>(glsd evaluate [^<]*)</code>", Path(report(str(folder))).read_text("utf-8"))
    again = parse(shlex.split(html.unescape(command))[1:])
    options = again.options
    assert (again.model, again.data, options.test, options.out) == (
        "runs/mine",
        ("train.csv",),
        ("test.csv",),
        str(folder),
    )
    assert set(options.probes) == EVALUATION.keys() & {"knn", "linear", "linear_quick", "correspondence", "collapse"}
    assert options.scenes == "walls/scenes.csv"
    assert (options.resize, options.crop, options.anchors, options.ks, options.pairs) == (
        256,
        224,
        "full",
        (10, 20, 100, 200),
        400,
    )
    assert options.linear == LinearConfig(base_lr=0.002, scale=(0.25, 1.0))


def test_an_evaluation_is_reported_with_the_probes_that_were_asked_for(tmp_path: Path) -> None:
    page = Path(report(str(an_evaluation(tmp_path / "all")))).read_text("utf-8")
    assert "✗ collapsed" in text_of(page)
    # sqrt(0.78 * 0.22 / 400) = 0.0207
    assert section(page, "results").startswith(
        "Results k-NN, k = 20 78.0 % ± 2.1 k-NN, untrained backbone 50.0 % ± 2.5 always the most frequent class 28.1 %"
    )
    assert "effective rank 1.5, less than 4" in section(page, "results")
    assert "100 70.0 % ± 2.3 100.0 % 50.0 % 100.0 %" in section(page, "k-nn")
    assert "84.4 % top 1 100.0 % top 2 100 epochs" in section(page, "linear-layer")
    assert "0.1 70.3 %" in section(page, "logistic-regression")
    assert "10 most similar 90.6 %, 5.2 px 25.0 %, 50.5 px" in section(page, "correspondence")
    scene = "wall <1>.png and wall 3.png 32 21.9 %, 40.5 px 6.2 %, 80.5 px 75.0 %, 9.2 px 50.0 %, 70.5 px"
    assert scene in section(page, "correspondence")
    assert "Norm of the input's gradient 0.000123" in section(page, "collapse")
    assert "Correspondences. Patches" in section(page, "figures")
    lines = re.search(r"from glsd\S* import load_model", section(page, "use-the-backbone"))
    assert lines is not None
    exec(lines[0])
    assert "load_model('runs/mine')" in section(page, "use-the-backbone")
    assert "timm 1" in section(page, "environment")

    probes = ("linear", "linear_quick", "correspondence", "collapse", "classes", "test")
    only_knn = {key: value for key, value in EVALUATION.items() if key not in probes} | {"test": None, "classes": None}
    page = Path(report(str(an_evaluation(tmp_path / "knn", only_knn)))).read_text("utf-8")
    assert sections(page)[:4] == ["results", "k-nn", "figures", "skipped-images"]
    assert "collapsed" not in text_of(page)

    healthy = {key: value for key, value in only_knn.items() if key != "knn"}
    healthy["collapse"] = {"verdict": "healthy", "reasons": [], "metrics": {"feature_std": 0.5}}
    page = Path(report(str(an_evaluation(tmp_path / "healthy", healthy)))).read_text("utf-8")
    assert "✓ healthy" in text_of(page)
    assert section(page, "results") == "Results What was measured stands below."


def test_a_report_can_lie_elsewhere(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    target = tmp_path / "new/page.html"
    assert report(run.out, str(target)) == str(target)
    assert target.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert not (tmp_path / "mine/report.html").exists()
    with pytest.raises(ValueError, match=r"must name a file for the page, such as report\.html, and .* is a folder"):
        report(run.out, str(tmp_path))


def test_a_run_on_an_object_store_is_reported_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_finished_run(tmp_path / "bucket/my run")
    for name in ("AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "true")
    with object_store(tmp_path) as address:
        options = f"?endpoint_override={address}&scheme=http&region=us-east-1"
        assert report(f"s3://bucket/my run{options}") == f"s3://bucket/my run/report.html{options}"
    page = (tmp_path / "bucket/my run/report.html").read_text("utf-8")
    assert "<h1>my run</h1>" in page
    assert page.count("<img") == 3
    (command,) = re.findall(r"<code>(# where [^<]*glsd pretrain [^<]*)</code>", page)
    comment, command = html.unescape(command).splitlines()
    assert comment == f"# where s3://bucket/my run/config.yaml{options} was copied to config.yaml"
    monkeypatch.chdir(tmp_path / "bucket/my run")
    again = parse(shlex.split(command)[1:])
    assert (again.config, again.out) == (CONFIG, f"s3://bucket/my run{options}")


def test_what_is_neither_a_run_nor_an_evaluation_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(
            ValueError,
            match=r"neither a run nor an evaluation nor a sweep: .* config.yaml .* evaluation.json .* sweep.json",
        ):
            report(str(path))
    run = a_run(tmp_path / "mine")
    run.write("config.yaml", b"optim: {epoch: 3}")
    with pytest.raises(ValueError, match=r"there is no setting 'optim.epoch'; did you mean 'optim.epochs'"):
        report(run.out)


def test_a_report_needs_neither_ray_nor_torch(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mine")
    program = f"import sys; from glsd.reporting.report import report; report({run.out!r}); print(*sys.modules)"
    arguments = [sys.executable, "-c", program]
    imported = subprocess.check_output(arguments, text=True, cwd=Path(__file__).parents[3]).split()
    assert not {"ray", "torch"} & set(imported)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE_PX = 390
INSPECT = """
<!DOCTYPE html><meta charset="utf-8">
<iframe id="page" src="PAGE" style="width: 390px; height: 844px; border: 0"></iframe>
<script>
  window.onload = () => {
    const view = document.getElementById("page").contentWindow, page = view.document;
    page.querySelectorAll("details").forEach((details) => { details.open = true; });
    const style = (selector) => view.getComputedStyle(page.querySelector(selector));
    const texts = ["h1", ".lead", "summary", "td", "th", ".facts dt", ".badge", ".kind", "nav a", "figcaption"];
    document.body.textContent = JSON.stringify({
      width: view.innerWidth,
      scroll_width: page.documentElement.scrollWidth,
      too_wide: [...page.querySelectorAll("section, section > *, header > *, footer")]
        .filter((part) => part.getBoundingClientRect().right > 391).map((part) => part.outerHTML.slice(0, 80)),
      scripts: page.scripts.length,
      title: page.title,
      fetched: view.performance.getEntriesByType("resource").map((entry) => entry.name),
      sections: [...page.querySelectorAll("section")].map((part) => part.id),
      blank_pictures: [...page.images].filter((image) => !image.naturalWidth).length,
      pictures: page.images.length,
      texts: texts.map((name) => style(name).color),
      drawn: [...page.querySelectorAll(".chart text")].map((text) => view.getComputedStyle(text).fill),
      ground: style("body").backgroundColor,
      card: style("pre").backgroundColor,
    });
  };
</script>
"""


def inspected(page: Path, folder: Path, dark: bool) -> dict[str, Any]:
    """What Chromium finds in the page on a phone, without a network."""
    assert CHROMIUM is not None
    frame = folder / "frame.html"
    frame.write_text(INSPECT.replace("PAGE", page.as_uri()))
    answer = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder / 'profile'}",
            "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", frame.as_uri(),
        ],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    (found,) = re.findall(r"<body>(.*)</body>", answer, re.DOTALL)
    return dict(json.loads(html.unescape(found)))


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.fixture(scope="module", params=["run", "evaluation"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "with a name that is far too long for a phone".replace(" ", "_")
    return Path(report(a_finished_run(folder).out if request.param == "run" else str(an_evaluation(folder))))


def test_a_report_names_nothing_outside_itself(page: Path) -> None:
    content = page.read_text("utf-8")
    links = re.findall(r"""<[^>]*\s(?:src|href|srcset|data|poster|action)\s*=\s*["']?([^"'\s>]*)""", content)
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"@import|url\(|<(script|link|iframe|object|embed|base)\b", content)


@pytest.mark.skipif(
    CHROMIUM is None,
    reason="a real browser must lay the page out, and there is no Chromium; .ci/run installs one where it may",
)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_report_on_a_phone_without_a_network(page: Path, tmp_path: Path, dark: bool) -> None:
    found = inspected(page, tmp_path, dark)
    assert found["sections"] == sections(page.read_text("utf-8"))
    assert (found["width"], found["scroll_width"], found["too_wide"]) == (PHONE_PX, PHONE_PX, [])
    assert (found["scripts"], found["fetched"], found["blank_pictures"]) == (0, [], 0)
    assert found["pictures"] >= 1
    assert found["title"] != "run"
    assert (luminance(found["ground"]) < 0.05) == dark
    assert (luminance(found["card"]) < 0.05) == dark
    assert all(contrast(colour, found["ground"]) >= 4.5 for colour in found["texts"])
    assert all(contrast(colour, found["card"]) >= 4.5 for colour in found["texts"] + found["drawn"])
