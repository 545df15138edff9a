"""Untrusted text in terminals, logs, tables, CSV files and plots."""

import ast
import csv
import io
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import fed_a2v as fed_a2v_package
from fed_a2v.callbacks.progress import LiveView
from fed_a2v.commands import doctor as doctor_command
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.core.projection import EmbeddingMap
from fed_a2v.doctor import Finding
from fed_a2v.runs.compare import FAILURE, SweepJob
from fed_a2v.runs.embedding_map_plot import map_figure
from fed_a2v.runs.logs import setup_logging
from fed_a2v.runs.sweep import run_job
from fed_a2v.runs.sweep_plot import plot_sweep
from fed_a2v.runs.table import TextTable
from fed_a2v.storage.plain_text import csv_cell, latex_text, markdown_cell, one_line, printable, say
from tests.command import fed_a2v

ESC, CSI, RIGHT_TO_LEFT = "\x1b", "\x9b", "\u202e"
# A name that clears the screen, rings, sets a title, turns letters round, begins lines of its own, holds markup, a
# picture's name, and half a character, as a file name that is not UTF-8 does.
HOSTILE = (
    f"dog{ESC}[2J{ESC}]0;title\x07{CSI}31m{RIGHT_TO_LEFT}gnp.exe\u2028\r\nERROR disk full\x85\x00"
    "[bold]x[/bold][dog,rain] :dog: \udcff"
)


def assert_plain(shown, lines):
    """Nothing in what was shown controls a terminal, and it has just these lines; the name can be made out."""
    assert shown.count("\n") == lines
    assert not [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cs", "Cf") and letter != "\n"]
    assert not any(line.startswith("ERROR disk full") for line in shown.split("\n"))
    for part in ("[bold]x[/bold][dog,rain] :dog:", r"\x1b", r"\x9b", r"\u202e", r"\udcff", "ERROR disk full"):
        assert part in shown


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=400)


def test_a_line_is_one_line_of_visible_letters():
    assert (
        one_line("a\tb\nc\\d\x1b\x7f\x9b\u202e\u2066\u2028\ufeff") == r"a\tb\nc\d\x1b\x7f\x9b\u202e\u2066\u2028\ufeff"
    )
    assert one_line("Käfig 犬 🐕 \u00a0می‌خواهم") == "Käfig 犬 🐕 \u00a0می‌خواهم", (
        "words in any language stay as they are"
    )


@given(st.text(st.characters()))
def test_any_text_is_printed_with_visible_characters_only(text):
    for shown in (one_line(text), printable(text), csv_cell(text), markdown_cell(text)):
        hidden = [letter for letter in shown if unicodedata.category(letter) in ("Cc", "Cs", "Cf", "Zl", "Zp")]
        assert set(hidden) <= {"\n", "\u200c", "\u200d"}
        shown.encode()
    assert printable(printable(text)) == printable(text)


def test_only_the_first_line_begins_at_the_left():
    assert printable("one\ntwo\r\n  three\n\nfour") == "one\n  two\n  three\n\n  four"


def put_together(call):
    """Whether a call prints a text that it makes of others."""
    shown = [given for given in call.args if not ast.unparse(given).endswith(".rich()")]  # a table, in its own way
    return any(isinstance(node, ast.JoinedStr | ast.BinOp) for given in shown for node in ast.walk(given))


