"""The list of callbacks: their order, their errors, and how a configuration builds them."""

import logging

import pytest

from fed_a2v.callbacks.base import Callback, CallbackList
from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.plugins import make_components
from fed_a2v.config.sections.base import ComponentSettings
from fed_a2v.federation.simulation import run_in_process
from fed_a2v.load import load_run
from fed_a2v.runs.checkpoint import load_state
from tests.callbacks.helpers import context
from tests.federation.helpers import FAST, Finished, assert_same_run
from tests.refusals import refused

HEARD = []
HERE = "tests.callbacks.test_base"


class Listener(Callback):
    """Records every hook, and fails in the given ones."""

    def __init__(self, name="a", failing=()):
        self.name, self.failing = name, failing

    def _note(self, hook, *what):
        HEARD.append((self.name, hook, *what))
        if hook in self.failing:
            raise RuntimeError(f"{self.name} {hook}")

    def on_run_start(self, run):
        self._note("on_run_start", run.rounds_done)

    def on_phase(self, round_number, phase):
        self._note("on_phase", round_number, phase)

    def on_server_step_end(self, round_number, step):
        self._note("on_server_step_end", round_number)

    def on_evaluate_end(self, round_number, step, evaluation):
        self._note("on_evaluate_end", round_number, sorted(evaluation))

    def on_round_end(self, metrics):
        self._note("on_round_end", metrics["round"])

    def on_run_end(self, results):
        self._note("on_run_end", results and results["rounds"])

    def state_dict(self):
        return {"heard": len(HEARD)}

    def load_state_dict(self, state):
        self._note("load_state_dict", state["heard"])


class Essential(Listener):
    essential = True


class Stranger:
    pass


@pytest.fixture(autouse=True)
def _nothing_heard():
    HEARD.clear()


def started(folder, **callbacks):
    made = CallbackList(callbacks)
    made.start(context(folder, compose_settings("wandb.mode=disabled")))
    return made


def test_a_run_tells_its_callbacks_all_of_it_in_order_and_computes_the_same_without(tmp_path):
    words = [*FAST, "rounds=2", f"+callbacks.mine._target_={HERE}.Listener", "+callbacks.mine.name=mine"]
    with_it = Finished(tmp_path / "with", run_in_process(compose_settings(words), tmp_path / "with"))
    of_a_round = ["on_phase", "on_phase", "on_server_step_end", "on_phase", "on_evaluate_end", "on_round_end"]
    assert {name for name, *_ in HEARD} == {"mine"}
    assert [hook for _, hook, *_ in HEARD] == ["on_run_start", "on_phase", *of_a_round, *of_a_round, "on_run_end"]
    assert HEARD[1][2] == 0, "sites register before the first round"
    assert HEARD[-1][2] == 2
    without = Finished(
        tmp_path / "without", run_in_process(compose_settings([*FAST, "rounds=2"]), tmp_path / "without")
    )
    assert_same_run(with_it, without)


def test_the_state_of_a_round_is_saved_after_the_callback_has_had_it(tmp_path):
    words = [*FAST, "rounds=1", f"+callbacks.mine._target_={HERE}.Listener"]
    run_in_process(compose_settings(words), tmp_path / "run")
    saved = load_state(tmp_path / "run")["components"]["callbacks"]["mine"]["heard"]
    assert HEARD[saved - 1][:2] == ("a", "on_round_end")


def test_a_resumed_run_gives_a_callback_its_state(tmp_path):
    words = [*FAST, f"+callbacks.mine._target_={HERE}.Listener"]
    run_in_process(compose_settings([*words, "rounds=1"]), tmp_path / "run")
    saved = load_state(tmp_path / "run")["components"]["callbacks"]["mine"]["heard"]
    HEARD.clear()
    run_in_process(compose_settings([*words, "rounds=2"]), tmp_path / "run")
    assert HEARD[:2] == [("a", "load_state_dict", saved), ("a", "on_run_start", 1)]


def test_a_callback_left_out_leaves_nothing_and_may_be_left_out_of_a_resumed_run(tmp_path):
    words = [*FAST, "wandb.mode=disabled"]
    run_in_process(compose_settings([*words, "rounds=1", "callbacks.embedding_map=null"]), tmp_path / "run")
    assert not (tmp_path / "run" / "map.npz").exists()
    run_in_process(compose_settings([*words, "rounds=2"]), tmp_path / "run")
    assert (tmp_path / "run" / "map.npz").exists()


@pytest.mark.parametrize("hook", ["on_run_start", "on_phase", "on_round_end", "on_run_end"])
def test_an_error_ends_the_callback_and_not_the_run(tmp_path, caplog, hook):
    with caplog.at_level(logging.WARNING, "fed_a2v"):
        callbacks = started(tmp_path, bad=Listener("bad", [hook]), good=Listener("good"))
        for number in (1, 2):
            callbacks.call("on_phase", number, "sites")
            callbacks.call("on_round_end", {"round": number})
        callbacks.end({"rounds": 2})
    assert [line for line in HEARD if line[0] == "good"] == [
        ("good", "on_run_start", 0),
        *(
            ("good", name, number, *more)
            for number in (1, 2)
            for name, *more in (("on_phase", "sites"), ("on_round_end",))
        ),
        ("good", "on_run_end", 2),
    ]
    assert sum(line[:2] == ("bad", hook) for line in HEARD) == 1
    assert HEARD.count(("bad", "on_run_end", 2)) == 1, "it may close what it has opened"
    (message,) = caplog.messages
    assert all(word in message for word in ("bad", hook, "RuntimeError"))


def test_an_error_of_an_essential_callback_ends_the_run(tmp_path):
    callbacks = started(tmp_path, saves=Essential("saves", ["on_round_end"]))
    with pytest.raises(RuntimeError, match="saves"):
        callbacks.call("on_round_end", {"round": 1})


def test_if_a_callback_cannot_start_the_earlier_ones_are_ended(tmp_path):
    with pytest.raises(RuntimeError):
        started(tmp_path, first=Listener("first"), second=Essential("second", ["on_run_start"]))
    assert HEARD[-2:] == [("first", "on_run_end", None), ("second", "on_run_end", None)]


def test_a_run_that_fails_ends_its_callbacks_without_results(tmp_path, monkeypatch):
    monkeypatch.setattr("fed_a2v.core.server_step.ServerStep.run", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_in_process(compose_settings([*FAST, f"+callbacks.mine._target_={HERE}.Listener"]), tmp_path / "run")
    assert HEARD[-1] == ("a", "on_run_end", None)


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        (f"{HERE}.Stranger", {}, ["callbacks.mine", "Stranger", "Callback"]),
        (f"{HERE}.Nowhere", {}, ["callbacks.mine", "Nowhere"]),
        (f"{HERE}.Listener", {"nmae": "x"}, ["callbacks.mine", "nmae"]),
        (f"{HERE}.Listener", {"name": {"_target_": "os.system"}}, ["callbacks.mine.name", "os.system"]),
    ],
)
def test_what_is_no_callback_is_refused(target, arguments, words):
    with refused(ConfigError, *words):
        make_components("callbacks", {"mine": ComponentSettings(target=target, **arguments)}, Callback)


def test_an_untrusted_run_with_a_custom_callback_is_not_loaded(tmp_path):
    run_in_process(compose_settings([*FAST, f"+callbacks.mine._target_={HERE}.Listener"]), tmp_path / "run")
    with refused(ValueError, f"{HERE}.Listener", "trust_code=True"):
        load_run(tmp_path / "run")
    assert load_run(tmp_path / "run", trust_code=True).round == 2
