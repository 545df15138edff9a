"""Code that settings name is found at any depth, and only this program's own is run without consent."""

import pytest

from fed_a2v.config.compose import ConfigError, compose_settings
from fed_a2v.config.plugins import UntrustedCodeError, make_object, named_code, own_code, refuse_code
from fed_a2v.config.tree import conf_dir, options
from tests.refusals import refused

CALLED = []


class Records:
    """Counts its instances."""

    def __init__(self, **arguments):
        CALLED.append(arguments)

    def encode(self):
        """Nothing."""


def test_import_paths_are_found_at_any_depth():
    settings = {
        "encoder": {"_target_": None, "arguments": {"list": [{"x": 1}, [{"_target_": "a.B"}]]}},
        "generator": {"_target_": "c.D", "loss": {"_target_": "e.F"}},
    }
    assert dict(named_code(settings)) == {
        "encoder.arguments.list[1][0]._target_": "a.B",
        "generator._target_": "c.D",
        "generator.loss._target_": "e.F",
    }


@pytest.mark.parametrize("option", [name for name in options("generator") if name != "custom"])
def test_classes_named_in_conf_count_as_own_code(option):
    settings = compose_settings([f"generator={option}", *(["adapters=flux"] if option == "vae_t5" else [])])
    refuse_code(settings.model_dump(by_alias=True), "the run", "trust it")
    assert all(
        target.startswith(
            (
                "fed_a2v.core.generators.",
                "fed_a2v.core.losses.",
                "fed_a2v.federation.server.metrics.",
                "fed_a2v.callbacks.",
            )
        )
        for target in own_code()
    )
    assert conf_dir().is_dir()


@pytest.mark.parametrize("target", ["os.system", "fed_a2v.storage.files.write_text", "fed_a2v.__main__.main", ""])
def test_other_code_is_refused_by_key_and_path(target):
    with refused(UntrustedCodeError, "the run", f"loss.parts[0]._target_={target}", "trust it"):
        refuse_code({"loss": {"parts": [{"_target_": target}]}}, "the run", "trust it")


def test_a_class_is_checked_before_it_is_called():
    CALLED.clear()
    target = "tests.config.test_plugins.Records"
    with refused(ConfigError, "encoder._target_", target, "waveform"):
        make_object("encoder", target, {}, ["encode", "waveform"])
    with refused(ConfigError, "encoder.inner._target_=os.system"):
        make_object("encoder", target, {"inner": {"_target_": "os.system"}}, ["encode"])
    assert CALLED == []
    with refused(ConfigError, "encoder._target_", target, "width"):
        make_object("encoder", target, {"a": 1}, ["encode"], ["width"])
    assert CALLED == [{"a": 1}]
