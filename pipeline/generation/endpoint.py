"""One HTTP call to an OpenAI-compatible endpoint through the official SDK: an answer, or an exact reason why not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import openai
from pydantic import SecretStr

from pipeline.generation.retries import Code, Failure, retry_after
from schemas.document import Document
from schemas.job import TargetSpec
from schemas.stage import GenerateSpec

DEFAULT_URL = "https://api.openai.com/v1"  # said here, so that OPENAI_BASE_URL cannot send prompts elsewhere
CONNECT_SECONDS = 10.0
SHORTEST_SECRET = 8  # shorter "keys" are placeholders ("none", "EMPTY"): blotting them out would eat words
SHOWN = 200

NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"})
"""Transport errors of a call that never reached the endpoint, by name: the SDK has moved from httpx to httpx2."""

OUR_SETTINGS = frozenset(
    {"model", "temperature", "top_p", "top_k", "seed", "stop", "max_tokens", "max_completion_tokens"}
)
TOO_LONG = re.compile(r"context[ _](length|size|window)|too (long|many tokens)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A well-formed answer: the endpoint's JSON, its text, why it ended, and the tokens it says it used."""

    response: dict[str, Any]
    text: str
    finish_reason: str
    refusal: str | None
    tokens_in: int
    tokens_cached: int | None
    tokens_written: int
    tokens_out: int


class Malformed(ValueError):  # noqa: N818
    """An answer that lacks what every answer has."""


def read_answer(response: Any) -> Answer:
    """The answer in a chat completion or completion. Raises ``Malformed``.

    ``tokens_in`` includes ``tokens_cached`` (read from the endpoint's cache) and ``tokens_written`` (to it), as OpenAI
    counts them; a cache nobody mentions is ``None``.
    """
    try:
        choice, usage = response["choices"][0], response["usage"]
        message = choice.get("message")
        text = message["content"] if message is not None else choice["text"]
        details = usage.get("prompt_tokens_details") or {}
        counts = (usage["prompt_tokens"], usage["completion_tokens"])
        cached, written = details.get("cached_tokens"), details.get("cache_write_tokens") or 0
        refusal, reason = (message or {}).get("refusal"), choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Malformed(f"{type(error).__name__} {error}") from None
    numbers = (*counts, cached or 0, written)
    if any(type(number) is not int or number < 0 for number in numbers) or (cached or 0) + written > counts[0]:
        raise Malformed(f"usage {numbers}")
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise Malformed("the text is no string")
    whole = (text or "").encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored as UTF-8
    return Answer(response, whole, str(reason), refusal, counts[0], cached, written, counts[1])


