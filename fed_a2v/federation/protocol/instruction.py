"""The task that the server sends to a site, in the configuration of a Flower message.

The strategy writes it as a flat dict, the message handler of the client reads it with `read_instruction`. A deployed
site does not trust the server: a message is data only, and any error in it raises `InvalidInstructionError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

from flwr.common import Scalar
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from fed_a2v.config.schema import Settings
from fed_a2v.federation.protocol import VALIDATION, Task, show

# Characters. The settings contain the names of all classes, the fingerprint of the prompts takes 160 for each class.
MAX_TEXT = 2**24

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Model = Literal["before", "after", "validation"]


class InvalidInstructionError(ValueError):
    """A message of the server is invalid; `str(error)` is one short line without text of the message."""


class Instruction(BaseModel):
    """One task for one site.

    Attributes:
        task: register the site (see `REGISTRATION`), train the adapters that the message carries, or evaluate them.
        round: from 1; 0 for the registration.
        number: number of the site in the experiment's partition.
        site: the server's name for the site.
        settings_text: the experiment's `Settings` as JSON.
        classes: names of all classes.
        prompts: the server's fingerprint of the class prompts; see `prompt_check`.
        sites: masked tasks: smallest number of sites in the total, which share the privacy noise.
        held: register, train: fingerprint of the site's prototypes in the server's bank.
        models: evaluate: the models to score.
        calibration: evaluate: value subtracted from the scores of recorded classes.
        confusion: evaluate: also report the predicted classes.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    task: Task | Literal["evaluate"]
    round: Number
    number: Number
    site: Annotated[str, Field(min_length=1, max_length=200)]
    settings_text: Text = Field(alias="settings")
    classes: Json[tuple[str, ...]]
    prompts: Text
    sites: Number = 0
    held: Annotated[str, Field(max_length=1000)] = ""
    models: Json[tuple[Model, ...]] = ()
    calibration: float = 0.0
    confusion: bool = False

    @property
    def settings(self) -> Settings:
        """The settings of the experiment.

        Raises:
            InvalidInstructionError: the settings are invalid.
        """
        try:
            return _parse_settings(self.settings_text)
        except ValidationError as error:
            raise _invalid_instruction(error, "settings.") from error


def read_instruction(config: Mapping[str, Scalar], *tasks: str) -> Instruction:
    """The instruction in a message's configuration.

    Raises:
        InvalidInstructionError: the configuration is invalid or its task is none of `tasks`.
    """
    try:
        instruction = Instruction.model_validate(dict(config))
    except ValidationError as error:
        raise _invalid_instruction(error, "") from error
    if instruction.task not in tasks:
        raise InvalidInstructionError(
            f"the server's message: the task is {instruction.task}, expected {' or '.join(tasks)}"
        )
    if (instruction.task == "evaluate" or instruction.models) and not {*instruction.models} - {VALIDATION}:
        raise InvalidInstructionError(
            f"the server's message: models {list(instruction.models)} contain none to evaluate"
        )
    return instruction


@lru_cache(maxsize=4)
def _parse_settings(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _invalid_instruction(error: ValidationError, prefix: str) -> InvalidInstructionError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = prefix + ".".join(str(step) for step in first["loc"][:4])
    return InvalidInstructionError(f"the server's message: {show(where)[1:-1]}: {first['type']}")
