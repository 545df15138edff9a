import io
import json
import logging

import pytest
from rich.console import Console

from fed_a2v.callbacks.progress import (
    SPARKS,
    LiveView,
    PlainView,
    answers,
    progress_view,
    result_line,
    round_line,
    sparkline,
)
from fed_a2v.runs.logs import setup_logging

logger = logging.getLogger("fed_a2v")

ROW = {"round": 2, "accuracy_before": 0.112, "accuracy": 0.853, "seconds/sites": 1.5, "seconds/generator": 0.75}


WHOLE = {"test_clips": 80, "test_clips_total": 80, "sites_evaluated": 5, "sites_total": 5}
PARTLY = WHOLE | {"test_clips": 48, "sites_evaluated": 3}


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, color_system=None)


def test_a_round_in_one_line():
    assert round_line(ROW, 5) == "Round 2/5: accuracy 0.112 -> 0.853, 2.2 s"
    interval = {"accuracy_low": 0.815, "accuracy_high": 0.884}
    assert round_line(ROW | interval, 5) == "Round 2/5: accuracy 0.112 -> 0.853 (95 % 0.815 to 0.884), 2.2 s"
    bad = ROW | {"accuracy_before": None, "accuracy": None, "rejected": 2, "rolled_back": True, "failures": 0}
    assert round_line({"round": 2, "seconds/sites": 2.25}, 5) == "Round 2/5: not evaluated, 2.2 s"
    assert round_line(bad, 5) == "Round 2/5: accuracy -, 2.2 s, 2 rejected, fine-tuning rolled back"


def test_elsewhere_than_in_a_terminal_there_is_a_plain_line_a_round(tmp_path):
    screen = console(terminal=False)
    with setup_logging(tmp_path, screen), progress_view(5, screen) as view:
        assert isinstance(view, PlainView)
        view.phase(2, "generator")
        view.round_done(ROW)
    assert screen.file.getvalue() == "Round 2/5: accuracy 0.112 -> 0.853, 2.2 s\n"


def test_the_live_view_shows_phase_accuracy_and_the_last_log_lines(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen), progress_view(5, screen, done=1) as view:
        assert isinstance(view, LiveView)
        view.round_done(ROW)
        view.phase(3, "server")
        for number in range(9):
            logger.info("line %d", number)
        with screen.capture() as capture:
            screen.print(view._picture())
    picture = capture.get()
    assert "Round 3/5" in picture
    assert "sites  [server 0 s]  evaluate" in picture
    assert "0.112 -> 0.853" in picture
    assert "left" in picture
    assert "line 8" in picture
    assert "line 3" not in picture


def test_rounds_and_warnings_stay_above_the_live_view_and_the_log_file_has_all(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen):
        with progress_view(5, screen) as view:
            logger.warning("site 3 dropped")
            logger.info("passing by")
            view.round_done(ROW)
        logger.info("after")
    shown = screen.file.getvalue()
    assert shown.count("WARNING: site 3 dropped") == 1
    assert shown.count("Round 2/5: accuracy") == 1
    assert shown.rstrip().endswith("after")  # the console handler is back
    assert len((tmp_path / "run.log").read_text().splitlines()) == 4


def test_an_error_ends_the_live_view_and_puts_the_handlers_back(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen):
        before = logger.handlers[:]
        with pytest.raises(ZeroDivisionError), progress_view(5, screen):
            _ = 1 / 0
        assert logger.handlers == before


def picture_of(view, screen):
    with screen.capture() as capture:
        screen.print(view._picture())
    return capture.get()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_live_view_fits_the_terminal(tmp_path, width):
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)
    with setup_logging(tmp_path, screen), progress_view(100, screen, title="Job 3") as view:
        for number in range(1, 60):
            view.round_done(ROW | {"round": number, "accuracy": number / 100})
        view.phase(60, "sites")
        logger.info("a long line %s", "x" * 200)
    lines = picture_of(view, screen).splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0] == "Job 3"
    assert len(lines) == 6 or width == 40


def test_the_live_view_counts_the_sites_and_draws_the_accuracy(tmp_path):
    screen = console(terminal=True)
    sites = {f"site-{k}": kind for k, kind in enumerate(["replied"] * 3 + ["rejected", "failed"])}
    with setup_logging(tmp_path, screen), progress_view(5, screen) as view:
        for number, accuracy in enumerate([0.2, None, 0.9, 0.5], start=1):
            view.round_done(ROW | {"round": number, "accuracy": accuracy, "replies": 3, "sites": sites})
        picture = picture_of(view, screen)
    assert "3 of 5 replied, 1 rejected, 1 failed" in picture
    assert "▁ █▄ 0.112 -> 0.500, best 0.900" in picture


