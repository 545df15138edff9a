import io
import logging
import os

import pytest
from rich.console import Console

from fed_a2v.runs.logs import CLASS_LINES, LAST_LINES, setup_logging

logger = logging.getLogger("fed_a2v")
flower = logging.getLogger("flwr")


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=40, color_system=None)


def test_lines_reach_console_and_file_once_even_in_the_tenth_run_of_a_sweep(tmp_path):
    for job in range(10):
        screen = console()
        with setup_logging(tmp_path / str(job), screen):
            logger.info("Validating generator at round %d", job)
        assert screen.file.getvalue() == f"Validating generator at round {job}\n"
        (line,) = (tmp_path / str(job) / "run.log").read_text().splitlines()
        assert line.endswith(f"INFO Validating generator at round {job}")


def test_a_nested_call_does_not_double_lines(tmp_path):
    outer, inner = console(), console()
    with setup_logging(tmp_path / "a", outer), setup_logging(tmp_path / "b", inner):
        logger.info("once")
    assert (outer.file.getvalue(), inner.file.getvalue()) == ("", "once\n")


def test_long_lines_and_brackets_come_out_as_they_are(tmp_path):
    screen = console()
    line = "  Epoch 1 Class 'dog [bold]': VAE Loss=0.3421 (Recon=0.2134, KL=0.0987, Sim=0.0300)"
    with setup_logging(tmp_path, screen):
        logger.info(line)
        logger.warning("site 3 dropped")
    assert screen.file.getvalue() == f"{line}\nWARNING: site 3 dropped\n"


def test_messages_do_not_propagate_to_the_root_logger(tmp_path, caplog):
    with setup_logging(tmp_path, console()):
        logger.info("ours")
        flower.info("theirs")
    assert caplog.messages == []
    assert "theirs" in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("name", [CLASS_LINES, LAST_LINES])
def test_some_lines_are_for_the_file_alone(tmp_path, name):
    screen = console()
    with setup_logging(tmp_path, screen):
        logging.getLogger(name).info("Report: here")
    assert screen.file.getvalue() == ""
    assert "INFO Report: here" in (tmp_path / "run.log").read_text()


def test_in_a_terminal_flower_shows_its_warnings_only(tmp_path):
    screen = console(terminal=True)
    with setup_logging(tmp_path, screen):
        flower.info("[ROUND 1]")
        flower.warning("a node is gone")
    assert screen.file.getvalue() == "WARNING: a node is gone\n"
    assert "[ROUND 1]" in (tmp_path / "run.log").read_text()


def test_everything_is_put_back_even_after_an_error(tmp_path):
    def setup():
        return [(log.handlers[:], log.level, log.propagate) for log in (logger, flower)]

    before = setup()
    with pytest.raises(ZeroDivisionError), setup_logging(tmp_path, console()):
        _ = 1 / 0
    assert setup() == before


def test_what_flower_sets_when_it_is_first_imported_inside_stays(tmp_path):
    added = logging.NullHandler()
    level = flower.level
    with setup_logging(tmp_path, console()):
        flower.addHandler(added)
        flower.setLevel(logging.DEBUG)
    assert added in flower.handlers
    assert flower.level == logging.DEBUG
    flower.removeHandler(added)
    flower.setLevel(level)


def test_a_resumed_run_adds_to_its_log(tmp_path):
    for text in ("first", "second"):
        with setup_logging(tmp_path, console()):
            logger.info(text)
    assert len((tmp_path / "run.log").read_text().splitlines()) == 2


def test_a_full_disk_loses_lines_of_the_log_and_nothing_else(tmp_path, capsys):
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full on this system")
    (tmp_path / "run.log").symlink_to("/dev/full")
    screen = console()
    with setup_logging(tmp_path, screen):
        logger.info("still here")
    assert "still here" in screen.file.getvalue()
    assert capsys.readouterr().err == ""
