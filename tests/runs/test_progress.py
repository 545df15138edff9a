import io
import logging

import pytest
from rich.console import Console

from fed_a2v.runs.logs import setup_logging
from fed_a2v.runs.progress import LiveView, PlainView, progress_view, round_line

logger = logging.getLogger("fed_a2v")

ROW = {"round": 2, "accuracy_before": 0.112, "accuracy": 0.853, "seconds/sites": 1.5, "seconds/generator": 0.75}


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, height=30, color_system=None)


def test_a_round_in_one_line():
    assert round_line(ROW, 5) == "Round 2/5: accuracy 0.112 -> 0.853, 2.2 s"
    bad = ROW | {"accuracy_before": None, "accuracy": None, "rejected": 2, "rolled_back": True, "failures": 0}
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
        view.phase(3, "fine-tuning")
        for number in range(9):
            logger.info("line %d", number)
        with screen.capture() as capture:
            screen.print(view._picture())
    picture = capture.get()
    assert "Round 3/5" in picture
    assert "fine-tuning" in picture
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