def test_nothing_else_in_the_package_prints_text_that_it_puts_together():
    calls = {
        (file.name, node.lineno): node
        for file in Path(fed_a2v_package.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "print"
    }
    assert {name for name, _ in calls} >= {"plain_text.py", "job.py"}
    assert put_together(ast.parse('console.print(f"Report: {path}")').body[0].value)
    assert not [place for place, call in calls.items() if put_together(call)]


def test_the_console_shows_names_as_they_are(terminal):
    say(terminal, f"Results: {HOSTILE}")
    assert_plain(terminal.file.getvalue(), lines=2)


@pytest.mark.parametrize("name", ["fed_a2v", "flwr", "fed_a2v.classes"])
def test_a_log_shows_names_and_errors_as_they_are(tmp_path, terminal, name):
    with setup_logging(tmp_path, terminal):
        logging.getLogger(name).warning("%s has sent %s", "site", HOSTILE)
        for text in [(tmp_path / "run.log").read_text()] + [terminal.file.getvalue()] * (name != "fed_a2v.classes"):
            assert_plain(text, lines=2)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger(name).exception("failed")
    lines = (tmp_path / "run.log").read_text().split("\n")
    assert_plain("\n".join(lines), lines=len(lines) - 1)


def test_a_process_without_handlers_warns_of_names_as_they_are(capsys):
    logger = logging.getLogger("fed_a2v")
    assert not logger.handlers
    logger.propagate = False
    try:
        logger.warning("left out %s", HOSTILE)
    finally:
        logger.propagate = True
    assert_plain(capsys.readouterr().err, lines=2)


def test_the_live_view_shows_its_last_lines_as_they_are(tmp_path, terminal):
    with setup_logging(tmp_path, terminal), LiveView(3, terminal, title="Job 1") as view:
        logging.getLogger("fed_a2v").info("site %s", HOSTILE)
        said = list(view._tail)
    assert_plain("\n".join(said), lines=1)


HOSTILE_TABLE = TextTable(HOSTILE, ("job", HOSTILE), (("1", HOSTILE), ("2", "[dog,rain]")))


def test_a_table_in_a_terminal_shows_names_as_they_are(terminal):
    terminal.print(HOSTILE_TABLE.rich())
    shown = terminal.file.getvalue()
    assert_plain(shown, lines=shown.count("\n"))
    assert any("[dog,rain]" in line and "2" in line and "bold" not in line for line in shown.splitlines())


def test_a_table_in_markdown_has_its_cells_and_no_others():
    table = TextTable(
        "", ("job", "name"), (("1", HOSTILE), ("2", "a|b\n| c | d |"), ("3", "<img src=x>[x](javascript:y)"))
    )
    lines = table.markdown().splitlines()
    assert len(lines) == 5
    assert_plain(lines[2], lines=0)
    assert lines[3] == r"| 2 | a\|b\n\| c \| d \| |"
    assert "<" not in lines[4]
    assert "](" not in lines[4]


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((number, number) for number in ("1", "-0.5", "+3", "-1e-05", ".5", "-", "")),
        *((words, words) for words in ("dog", "a=b", "1 of 2", "[dog,rain]", "naïve")),
        ("=1+1", "'=1+1"),
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+dog", "'+dog"),
        ("-dog", "'-dog"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\uff1d1", "'\uff1d1"),
        ("dog;=1", "dog;'=1"),
        ("\t=1", r"\t=1"),
        ("\r=1", r"\r=1"),
        ("a\n=1", r"a\n=1"),
    ],
)
def test_a_cell_of_a_csv_file_is_a_number_or_words_never_a_formula(cell, written):
    text = TextTable("", ("key",), ((cell,),)).csv()
    ((_,), (found,)) = csv.reader(io.StringIO(text)) if cell else (("key",), ("",))
    assert found == written


def test_the_reason_of_a_job_that_failed_is_left_as_it_is(tmp_path):
    def run(settings, folder):
        raise ConfigError(HOSTILE)

    with pytest.raises(ConfigError):
        run_job(compose_settings(), tmp_path, run)
    said = (tmp_path / FAILURE).read_text()
    # Of the traceback, which nobody takes for a log, the lines stay as they are.
    assert_plain(said.replace("\nERROR disk full", "\n ERROR disk full"), lines=said.count("\n"))


def test_an_error_ends_a_command_in_lines_of_its_own(tmp_path):
    named = HOSTILE.replace("\x00", "")  # of which no file name has any
    done = fed_a2v("report", named, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("fed-a2v: ")
    assert_plain(done.stderr, lines=done.stderr.count("\n"))


@pytest.mark.parametrize("in_terminal", [True, False])
def test_the_doctor_shows_names_as_they_are(monkeypatch, capsys, terminal, in_terminal):
    monkeypatch.setattr(
        "fed_a2v.doctor.examine", lambda words: [Finding("data", "error", HOSTILE, f"rename {HOSTILE}")]
    )
    terminal.file = io.StringIO()
    monkeypatch.setattr(doctor_command, "Console", lambda: terminal if in_terminal else Console())
    with pytest.raises(SystemExit):
        doctor_command.run([])
    shown = terminal.file.getvalue() if in_terminal else capsys.readouterr().out
    assert_plain(shown.replace("\t", " "), lines=shown.count("\n"))
    assert in_terminal or shown.count("\n") == 1


def test_plots_show_names_literally(tmp_path):
    name = r"$\frac{$ " + "\x1b\n"
    one = EmbeddingMap(
        coordinates=np.zeros((1, 2), np.float32),
        labels=np.zeros(1, np.int64),
        synthetic=np.zeros(1, bool),
        counts=np.ones(1, np.int64),
        sites=np.array(["site-000"]),
        classes=np.array([name]),
        explained=np.ones(2, np.float32),
    )
    map_figure(one).savefig(tmp_path / "map.png")
    jobs = [SweepJob(str(k), "done", {name: f"{name}{k}"}, {"accuracy": 0.5}, "") for k in range(2)]
    assert plot_sweep(jobs, tmp_path / "sweep.png")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50 % of a_b & $x #1 {y}", r"50 \% of a\_b \& \$x \#1 \{y\}"),
        (
            "\\input~^<>|",
            r"\textbackslash{}input\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}",
        ),
        ("0.5 ± 0.1", r"0.5 $\pm$ 0.1"),
        ("-0.006 [-0.018, +0.005]", "$-$0.006 [$-$0.018, $+$0.005]"),
        ("1e-3, 2026-11-30", "1e-3, 2026-11-30"),
        ("a\nb", r"a\textbackslash{}nb"),
    ],
)
def test_text_for_latex_has_no_commands(text, wanted):
    assert latex_text(text) == wanted
