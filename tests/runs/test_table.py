import io

import pytest
from rich.console import Console

from fed_a2v.runs.table import TextTable, comparison_table, figures_by_round, interval_cell, rounds_table

ROWS = [
    {"round": 1, "accuracy_before": 0.11, "accuracy": 0.8512, "server/generator_loss": 0.25431, "bytes_up": 2_500_000},
    {"round": 2, "accuracy_before": 0.2, "accuracy": None, "seconds/sites": 1.0, "seconds/generator": 0.26},
]


def test_the_rounds_of_a_run():
    table = rounds_table(ROWS)
    assert table.header[:3] == ("round", "before", "accuracy and 95 %")
    assert table.rows == (
        ("1", "0.110", "0.851", "0.2543", "-", "2.50", "-", "0.0"),
        ("2", "0.200", "-", "-", "-", "-", "-", "1.3"),
    )


PARTLY = {"test_clips": 48, "test_clips_total": 80, "sites_evaluated": 3, "sites_total": 5}


def test_t5_has_a_column_and_figures_that_rest_on_some_of_the_clips_a_mark():
    table = rounds_table([ROWS[0] | {"t5/accuracy": 0.5}, ROWS[0] | PARTLY])
    assert table.header[1:4] == ("before", "accuracy and 95 %", "T5")
    assert [row[1:4] for row in table.rows] == [("0.110", "0.851", "0.500"), ("0.110", "0.851*", "-")]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.8149, 0.8842, "0.851 .81-.88"), (0.0, 0.0999, "0.851 .00-.10"), (0.893, 1.0, "0.851 .89-1.0"), (None,) * 3]
    + [(0.8462, 0.8561, "0.851 .846-.856")],
)
def test_an_accuracy_has_its_interval_beside_it(low, high, shown):
    row = ROWS[0] | {"accuracy_low": low, "accuracy_high": high}
    assert rounds_table([row]).rows[0][2] == (shown or "0.851")
    assert interval_cell(row) == ("-" if low is None else f"{low:.3f} to {high:.3f}")
    assert interval_cell(row, "t5/accuracy") == "-"


def test_the_rounds_of_a_run_without_t5_take_a_line_each_where_the_terminal_has_80_columns():
    row = ROWS[0] | {"accuracy_low": 0.8149, "accuracy_high": 0.8842, "server/adapter_finetuning_loss": 1.23456}
    console = Console(file=io.StringIO(), width=80)
    console.print(rounds_table([row | {"bytes_down": 187_650_000, "seconds/sites": 12.3}] * 2).rich())
    assert console.file.getvalue().count(" 0.851 .81-.88 ") == 2


def test_no_figure_of_the_rounds_is_cut_where_the_terminal_has_80_columns():
    full = ROWS[0] | {
        "accuracy_low": 0.8149,
        "accuracy_high": 1.0,
        "server/adapter_finetuning_loss": 1.23456,
        "bytes_down": 187_650_000,
        "seconds/sites": 123.4,
    }
    console = Console(file=io.StringIO(), width=80)
    console.print(rounds_table([full | PARTLY | {"t5/accuracy": 0.5}]).rich())
    shown = console.file.getvalue()
    assert "…" not in shown, "no head either"
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f" {cell} " in shown for cell in ("0.851*", ".81-1.0", "0.500", "0.2543", "1.2346", "187.65", "123.4"))


def test_an_accuracy_on_some_of_the_clips_says_so_beside_others():
    table = comparison_table({"FedAvg": [ROWS[0]], "vae": [ROWS[0] | PARTLY]})
    assert table.rows[0] == ("1", "0.851", "0.851 on 48 of 80")
    unknown = PARTLY | {"test_clips_total": None, "t5/accuracy": 0.5}
    table = comparison_table({"FedAvg": [ROWS[0]], "vae": [ROWS[0] | unknown]}, figure="t5/accuracy")
    assert table.rows[0] == ("1", "-", "0.500 on 48 of ?")


def test_variants_side_by_side_by_round():
    steps = [{"site/optimiser_steps": 2.5, "server/optimiser_steps": number} for number in (30, 10)]
    run = [row | taken for row, taken in zip(ROWS, steps, strict=True)]
    table = comparison_table({"FedAvg only": [{"round": 1, "accuracy": 0.11}], "vae": run})
    assert table.markdown() == (
        "| round | FedAvg only | vae |\n| --- | --- | --- |\n| 1 | 0.110 | 0.851 |\n| 2 | - | - |\n"
        "| steps at a site | - | 5 |\n| on the server | - | 40 |\n"
    )


def test_a_table_shows_in_a_terminal():
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table({"vae": ROWS}, title="Accuracy").rich())
    shown = console.file.getvalue()
    assert "Accuracy" in shown
    assert "0.851" in shown


def test_a_table_in_latex_has_its_figures_to_the_right_and_no_row_that_is_an_option():
    table = TextTable("", ("arm", "a_b"), (("[1,2]", "0.5"), ("vae", "-0.25")))
    text = table.latex("50 %", "tab:mine")
    assert r"\caption{50 \%}" in text
    assert r"\label{tab:mine}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"    arm & a\_b \\" in text
    assert r"    {}[1,2] & 0.5 \\" in text
    assert r"    vae & $-$0.25 \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_short_heads_are_the_last_part_of_a_key_unless_two_have_the_same():
    header = ("generator.latent_dim", "site.learning_rate", "finetune.learning_rate", "accuracy_at_5")
    table = TextTable("", header, ()).fitting()
    assert table.header == ("latent_dim", "site.learning_rate", "finetune.learning_rate", "top 5")


def test_the_file_of_a_comparison_has_a_row_for_each_arm_and_round():
    table = figures_by_round({"FedAvg": ROWS[:1], "vae": ROWS})
    assert table.header == ("arm", "round", "accuracy", "accuracy_before")
    assert table.rows == (
        ("FedAvg", "1", "0.8512", "0.11"),
        ("vae", "1", "0.8512", "0.11"),
        ("vae", "2", "-", "0.2"),
    )
