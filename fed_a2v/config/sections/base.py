"""Types that all sections of the settings share: their base class, checked numbers, names and paths."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from fed_a2v.config.tree import options
from fed_a2v.core.names import composed, nearest


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise ValueError("choose cpu, cuda, cuda:NUMBER, mps or xpu")
    return name


def option_of(group: str) -> AfterValidator:
    """A check that a name is an option of a group, i.e. that it has a file in `conf/`."""

    def check(name: str) -> str:
        if name not in (known := options(group)):
            near = nearest(name, known)
            raise ValueError(f"choose {', '.join(known)}" + (f"; did you mean {near}?" if near else ""))
        return name

    return AfterValidator(check)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["float32", "float16", "bfloat16"]
Device = Annotated[str, AfterValidator(_device)]


def _name(value: object) -> object:
    """A class name as text; YAML and the command line parse some names as other values."""
    if isinstance(value, bool | float) or value is None:
        typed = "null" if value is None else str(value).lower()
        raise ValueError(f"{typed} is parsed as a value, not as a name; quote it: 'dataset.classes=[\"{typed}\"]'")
    return composed(str(value)) if isinstance(value, int | str) else value


def _place(value: str) -> str:
    if not value.strip():  # an empty path would mean the working directory
        raise ValueError("empty; name a folder or file, or set it to null")
    return value


# Marks a setting that affects where, how fast or how visibly a run works, but not what it computes. A resumed run may
# change it. The files at the paths of data and prompts are compared separately.
NO_RESULT: dict[str, JsonValue] = {"affects_result": False}


ClassName = Annotated[str, BeforeValidator(_name)]
Place = Annotated[str, AfterValidator(_place)]


class Section(BaseModel):
    """A part of the settings: no unknown keys, no changes after loading."""

    # No infinity: settings are sent as JSON, which has none.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ComponentSettings(BaseModel):
    """A callback or a metric; further keys are arguments of its class."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True)

    target: str = Field(alias="_target_", description="import path of the class")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the class, as the configuration gives them."""
        return dict(self.model_extra or {})
