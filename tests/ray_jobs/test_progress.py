import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.cluster.monitor import Monitor
from ray_jobs.progress import MAX_WIDTH, ProgressLine, duration_text, progress_text

METRICS = {
    "step": 120.0,
    "total_steps": 520.0,
    "epoch": 1.85,
    "epochs": 8.0,
    "loss": 5.8123,
    "loss_global": 5.9,
    "loss_local": 5.72,
    "images_per_s": 214.3,
    "data_wait": 0.03,
    "seconds_left": 102.0,
    "knn": 0.431,
    "lr": 0.0005,
}


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_line_shows_step_epoch_losses_speed_waiting_time_left_and_knn() -> None:
    assert progress_text(METRICS) == (
        "step 120/520  epoch 2/8  loss 5.812 (global 5.90, local 5.72)  "
        " 214 images/s  wait   3 %  left 1:42  k-NN 43.1 %"
    )


def test_a_vanilla_run_shows_no_local_loss_and_one_without_labels_no_knn() -> None:
    text = progress_text({key: value for key, value in METRICS.items() if key not in ("loss_local", "knn")})
    assert "loss 5.812 (global 5.90)  " in text
    assert "local" not in text
    assert "k-NN" not in text


def test_the_progress_line_says_whether_the_teacher_has_collapsed_once_that_is_judged() -> None:
    assert progress_text(METRICS | {"collapsed": 1.0}, 200) == progress_text(METRICS, 200) + "  COLLAPSED"
    assert progress_text(METRICS | {"collapsed": 0.0}, 200) == progress_text(METRICS, 200) + "  healthy"
    assert progress_text(METRICS | {"collapsed": 1.0}).endswith("COLLAPSED")
    assert len(progress_text(METRICS | {"collapsed": 1.0})) <= MAX_WIDTH


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_note_stays_to_be_read(stream: io.StringIO) -> None:
    with ProgressLine(stream) as line:
        line.update(METRICS)
        line.note("the teacher has collapsed " + 300 * "x")
        line.update(METRICS)
    assert "the teacher has collapsed " + 300 * "x" + "\n" in stream.getvalue()


def test_lines_of_a_run_are_aligned() -> None:
    early = METRICS | {"step": 10.0, "images_per_s": 9.0, "data_wait": 1.0, "epoch": 0.2}
    assert progress_text(early).index("left") == progress_text(METRICS).index("left")


def test_the_epoch_that_is_shown_is_the_one_under_way() -> None:
    shown = [progress_text({"epoch": epoch, "epochs": 8.0}) for epoch in (0.1, 1.0, 1.01, 8.0)]
    assert shown == ["epoch 1/8", "epoch 1/8", "epoch 2/8", "epoch 8/8"]


def test_a_long_run_still_fits_with_all_that_there_is_to_say() -> None:
    long = METRICS | {"step": 1234567, "total_steps": 9999999, "epoch": 1234, "epochs": 9999, "images_per_s": 123456}
    text = progress_text(long | {"seconds_left": 1e7})
    assert len(text) <= MAX_WIDTH
    assert re.search(r"step 1234567/9999999 epoch 1234/9999 loss 5\.812 \(5\.90, 5\.72\) .*left 115 d 17 h k-NN", text)


@settings(deadline=None, max_examples=200)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "step": st.integers(0, 10**8),
            "total_steps": st.integers(1, 10**8),
            "epoch": st.floats(0, 10**4),
            "epochs": st.integers(1, 10**4),
            "loss": st.floats(0, 10**4),
            "loss_global": st.floats(0, 10**4),
            "loss_local": st.floats(0, 10**4),
            "images_per_s": st.floats(0, 10**6),
            "data_wait": st.floats(0, 1),
            "seconds_left": st.floats(0, 10**9),
            "knn": st.floats(0, 1),
        },
    )
)
def test_no_metrics_make_the_line_too_long(metrics: dict[str, float]) -> None:
    text = progress_text(metrics)
    assert len(text) <= MAX_WIDTH
    assert "\n" not in text


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 86399))
def test_durations_below_a_day_read_back(seconds: int) -> None:
    total = 0
    for part in duration_text(seconds).split(":"):
        total = 60 * total + int(part)
    assert total == seconds


def test_in_a_file_a_line_is_printed_every_ten_seconds_and_the_last_always() -> None:
    stream, clock = io.StringIO(), Clock()
    with ProgressLine(stream, clock) as line:
        for step in range(1, 26):
            line.update({"step": step, "total_steps": 25})
            clock.seconds += 1
    assert stream.getvalue() == "step  1/25\nstep 11/25\nstep 21/25\nstep 25/25\n"


def test_in_a_file_a_new_phase_is_printed_at_once_and_its_growth_is_not() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream, Clock())
    for phase in (("indexing", "0 images"), ("indexing", "100 images"), ("starting workers", "")):
        line.phase(*phase)
    line.update({"step": 1})
    line.close()
    assert stream.getvalue() == "indexing 0 images\nstarting workers\nstep 1\n"


def test_on_a_terminal_the_line_is_rewritten_in_place_and_left_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    stream = Terminal()
    with ProgressLine(stream, Clock()) as line:
        line.phase("k-NN")
        line.update({"step": 1, "total_steps": 25, "loss": 5.0})
    assert stream.getvalue() == "\rk-NN\x1b[K\rstep 1/25 l\x1b[K\n"


def test_a_line_that_showed_nothing_leaves_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        ProgressLine(stream, Clock()).close()
        assert stream.getvalue() == ""


def test_news_are_taken_once_in_order() -> None:
    monitor = Monitor()
    monitor.push("phase", "k-NN", "")
    monitor.push("update", {"step": 1.0})
    assert monitor.take() == [("phase", ("k-NN", "")), ("update", ({"step": 1.0},))]
    assert monitor.take() == []


def test_a_terminal_of_eighty_columns_shows_all_but_the_names_of_the_losses() -> None:
    training = {key: value for key, value in METRICS.items() if key != "knn"}
    text = progress_text(training, width=79)
    assert text == "step 120/520 epoch 2/8 loss 5.812 (5.90, 5.72) 214 images/s wait 3 % left 1:42"
    assert len(text) <= 79


def test_on_a_narrower_terminal_the_epoch_makes_room_and_then_the_parts_of_the_loss() -> None:
    texts = [progress_text(METRICS, width) for width in (80, 79)]
    assert texts[0] == "step 120/520 loss 5.812 (5.90, 5.72) 214 images/s wait 3 % left 1:42 k-NN 43.1 %"
    assert texts[1] == "step 120/520 loss 5.812 214 images/s wait 3 % left 1:42 k-NN 43.1 %"
