"""What left the sites with sums, and what more rounds added."""

import pytest

from fed_a2v.config.compose import compose_settings
from fed_a2v.runs.exchange import exchange_lines, shares_sums, sums_bytes, traffic


def config(*words):
    return compose_settings(["share=statistics", "site.epochs=0", "projection.columns=64", *words]).as_dict()


def rows(*accuracies, **more):
    first = {"bytes_registration": 50_000, "bytes_down_registration": 7_000_000}
    return [
        {"round": number, "accuracy": accuracy, "test_clips": 400, "sites_evaluated": 5, "sites_total": 5}
        | {"bytes_up": 0, "bytes_down": 10**6}
        | (first if number == 1 else {})
        | more
        for number, accuracy in enumerate(accuracies, 1)
    ]


def test_without_sums_there_are_no_lines_and_the_registration_is_not_counted():
    plain = compose_settings([]).as_dict()
    assert not shares_sums(plain)
    assert exchange_lines(plain, rows(0.5, 0.6)) == []
    assert traffic(plain, rows(0.5, 0.6)) == 2 * 10**6


def test_the_registration_is_part_of_the_traffic():
    assert sums_bytes(config(), rows(0.5)) == 10_000
    assert traffic(config(), rows(0.5, 0.6)) == 2 * 10**6 + 7_050_000


def test_what_left_a_site_has_its_columns_and_bytes():
    (line,) = exchange_lines(config(), rows(0.5))
    assert "64 public columns" in line
    assert "10.0 kB once" in line
    assert "nothing more" in line
    assert sums_bytes(config(), [{"round": 1}]) is None
    assert "kB" not in exchange_lines(config(), [{"round": 1}])[0]


@pytest.mark.parametrize(
    ("words", "matrix", "noise", "totals"),
    [
        ((), True, False, False),
        (("secure_sums=secagg",), True, False, True),
        (("privacy=dp", "privacy.epsilon=8"), True, True, False),
        (("privacy=dp", "privacy.epsilon=2"), False, True, False),
        (("privacy=dp", "privacy.epsilon=4", "secure_sums=secagg"), True, True, True),
    ],
)
def test_what_left_a_site_is_what_the_settings_let_it_send(words, matrix, noise, totals):
    plain = config("partition.sites=5", "dataset.square_root=never", *words)
    (line,) = exchange_lines(plain, rows(0.5))
    assert ("matrix" in line, "noise" in line, "totals" in line) == (matrix, noise, totals)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("site.epochs=5",), "adapters trained on its clips, 2.00 MB a round"),
        (("site.server_steps=true",), "adapters trained on its clips, 2.00 MB a round"),
        (("adapters=sd", "images=sd", "generate_nodes_images_frequency=1"), "mean outputs of the adapters, 2.00 MB"),
    ],
)
def test_what_leaves_a_site_in_every_round_is_no_part_of_the_sums(words, what):
    (line,) = exchange_lines(config(*words), rows(0.5, bytes_up=10**7))
    assert what in line
    assert "10.0 kB once" in line


def test_sites_that_join_later_send_their_sums_in_a_round():
    assert sums_bytes(config(), rows(0.5, 0.6, bytes_up=25_000)) == 20_000


@pytest.mark.parametrize("accuracies", [(0.5,), (0.5, 0.5, 0.5)])
def test_more_rounds_add_nothing_to_a_closed_form_with_all_sites(accuracies):
    _, line = exchange_lines(config("adapters=closed_form"), rows(*accuracies))
    assert "add nothing" in line


def test_what_more_rounds_added_has_its_standard_error():
    _, line = exchange_lines(config(), rows(0.5, 0.7, 0.8))
    # sqrt((0.5 * 0.5 + 0.8 * 0.2) / 400)
    assert "Rounds 2 to 3 added +0.300" in line
    assert "0.032" in line
    assert "Round 2 added" in exchange_lines(config(), rows(0.5, 0.7))[1]


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("scenario=class_incremental", "adapters=closed_form"), {}),
        (("adapters=closed_form",), {"failures": 1, "accuracy": None}),
        ((), {"sites_evaluated": 3}),
        ((), {"accuracy": None}),
    ],
)
def test_rounds_that_other_sites_join_or_miss_are_not_compared(words, changes):
    assert len(exchange_lines(config(*words), rows(0.5, 0.7, **changes))) == 1
