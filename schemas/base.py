"""What all specs share."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictFloat, StrictInt

DEFAULT_MODEL = "smollm2-135m-instruct"

Whole = Annotated[StrictInt, Field(lt=2**31)]
"""A whole number that every database and library takes. ``true``, ``3.0`` and ``"3"`` are none: nobody means them."""

USD = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"
"""Money as text: exact, to the millionth of a dollar in which it is counted."""

ModelName = Annotated[str, Field(min_length=1)]
"""What ``pipeline.models`` resolves. An empty one would be the working folder."""


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", value, re.ASCII):
        raise ValueError("must be auto, cpu, cuda or cuda:N")
    return value


class Strict(BaseModel):
    """Frozen, and a key nobody knows is an error: a typing slip must not silently run another experiment.

    Errors do not repeat the value: someone may have put a password there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class StageBase(Strict):
    """What every stage spec shares."""

    SPEED_ONLY: ClassVar[frozenset[str]] = frozenset({"device", "batch_tokens", "seconds_per_shard"})
    """Settings that change how fast a stage runs, never what it writes: they stay out of the config hash."""

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Settings that came later: at their defaults they stay out of it, too, so that earlier results stay valid."""

    device: Annotated[str, AfterValidator(_device)] = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch_tokens: Whole = Field(16_384, ge=1, description="most padded tokens in one forward pass")
    seconds_per_shard: StrictFloat = Field(60.0, gt=0, description="estimated work in one shard")

    def output_settings(self) -> dict[str, Any]:
        """The settings that decide what the stage writes, as plain JSON values."""
        fields = type(self).model_fields
        as_before = {name for name in self.ADDED if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude={*self.SPEED_ONLY, *as_before})
