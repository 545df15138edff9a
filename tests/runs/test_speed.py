from fed_a2v.runs.speed import speed, speed_line, without_clock

ROWS = [
    {
        "round": number,
        "seconds": 1.0,
        "seconds/sites": 1.0,
        "site_seconds": {"site-000": 1.0},
        "machine/matrix_rate": 8e10,
        "machine/site_clips_per_second": rate,
        "machine/site_steps_per_second": 20.0,
        "machine/site_matrix_share": 0.25,
        "machine/server_steps_per_second": 50.0,
        "machine/server_matrix_share": 0.5,
        "machine/bytes_per_second": 3e6,
        "machine/peak_memory": peak,
    }
    for number, rate, peak in ((1, 1.0, 6e8), (2, 300.0, 7e8), (3, 500.0, 7e8))
]


def test_the_first_round_counts_only_alone():
    assert speed(ROWS).site == "400 clips/s"
    assert speed(ROWS[:1]).site == "1 clips/s"


def test_figures_that_no_round_has_are_left_out():
    deployed = [{key: value for key, value in row.items() if key != "machine/site_matrix_share"} for row in ROWS]
    assert speed(deployed).site_more == "20 steps/s"
    assert speed(deployed).server_more == speed(ROWS).server_more == "50 % of the matrix rate"
    private = [{key: value for key, value in row.items() if "machine/site" not in key} for row in ROWS]
    assert (speed(private).site, speed(private).site_more) == ("", "")
    assert "clips/s" not in speed_line(private)
    assert speed_line([{"round": 1, "seconds": 1.0}]) == ""


def test_the_peak_is_that_of_all_rounds():
    assert speed([*ROWS, ROWS[0]]).memory == "700 MB"
    on_gpu = [row | {"machine/peak_gpu_memory": 2e9} for row in ROWS]
    assert speed(on_gpu).memory == "700 MB, 2000 MB on the GPU"


def test_without_the_clock_a_row_has_what_every_run_has():
    assert [without_clock(row) for row in ROWS] == [{"round": 1}, {"round": 2}, {"round": 3}]