def document_seed(seed: int, content_hash: str) -> int:
    """The seed sent with one document: 31 bits, as some servers keep no more."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()[:4], "big") >> 1


class Endpoint:
    """A client for one model at one address. Retries nothing, follows no redirect, and never says the key."""

    def __init__(self, spec: GenerateSpec, target: TargetSpec, api_key: SecretStr | None) -> None:
        self.url = spec.base_url or DEFAULT_URL
        self._spec, self._model = spec, target.model
        self._secret = api_key.get_secret_value() if api_key else ""
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # the SDK insists on one; local servers ignore it
            base_url=self.url,
            max_retries=0,  # retries are counted and priced by us
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def call(self, document: Document, call_id: str, seconds: float) -> Answer | Failure:
        """Send one document once, for at most ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                body = await self._send(document, call_id, seconds)
        except TimeoutError:
            return self._failure("no_answer", f"no answer within {seconds:.0f} s", billed=True)
        except openai.APIStatusError as error:
            return self._status(error)
        except openai.APIConnectionError as error:
            return self._disconnected(error)
        return self._read(body)

    async def _send(self, document: Document, call_id: str, seconds: float) -> str:
        create: Any = self._client.chat.completions if self._spec.chat else self._client.completions
        # Less than the call's own time: what ends while connecting was never sent, and must not pass for billed.
        connect = min(CONNECT_SECONDS, 0.8 * seconds)
        raw = await create.with_raw_response.create(
            **self._request(document),
            extra_headers={"X-Client-Request-Id": call_id},  # finds the call in the endpoint's own records
            timeout=openai.Timeout(seconds, connect=connect),
        )
        text: str = raw.text
        return text

    def _request(self, document: Document) -> dict[str, Any]:
        spec = self._spec
        request: dict[str, Any] = {"model": self._model, "temperature": spec.temperature}
        # OpenAI's own newer models know only the new name, many servers only the old one.
        new_name = spec.chat and (urlsplit(self.url).hostname or "").endswith((".openai.com", ".openai.azure.com"))
        request["max_completion_tokens" if new_name else "max_tokens"] = spec.max_new_tokens
        if spec.temperature > 0:
            request["seed"] = document_seed(spec.seed, document.content_hash)
        if spec.top_p < 1:
            request["top_p"] = spec.top_p
        if spec.top_k:
            request["extra_body"] = {"top_k": spec.top_k}
        if spec.stop:
            request["stop"] = list(spec.stop)
        if not spec.chat:
            return request | {"prompt": document.prompt}
        system = [{"role": "system", "content": spec.system}] if spec.system else []
        return request | {"messages": [*system, {"role": "user", "content": document.prompt}]}

    def _read(self, body: str) -> Answer | Failure:
        body = self._redact(body)  # before anything is kept of it: some servers echo the request
        try:
            return read_answer(json.loads(body))
        except (Malformed, ValueError, RecursionError) as error:
            what = f" ({error})" if isinstance(error, Malformed) else ""
            return self._failure("bad_response", f"an answer that is none{what}: {_line(body, 80)!r}", billed=True)

    def _status(self, error: openai.APIStatusError) -> Failure:
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        message = body.get("message") or body.get("detail") or error.response.text or "no message"
        detail = f"HTTP {status}: {message if isinstance(message, str) else json.dumps(message)}"
        # A gateway's error says nothing of the model behind it, which may have answered and been paid for.
        billed = status in (502, 504) or status >= 520
        wait = retry_after(error.response.headers.get("retry-after"))
        return self._failure(code_of(status, body, detail), detail, billed=billed, wait=wait)

    def _disconnected(self, error: openai.APIConnectionError) -> Failure:
        cause = type(error.__cause__).__name__
        if cause in NEVER_SENT:
            return self._failure("unreachable", _no_connection(error))
        return self._failure("no_answer", f"the connection broke ({cause}: {error.__cause__})", billed=True)

    def _failure(self, code: Code, detail: str, *, billed: bool = False, wait: float | None = None) -> Failure:
        return Failure(code, _line(self._redact(detail), SHOWN), billed, wait)

    def _redact(self, text: str) -> str:
        if len(self._secret) < SHORTEST_SECRET:
            return text
        for form in {self._secret, json.dumps(self._secret)[1:-1], quote(self._secret, safe="")}:
            text = text.replace(form, "[key]")
        return text


def code_of(status: int, body: dict[str, Any], detail: str) -> Code:
    """What an error status means; ``body`` is the error object as OpenAI words it, ``detail`` its text."""
    if status == 429:
        # "insufficient_quota" is an unpaid bill: no waiting mends it.
        return "refused" if body.get("code") == "insufficient_quota" else "rate_limited"
    if status in (408, 409) or status >= 500:
        return "server_error"
    if status == 413 or (status == 400 and (body.get("code") == "context_length_exceeded" or TOO_LONG.search(detail))):
        return "prompt_too_long"
    if status < 400 or status in (401, 402, 403, 404, 405) or str(body.get("param")) in OUR_SETTINGS:
        return "refused"
    return "endpoint_error"


def _no_connection(error: BaseException) -> str:
    """What the operating system said, which lies at the bottom of several wrappings, in words people know."""
    while True:
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return f"unknown host: {error.strerror}"
    if isinstance(error, TimeoutError | asyncio.CancelledError):
        return f"no connection within {CONNECT_SECONDS:.0f} s"
    return f"no connection: {error}"


def _line(text: str, most: int) -> str:
    """``text`` as one printable line of at most ``most`` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 3] + "..."
