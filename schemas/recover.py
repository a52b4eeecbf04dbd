"""The spec of the stage that puts answers back into the original's words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import StageBase, Whole


class RecoverSpec(StageBase):
    """Give what an answer quotes from the compressed prompt back what was cut from it (LongLLMLingua, section 4.4)."""

    kind: Literal["recover"]
    reach: Whole = Field(200, ge=0, description="most characters cut between two words that still count as one quote")
