"""Where one shard ends and the next begins: by estimated work, never more than 4,096 documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_DOCUMENTS = 4_096
MAX_CHARACTERS = 32 * 2**20  # keeps a shard of long documents in memory on producer and worker
SHARDS_PER_WORKER = 4  # so that no worker idles while another ends its last shard


def cut(work: Iterable[tuple[int, int, float]], seconds: float, most: int = MAX_DOCUMENTS) -> Iterator[tuple[int, int]]:
    """Half-open ranges of ``seq`` over documents given as (seq, characters, estimated seconds), in order of seq.

    A range holds at least one document, at most ``most`` and ``MAX_CHARACTERS``, and stops growing at ``seconds``.
    """
    start = stop = None
    count, size, total = 0, 0, 0.0
    for seq, characters, estimate in work:
        full = count >= most or size + characters > MAX_CHARACTERS or total + estimate > seconds
        if start is not None and stop is not None and full:
            yield start, stop
            start, count, size, total = None, 0, 0, 0.0
        start = seq if start is None else start
        stop = seq + 1
        count, size, total = count + 1, size + characters, total + estimate
    if start is not None and stop is not None:
        yield start, stop


def most_documents(known: int, workers: int) -> int:
    """The largest shard that still leaves every worker four of them, given ``known`` documents so far."""
    return max(1, min(MAX_DOCUMENTS, -(-known // (SHARDS_PER_WORKER * workers))))
