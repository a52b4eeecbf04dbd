"""What a step minimises, over answer tokens alone and a few rows of logits at a time: never a B x T x V tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from pipeline.alignment.pairs import Pair
from pipeline.models import LoadedModel
from pipeline.passes.ragged import padded
from pipeline.stages import Halt

_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Most logits held at once, by kind of device (float32: 32 MiB and 512 MiB)."""


class Reader:
    """A causal LM in two halves: ``states`` at the places before answer tokens, ``logits`` from some of them."""

    def __init__(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        self.device = loaded.device
        self.trunk: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.tokenizer = loaded.tokenizer
        self.name = loaded.ref.name

    def states(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """(n, d) for the n answer tokens of all pairs, in order. Padding stands on the right, where nobody looks."""
        lengths = np.array([len(pair.ids) for pair in pairs])
        ids = padded(np.concatenate([pair.ids for pair in pairs]), lengths)
        hidden = self.trunk(input_ids=torch.from_numpy(ids).to(self.device), use_cache=False).last_hidden_state
        place, answers = np.arange(ids.shape[1]), np.array([[pair.answer] for pair in pairs])
        wanted = np.flatnonzero((place >= answers) & (place < lengths[:, None])) - 1
        states: torch.Tensor = hidden.flatten(0, 1)[torch.from_numpy(wanted).to(self.device)]
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(n, V) in float32, whatever the dtype of the passes."""
        logits: torch.Tensor = self.head(states).float()
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def rows(self) -> int:
        """Rows of logits that may be held at once."""
        return max(1, _LOGITS[self.device.type] // int(self.head.weight.shape[0]))


class Loss:
    """(1 - w) NLL(answer) + w KL(teacher, scorer), in nats, summed over answer tokens; w is 0 without a teacher."""

    def __init__(self, scorer: Reader, teacher: Reader | None = None, kl_weight: float = 0.0) -> None:
        self.scorer, self.teacher, self.kl_weight = scorer, teacher, kl_weight
        if teacher is not None:
            check_vocabularies(scorer.name, scorer.tokenizer, teacher.name, teacher.tokenizer)

    def measured(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """-log p of each answer token under the scorer, and 1 where it is the most likely one: (n, 2) float32."""
        states, targets = self.scorer.states(pairs), self._targets(pairs)
        rows = self.scorer.rows
        pieces = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
        return torch.cat([_measured(self.scorer.logits(some), wanted) for some, wanted in pieces])

    def total(self, pairs: Sequence[Pair]) -> torch.Tensor:
        """The sum to be minimised. Logits are computed again for the gradient, rather than kept."""
        states, targets = self.scorer.states(pairs), self._targets(pairs)
        taught = self._taught(pairs)
        sums = []
        for at in range(0, len(states), self.scorer.rows):
            here = slice(at, at + self.scorer.rows)
            arguments = states[here], targets[here], None if taught is None else taught[here]
            sums.append(checkpoint(self._chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.stack(sums).sum()

    def _taught(self, pairs: Sequence[Pair]) -> torch.Tensor | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher.states(pairs)

    def _chunk(self, states: torch.Tensor, targets: torch.Tensor, taught: torch.Tensor | None) -> torch.Tensor:
        logits = self.scorer.logits(states)
        answers = _nll(logits, targets).sum()
        if taught is None or self.teacher is None:
            return answers
        with torch.no_grad():
            theirs = self.teacher.logits(taught)
        common = min(logits.shape[1], theirs.shape[1])  # beyond it stand rows that some models pad their heads with
        ours, theirs = logits[:, :common].log_softmax(-1), theirs[:, :common].log_softmax(-1)
        apart = (theirs.exp() * (theirs - ours)).sum()
        return (1 - self.kl_weight) * answers + self.kl_weight * apart

    def _targets(self, pairs: Sequence[Pair]) -> torch.Tensor:
        ids = np.concatenate([pair.ids[pair.answer :] for pair in pairs])
        return torch.from_numpy(ids).to(self.scorer.device)


def _measured(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.stack([_nll(logits, targets), (logits.argmax(-1) == targets).float()], 1)


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]


def check_vocabularies(scorer: str, its: Any, teacher: str, theirs: Any) -> None:
    """Raise ``Halt`` unless both tokenizers mean the same by every token: else their KL would teach nonsense."""
    if its.get_vocab() != theirs.get_vocab():
        raise Halt(
            f"teacher {teacher} has another vocabulary than {scorer}: leave teacher and kl_weight out, so that answers "
            "alone are learned from, or name a teacher of the same family"
        )
