"""A step shared by several processes, each with a copy of the encoder on a device of its own: gradients are summed, and
all take the same step of the optimiser. Data parallel, as accelerate and DDP do it, by torch.distributed alone.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from pipeline.passes.transfers import on_device

FOREVER = datetime.timedelta(days=7)
"""Others wait for as long as the first measures. That one is gone they are told otherwise (``peers``)."""

LOOK_SECONDS = 1e-4
ENDING_SECONDS = 1.0
"""From when a process lets go of its connections to when it is seen to be gone, at most."""

HERE = "127.0.0.1"
"""All are on one machine."""

GO_ON = {"cuda"}
"""Devices that go on with what all do together by themselves, while the host does something else."""

KEPT = 2
"""Announcements that some may not have heard yet."""

LAST = -1
"""Announced in the place of a step's number: there are no more."""


class Alone:
    """One process, to which every step belongs."""

    rank, world = 0, 1

    def announce(self, number: int) -> None:
        """There is nobody to hear it."""

    def begin(self, tensors: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Nor to begin with it."""

    def summed(self, weights: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """The loss is all of it, and the gradients are."""
        return loss

    def settle(self) -> None:
        """There is nobody to wait for."""


def meeting(port: int, world: int) -> Any:
    """Where others meet the first one, which is at the ``port``."""
    return dist.TCPStore(HERE, port, world, is_master=False, timeout=FOREVER)  # type: ignore[attr-defined]


class Group(Alone):
    """``rank`` of ``world`` processes that meet at ``store``. ``lost`` raises where another is gone.

    What is announced goes by ``board``, ``store`` or another way to it, since who listens there keeps all others from
    it; and from host to host: by the devices, all that they were given to do would be waited for.
    """

    def __init__(
        self, rank: int, world: int, store: Any, device: torch.device, lost: Callable[[], None] = lambda: None,
        board: Any = None,
    ) -> None:  # fmt: skip
        self.rank, self.world, self._device, self._lost = rank, world, device, lost
        self._board, self._announced = board or store, 0
        self._under_way: Any = None
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=FOREVER)

    def begin(self, tensors: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Give the others the weights and the optimiser's state to begin with."""
        data = torch.frombuffer(bytearray(save(tensors())), dtype=torch.uint8).to(self._device)
        self.announce(len(data))
        self._all(dist.broadcast, data)
        self.settle()

    def begun(self) -> dict[str, torch.Tensor]:
        """What the first one gave."""
        data = torch.empty(self.heard(), dtype=torch.uint8, device=self._device)
        self._all(dist.broadcast, data)
        self.settle()
        return load(data.cpu().numpy().tobytes())

    def announce(self, number: int) -> None:
        """Tell the others which step is next."""
        self._board.set(f"announced-{self._announced}", str(number))
        self._announced += 1
        if self._announced > KEPT:  # all have taken the step before the last, and heard of it
            self._board.delete_key(f"announced-{self._announced - 1 - KEPT}")

    def heard(self) -> int:
        """The number that is announced: of the step that is next, or ``LAST`` where none is."""
        number = int(self._board.get(f"announced-{self._announced}"))
        self._announced += 1
        return number

    def summed(self, weights: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """The loss over all processes, after every gradient has become the sum of theirs. One that none has is none."""
        there = [one.grad is not None for one in weights]
        known = on_device(torch.tensor(there, dtype=torch.float32), self._device)
        grads = [torch.zeros_like(one).flatten() if one.grad is None else one.grad.flatten() for one in weights]
        flat = torch.cat([*grads, known, loss.detach().float()[None]])
        self._all(dist.all_reduce, flat)
        *sums, known, loss = torch.split(flat, [*(one.numel() for one in weights), len(weights), 1])
        if not all(there):  # else no other need be asked, nor waited for
            self.settle()
            there = [of > 0 for of in known.tolist()]
        for one, found, of in zip(weights, sums, there, strict=True):
            one.grad = found.view_as(one).clone() if of else None
        return loss[0]

    def settle(self) -> None:
        """Wait until what all do together is done. Never waits for one that is gone."""
        if (work := self._under_way) is None:
            return
        self._under_way = None
        with self._theirs():
            while not work.is_completed():
                self._lost()
                time.sleep(LOOK_SECONDS)
            work.wait()

    def _all(self, what: Callable[..., Any], tensor: torch.Tensor) -> None:
        """Together with all others, once what was begun before is done."""
        given, goes_on = (tensor, 0) if what is dist.broadcast else (tensor,), self._device.type in GO_ON
        self.settle()
        with self._theirs():
            self._under_way = what(*given, async_op=True)
            if goes_on:
                self._under_way.wait()  # what follows on the device, that is
        if not goes_on:
            self.settle()

    @contextlib.contextmanager
    def _theirs(self) -> Iterator[None]:
        """Whoever is gone is why what all do together fails."""
        try:
            yield
        except RuntimeError:
            time.sleep(ENDING_SECONDS)
            self._lost()
            raise