def test_the_time_left_is_judged_by_the_later_rounds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fed_a2v.callbacks.progress.time.monotonic", lambda: now[0])
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen):
        view = LiveView(5, screen)
        for number, seconds in ((1, 60), (2, 10), (3, 10)):
            now[0] += seconds
            view.round_done(ROW | {"round": number})
        assert view._left() == 20
        now[0] += 4
        assert view._left() == 16
        assert "0:01:24, about 0:00:16 left" in picture_of(view, screen)


def test_lines_class_by_class_do_not_pass_through_the_live_view(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen), progress_view(5, screen) as view:
        logging.getLogger("fed_a2v.classes").info("Epoch 1 Class 'dog'")
        logger.info("of the run")
        picture = picture_of(view, screen)
    assert "of the run" in picture
    assert "dog" not in picture
    assert "dog" in (tmp_path / "run.log").read_text()


def test_quiet_shows_errors_only(tmp_path):
    for terminal in (True, False):
        screen = console(terminal)
        with setup_logging(tmp_path, screen, logging.ERROR), progress_view(5, screen, output="quiet") as view:
            view.phase(1, "sites")
            logger.warning("site 3 dropped")
            view.round_done(ROW)
            logger.error("the disk is full")
        assert screen.file.getvalue() == "ERROR: the disk is full\n"
    assert "site 3 dropped" in (tmp_path / "run.log").read_text()


def test_json_gives_an_object_a_round_on_standard_output(tmp_path, capsys):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen), progress_view(5, screen, output="json", title="Job 3") as view:
        view.phase(1, "sites")
        view.round_done(ROW | {"loss": float("nan")})
        view.round_done(ROW | {"round": 3})
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["round"] for line in lines] == [2, 3]
    assert json.loads(lines[0]) == {"run": "Job 3", **ROW, "loss": None}


def test_a_sparkline_has_the_least_at_the_bottom_and_the_greatest_at_the_top():
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅"
    assert sparkline([0.3, None, 0.3]) == f"{SPARKS[4]} {SPARKS[4]}"
    assert sparkline([None]) == ""
    assert sparkline([0, 1], "_#") == "_#"


def test_sites_and_results_in_a_line():
    assert answers({"replies": 3, "rejected": 1, "failures": 0}) == "3 of 4 replied"
    done = {"accuracy": 0.85, "gain_first_round": 0.25, "gain_last_round": 0.0, "rounds": 5}
    line = result_line(done, "/runs/mine")
    for part in ("accuracy 0.8500 after 5 rounds", "+0.250 in round 1", "+0.000 in round 5", ": /runs/mine"):
        assert part in line
    assert result_line({"rounds": 5}, "x") == "accuracy - after 5 rounds: x"
    assert result_line(PARTLY | {"accuracy": 1.0, "t5/accuracy": 0.5, "rounds": 5}, "x") == (
        "accuracy 1.0000 on 48 of 80 test clips, 3 of 5 sites, T5 0.5000 after 5 rounds: x"
    )
    interval = {"accuracy_low": 0.926, "accuracy_high": 1.0, "t5/accuracy_low": 0.364, "t5/accuracy_high": 0.636}
    assert result_line(WHOLE | interval | {"accuracy": 1.0, "t5/accuracy": 0.5, "rounds": 5}, "x") == (
        "accuracy 1.0000 (95 % 0.926 to 1.000) on 80 test clips, T5 0.5000 (95 % 0.364 to 0.636) after 5 rounds: x"
    )


def test_t5_and_the_clips_that_were_not_scored_are_in_the_rounds_line():
    line = round_line(ROW | PARTLY | {"t5/accuracy": 0.25}, 5)
    assert line == "Round 2/5: accuracy 0.112 -> 0.853, T5 0.250 on 48 of 80 test clips, 3 of 5 sites, 2.2 s"


def test_the_live_view_takes_no_round_for_the_best_in_which_sites_were_missing(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen), progress_view(5, screen) as view:
        view.round_done(ROW | WHOLE | {"accuracy": 0.7})
        view.round_done(ROW | PARTLY | {"accuracy": 1.0})
        picture = picture_of(view, screen)
        view.round_done(ROW | WHOLE | {"accuracy": 0.6})
        later = picture_of(view, screen)
    assert "best 0.700" in picture
    assert "48 of 80 test clips, 3 of 5 sites" in picture
    assert "best 0.700" in later
    assert "48 of 80" not in later
