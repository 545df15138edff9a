"""Makes a run's callbacks from the section `callbacks` of its settings."""

from __future__ import annotations

from collections.abc import Mapping

from fed_a2v.callbacks.base import Callback, CallbackList
from fed_a2v.config.plugins import load_class, make_object
from fed_a2v.config.sections.base import ComponentSettings
from fed_a2v.errors import ConfigError


def build_callbacks(settings: Mapping[str, ComponentSettings | None]) -> CallbackList:
    """The callbacks in the order of the settings; those set to null are left out.

    Raises:
        ConfigError: an import path is wrong, its class is no `Callback`, or the class refuses its arguments.
    """
    return CallbackList({name: _make(name, chosen) for name, chosen in settings.items() if chosen is not None})


def _make(name: str, chosen: ComponentSettings) -> Callback:
    section = f"callbacks.{name}"
    if not issubclass(load_class(section, chosen.target), Callback):
        raise ConfigError(
            f"{section}._target_={chosen.target} is not a callback; derive it from fed_a2v.callbacks.base.Callback"
        )
    made: Callback = make_object(section, chosen.target, chosen.arguments, ())
    return made
