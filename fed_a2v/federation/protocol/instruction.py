"""What the server asks of a site, as it travels in a message beside the arrays: written here, and read back strictly.

To a site on a machine of its own the server is a stranger: a message is data, and whatever is wrong with one is an
`InvalidInstructionError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

from flwr.common import Scalar
from pydantic import BaseModel, ConfigDict, Field, Json, ValidationError

from fed_a2v.config.schema import Settings
from fed_a2v.federation.protocol import VALIDATION, show

# Characters: the settings name all classes, and the prompts take 160 for each of them.
LONGEST = 2**24

Text = Annotated[str, Field(max_length=LONGEST)]
Number = Annotated[int, Field(ge=0, lt=2**31)]
Model = Literal["before", "after", "validation"]


class InvalidInstructionError(ValueError):
    """A message of the server is not what it should be; `str(error)` is one short line without the message's text."""


class Instruction(BaseModel):
    """One task for one site.

    Attributes:
        task: register the site, train the adapters that the message carries, or evaluate them.
        round: from 1; 0 for the registration.
        number: of the site in the experiment's partition.
        site: what the server calls it.
        settings_text: the experiment's `Settings` as JSON.
        classes: names of all classes.
        prompts: the server's fingerprint of the class prompts; see `agreement`.
        held: register, train: fingerprint of the prototypes that the server holds of the site.
        models: evaluate: the models to be scored.
        calibration: evaluate: taken off the scores of recorded classes.
        confusion: evaluate: also say which classes are taken for which.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    task: Literal["register", "train", "evaluate"]
    round: Number
    number: Number
    site: Annotated[str, Field(min_length=1, max_length=200)]
    settings_text: Text = Field(alias="settings")
    classes: Json[tuple[str, ...]]
    prompts: Text
    held: Annotated[str, Field(max_length=1000)] = ""
    models: Json[tuple[Model, ...]] = ()
    calibration: float = 0.0
    confusion: bool = False

    @property
    def settings(self) -> Settings:
        """The settings of the experiment.

        Raises:
            InvalidInstructionError: they are not what they should be.
        """
        try:
            return _settings(self.settings_text)
        except ValidationError as error:
            raise _refusal(error, "settings.") from error


def read_instruction(config: Mapping[str, Scalar], *tasks: str) -> Instruction:
    """The order in a message's configuration.

    Raises:
        InvalidInstructionError: it is none, or none for one of these `tasks`.
    """
    try:
        order = Instruction.model_validate(dict(config))
    except ValidationError as error:
        raise _refusal(error, "") from error
    if order.task not in tasks:
        raise InvalidInstructionError(
            f"the server's message: task {order.task} has come as one to {' or '.join(tasks)}"
        )
    if order.task == "evaluate" and not {*order.models} - {VALIDATION}:
        raise InvalidInstructionError(f"the server's message: models {list(order.models)} name none to evaluate")
    return order


@lru_cache(maxsize=4)
def _settings(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _refusal(error: ValidationError, prefix: str) -> InvalidInstructionError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = prefix + ".".join(str(step) for step in first["loc"][:4])
    return InvalidInstructionError(f"the server's message: {show(where)[1:-1]}: {first['type']}")
