"""A fake OpenAI-compatible server that bills exactly, and misbehaves on request. Run by uvicorn, here or as a process.

Every call it charges for is one line of its bill, written before the answer leaves. As a process::

    python tests/fakes/openai_server.py --port 0 --bill bill.jsonl --faults '{"429": 0.1, "drop_after": 0.05}'

prints ``{"port": ...}`` once it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

FAULTS = (
    "429",  # with Retry-After: 0
    "429-date",  # with Retry-After as an HTTP date, now
    "500",
    "502",
    "drop_before",  # the connection breaks before anything is done
    "drop_after",  # ... after the call is done and billed
    "cut",  # ... in the middle of the billed answer
    "html",  # 200, billed, but a proxy's page
    "not_json",
    "no_choices",
    "no_usage",
    "too_long",  # 400, as for a prompt beyond the window
    "bad_request",
    "filtered",  # billed, finish_reason content_filter
    "404",  # as for a model nobody knows
    "quota",  # 429 that no waiting mends
)


@dataclass
class FakeOpenAI:
    """The app, its bill and its faults. ``prices``: micro-dollars per million input, cached and output tokens."""

    api_key: str | None = None
    prices: tuple[int, int, int] = (30_000_000, 30_000_000, 60_000_000)
    script: deque[str] = field(default_factory=deque)  # faults of the next calls, "" for none
    faults: dict[str, float] = field(default_factory=dict)  # else: probabilities
    seconds: float = 0.0  # an answer takes so long
    cached: bool = False  # half of each prompt comes from the cache
    bill_file: Path | None = None
    seed: int = 0
    says: Callable[[str], str] | None = None  # what it answers to a prompt
    bill: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await self._answer(scope["path"], headers, json.loads(body or b"{}"), send)
        finally:
            self._now -= 1

    async def _answer(self, path: str, headers: dict[str, str], request: dict[str, Any], send: Any) -> None:
        self.arrivals.append(time.monotonic())
        self.bodies.append(request)
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            echoed = f"Incorrect API key provided: {headers.get('authorization')}"
            return await reply(send, 401, {"error": {"message": echoed, "code": "invalid_api_key"}})
        if not path.endswith("/completions"):
            return await reply(send, 404, {"error": {"message": f"no {path} here"}})
        fault = self._fault()
        if fault == "drop_before":
            return _drop(send)
        refused = _refusal(fault)
        if refused:
            return await reply(send, *refused)
        answer = self._charge(path, headers, request, fault)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if fault == "drop_after":
            return _drop(send)
        if fault == "cut":
            return await _cut(send, json.dumps(answer).encode())
        if fault in ("html", "not_json"):
            page = "<html>502 from the proxy</html>" if fault == "html" else json.dumps(answer)[:-9]
            return await reply(send, 200, page)
        if fault in ("no_choices", "no_usage"):
            del answer[fault.removeprefix("no_")]
        return await reply(send, 200, answer)

    def _fault(self) -> str:
        if self.script:
            return self.script.popleft()
        drawn = self._random.random()
        for fault, probability in self.faults.items():
            drawn -= probability
            if drawn < 0:
                return fault
        return ""

    def _charge(self, path: str, headers: dict[str, str], request: dict[str, Any], fault: str) -> dict[str, Any]:
        """The answer, after it was put on the bill. A token is a word."""
        chat = path.endswith("/chat/completions")
        prompt = "\n".join(m["content"] for m in request["messages"]) if chat else request["prompt"]
        most = request.get("max_tokens") or request["max_completion_tokens"]
        words = ["the", "answer", "is", hashlib.sha256(prompt.encode()).hexdigest()[:8], "indeed"]
        if self.says is not None:
            words = self.says(prompt).split()
        text, tokens_in = " ".join(words[:most]), len(prompt.split()) + (7 if chat else 0)
        reason = "content_filter" if fault == "filtered" else "stop" if most >= len(words) else "length"
        cached, tokens_out = (tokens_in // 2 if self.cached else 0), min(most, len(words))
        rates, counts = self.prices, (tokens_in - cached, cached, tokens_out)
        line = {
            "call": headers.get("x-client-request-id"),
            "prompt": prompt,
            "tokens_in": tokens_in,
            "tokens_cached": cached,
            "tokens_out": tokens_out,
            "cost_microusd": (sum(a * b for a, b in zip(rates, counts, strict=True)) + 500_000) // 1_000_000,
        }
        self.bill.append(line)
        if self.bill_file:
            with self.bill_file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        choice = {"index": 0, "finish_reason": reason}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage: dict[str, Any] = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
        usage["total_tokens"] = tokens_in + tokens_out
        if self.cached:
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        kind = "chat.completion" if chat else "text_completion"
        return {"id": f"fake-{len(self.bill)}", "object": kind, "created": 0, "model": request["model"],
                "choices": [choice], "usage": usage, "echo": headers.get("authorization")}  # fmt: skip


def _refusal(fault: str) -> tuple[int, Any, dict[str, str]] | None:
    """Status, body and headers of a fault that is answered and not billed."""
    if fault in ("429", "429-date"):
        date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        return 429, {"error": {"message": "slow down"}}, {"retry-after": "0" if fault == "429" else date}
    known: dict[str, tuple[int, Any]] = {
        "500": (500, {"error": {"message": "the model is on fire"}}),
        "502": (502, "<html>bad gateway</html>"),
        "too_long": (400, {"error": {"message": "too much", "code": "context_length_exceeded"}}),
        "bad_request": (400, {"error": {"message": "I do not like this prompt"}}),
        "404": (404, {"error": {"message": "no such model", "code": "model_not_found"}}),
        "quota": (429, {"error": {"message": "you have run out of credit", "code": "insufficient_quota"}}),
    }
    return (*known[fault], {}) if fault in known else None


async def reply(send: Any, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    sent = {"content-type": kind, "content-length": str(len(raw)), **(headers or {})}
    pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": raw})


async def _cut(send: Any, raw: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw[: len(raw) // 2], "more_body": True})
    await asyncio.sleep(0.05)
    _drop(send)


def _drop(send: Any) -> None:
    send.__self__.transport.abort()  # ASGI has no word for it: uvicorn's own connection


def _config(fake: Any) -> uvicorn.Config:
    """Without a ``log_config``, which would close all handlers there are; with absl's, where a test has imported it and
    pytest captures, the file that is captured into."""
    return uvicorn.Config(fake, lifespan="off", ws="none", http="h11", log_level="critical", log_config=None)


class Served:
    """A ``FakeOpenAI`` on a free port of this machine, in a thread. ``with Served(fake) as url``."""

    def __init__(self, fake: Any, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        config = _config(fake)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.port}/v1"

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bill", type=Path)
    parser.add_argument("--faults", type=json.loads, default={})
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api-key")
    asked = parser.parse_args()
    fake = FakeOpenAI(asked.api_key, faults=asked.faults, seconds=asked.seconds, bill_file=asked.bill, seed=asked.seed)
    listening = socket.create_server(("127.0.0.1", asked.port))
    print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
    config = _config(fake)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
