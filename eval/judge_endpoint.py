"""A judge behind any OpenAI-compatible endpoint: a provider's, or a server of your own.

    judge = EndpointJudge(Endpoint(base_url="http://localhost:8000/v1", model="my-judge"), cache=Path("runs/judge"))
    print(judge.estimate(requests))
    replies = judge.reply(requests)

The key comes from an environment variable and goes into one header; it is in no message, log or file. It is sent over
https, or to this machine, and never to where a redirect points.
"""

import email.utils
import http.client
import ipaddress
import json
import logging
import os
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from modeling_video_ma2mba.eval.judge import JudgeError, JudgeReply, JudgeRequest
from modeling_video_ma2mba.eval.judge_cache import JudgeCache
from modeling_video_ma2mba.eval.judge_prompts import default_model, prices

logger = logging.getLogger(__name__)

DEFAULT_URL = "https://api.openai.com/v1"
MAX_BODY = 2**20  # bytes of a reply
MAX_WAIT = 120.0  # seconds between two tries, whatever the server asks for
FAILURES_IN_A_ROW = 10  # requests, each tried to the end: then nobody is there
CHARACTERS_PER_TOKEN = 4  # of English, roughly; for the estimate
# Of this request alone: too long, refused by the provider's filter. Other 4xx would come back for every request.
OWN_FAULT = (400, 413, 422)
TRY_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a judge is and how fast it may be asked.

    Attributes:
        base_url: up to and without `/chat/completions`.
        model: as the server names it; default: the paper's judge.
        key_variable: environment variable that holds the key; not set: none is sent.
        concurrency: requests on the way at once.
        requests_per_minute: most of them; None: no limit of our own.
        timeout: seconds for one try, from its start to the end of the reply.
        attempts: tries of a request that meets a limit, a fault of the server or of the way there.
        first_wait: seconds before the second try; twice that before every further one, or what the server asks for.
        max_dollars: refuse to begin where the estimate is higher; None: begin.
    """

    base_url: str = DEFAULT_URL
    model: str = field(default_factory=default_model)
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    timeout: float = 60.0
    attempts: int = 6
    first_wait: float = 1.0
    max_dollars: float | None = None

    def __post_init__(self) -> None:
        # The address is not shown: a key may stand in it.
        try:
            parts = urlsplit(self.base_url)
            wrong = {
                "it begins neither with http:// nor with https://": parts.scheme not in ("http", "https"),
                "it names no host": not parts.hostname,
                "it has a question mark": bool(parts.query),
                "it holds a user name or password": parts.username is not None,
                "its port is 0": parts.port == 0,
            }
        except ValueError as error:  # of a port or an address in brackets
            wrong = {f"it cannot be read ({error})".split(" as integer")[0]: True}
        if faults := [why for why, is_so in wrong.items() if is_so]:
            raise ValueError(
                f"the judge's address (base_url, --judge-url) will not do: {faults[0]}; "
                "it must be http(s)://host[:port]/path, such as http://localhost:8000/v1"
            )
        if parts.path.rstrip("/").endswith("/chat/completions"):
            raise ValueError(f"base_url={self.base_url!r}: leave /chat/completions out, it is added")
        if self.concurrency < 1 or self.attempts < 1 or not self.timeout > 0 or self.first_wait < 0:
            raise ValueError(
                f"concurrency={self.concurrency}, attempts={self.attempts}, timeout={self.timeout} must be above 0 "
                f"and first_wait={self.first_wait} not below"
            )
        if self.max_dollars is not None and not self.max_dollars >= 0:
            raise ValueError(f"max_dollars={self.max_dollars} (--judge-max-dollars) must be 0 or more, or None")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ValueError(f"requests_per_minute={self.requests_per_minute} must be above 0, or None")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a number of requests will take, at most: every reply as long as it may be. `dollars` None: not known."""

    requests: int
    kept: int
    tokens_read: int
    tokens_written: int
    dollars: float | None

    def __str__(self) -> str:
        cost = "cost not known" if self.dollars is None else f"at most about ${self.dollars:.2f}"
        return (
            f"{self.requests - self.kept:,} requests ({self.kept:,} more are on disk), about {self.tokens_read:,} "
            f"tokens to read and at most {self.tokens_written:,} to write: {cost}"
        )


class EndpointJudge:
    """Asks an endpoint, several requests at a time; see `Judge`.

    Args:
        cache: folder of replies; None: none are kept, and an interrupted run begins anew.

    Raises:
        ValueError: the key cannot be sent: it has signs that no header takes, or would go out unencrypted.
    """

    def __init__(self, endpoint: Endpoint, cache: str | os.PathLike | None = None) -> None:
        self.endpoint = endpoint
        self.label = f"endpoint {endpoint.model}"
        self.cache = None if cache is None else JudgeCache(cache)
        host = urlsplit(endpoint.base_url).hostname
        self._key = os.environ.get(endpoint.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise ValueError(f"the key in {endpoint.key_variable} has signs that no header takes: set it again")
        is_here = _is_loopback(host)
        if self._key and endpoint.base_url.startswith("http:") and not is_here:
            raise ValueError(
                f"the key in {endpoint.key_variable} would go to {host} unencrypted: use https, or unset it"
            )
        # A proxy knows nothing of this machine's own ports.
        proxies = [urllib.request.ProxyHandler({})] if is_here else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *proxies)
        self._pace = _Pace(endpoint.requests_per_minute)
        self._fatal: JudgeError | None = None
        self._served: set[str] = set()
        self._tokens = {"read": 0, "written": 0}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EndpointJudge({self.endpoint!r})"

    def estimate(self, requests: Sequence[JudgeRequest]) -> Estimate:
        """Return what asking these would take; asks nobody."""
        new = [one for one in requests if self._kept(one) is None]
        read = sum(len(one.system) + len(one.user) for one in new) // CHARACTERS_PER_TOKEN
        written = sum(one.max_new_tokens for one in new)
        price = prices(self.endpoint.model)
        dollars = None if price is None else (read * price[0] + written * price[1]) / 1e6
        return Estimate(
            requests=len(requests),
            kept=len(requests) - len(new),
            tokens_read=read,
            tokens_written=written,
            dollars=dollars,
        )

    def check(self, requests: Sequence[JudgeRequest], runs: int = 1) -> None:
        """Raise JudgeError where these could not be judged: no key for the default provider, nobody at the address, or
        a cost above `max_dollars` for so many runs. What is on disk needs none of it.
        """
        estimate, limit = self.estimate(requests), self.endpoint.max_dollars
        if estimate.requests == estimate.kept:
            return
        if self.endpoint.base_url == DEFAULT_URL and not self._key:
            raise JudgeError(
                f"{self.label}: {self.endpoint.key_variable} is not set, and {DEFAULT_URL} needs a key: set it, or "
                "name another server with --judge-url, or a model here with --judge local:FOLDER"
            )
        if limit is not None and (estimate.dollars is None or estimate.dollars * runs > limit):
            raise JudgeError(
                f"{self.label}, for each of {runs} runs: {estimate}; allowed are ${limit:g} for all: raise "
                "--judge-max-dollars, or judge fewer answers"
            )
        request = urllib.request.Request(f"{self.endpoint.base_url.rstrip('/')}/models")
        try:
            self._opener.open(request, timeout=self.endpoint.timeout).close()
        except urllib.error.HTTPError as error:
            error.close()  # somebody is there, whatever they say to this question
        except (OSError, http.client.HTTPException) as error:
            raise JudgeError(self._nobody(self._clean(str(getattr(error, "reason", error))))) from None

    def _nobody(self, said: str) -> str:
        return (
            f"{self.label}: nobody replies at {self.endpoint.base_url} ({said}): start the server there, or correct "
            "--judge-url; answers and replies so far are kept, and the same command goes on"
        )

    def reply(self, requests: Sequence[JudgeRequest]) -> list[JudgeReply]:
        """Return the replies; each is on disk as soon as it is there.

        Raises:
            JudgeError: a wrong key, an unknown model, no credit, nobody there, or a cost above `max_dollars`. The same
                call later goes on where it stopped.
        """
        estimate = self.estimate(requests)
        tqdm.write(f"{self.label}: {estimate}", file=sys.stderr)
        limit = self.endpoint.max_dollars
        if limit is not None and (estimate.dollars is None or estimate.dollars > limit):
            raise JudgeError(f"{estimate}; max_dollars={limit}: raise it, or judge fewer answers")
        replies: list[JudgeReply | None] = [None] * len(requests)
        failures = 0
        pool = ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="judge")
        self._pace.stopped.clear()
        self._fatal = None
        try:
            tasks = {pool.submit(self._reply, one): index for index, one in enumerate(requests)}
            for task in tqdm(as_completed(tasks), total=len(tasks), desc=self.label, unit=" replies"):
                reply = replies[tasks[task]] = task.result()
                failures = failures + 1 if reply.error else 0
                if failures == FAILURES_IN_A_ROW:
                    said = f"{failures} requests in a row failed, the last one: {reply.error}"
                    raise JudgeError(self._nobody(said) if "no reply" in reply.error else said)
        finally:
            self._pace.stopped.set()  # nobody waits any longer
            pool.shutdown(cancel_futures=True)
        return replies

    def describe(self) -> dict[str, Any]:
        """Return endpoint and settings, the models that the server said it is, and the tokens it counted."""
        return {
            "kind": "endpoint",
            **asdict(self.endpoint),
            "has_key": bool(self._key),
            "served_models": sorted(self._served),
            "tokens": dict(self._tokens),
        }

    def _payload(self, request: JudgeRequest) -> dict[str, Any]:
        roles = (("system", request.system), ("user", request.user))
        return {
            "model": self.endpoint.model,
            "messages": [{"role": role, "content": content} for role, content in roles],
            "temperature": 0,
            "max_tokens": request.max_new_tokens,
        }

    def _kept(self, request: JudgeRequest) -> dict[str, Any] | None:
        if self.cache is None:
            return None
        return self.cache.get({"base_url": self.endpoint.base_url, **self._payload(request)})

    def _reply(self, request: JudgeRequest) -> JudgeReply:
        if self._fatal is not None:  # `reply` has not heard of it yet
            raise self._fatal
        kept = self._kept(request)
        if kept is None:
            try:
                kept = self._ask(request)
            except _OwnFault as error:
                return JudgeReply(error=str(error))
            except JudgeError as error:
                self._fatal = error
                raise
            if self.cache is not None:
                self.cache.put({"base_url": self.endpoint.base_url, **self._payload(request)}, kept)
            with self._lock:
                for name in self._tokens:
                    self._tokens[name] += kept["tokens"][name]
        with self._lock:
            self._served.add(str(kept.get("served", "")))
        return JudgeReply(text=kept["text"])

    def _ask(self, request: JudgeRequest) -> dict[str, Any]:
        """Return `{"text", "served", "tokens"}`, after as many tries as it takes."""
        body = json.dumps(self._payload(request)).encode()
        for attempt in range(1, self.endpoint.attempts + 1):
            self._pace.wait()
            try:
                return self._read_reply(self._post(body))
            except _TryAgain as error:
                if attempt == self.endpoint.attempts:
                    raise _OwnFault(f"{error} ({attempt} tries)") from None
                # Not all at once again.
                wait = self.endpoint.first_wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                wait = min(MAX_WAIT, wait if error.wait is None else max(error.wait, 0.0))
                logger.info("%s: %s; again in %.1f s", self.label, error, wait)
                if error.is_limit:
                    self._pace.pause(wait)
                self._pace.sleep(wait)
        raise AssertionError("the last attempt raises")

    def _post(self, body: bytes) -> bytes:
        """Return the body of a 200; raises _TryAgain, _OwnFault or JudgeError otherwise."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        deadline = time.monotonic() + self.endpoint.timeout
        try:
            with self._opener.open(request, timeout=self.endpoint.timeout) as response:
                return _read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._raise_for(error, deadline)
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            reason = getattr(error, "reason", error)
            raise _TryAgain(self._clean(f"no reply: {type(reason).__name__}: {reason}")) from None

    def _raise_for(self, error: urllib.error.HTTPError, deadline: float) -> None:
        try:
            text = _read(error, deadline).decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
        said = self._clean(f"HTTP {error.code}: {text[:300]}".rstrip(": "))
        if error.code >= 500 or error.code in TRY_AGAIN:
            if "insufficient_quota" not in text:
                raise _TryAgain(said, _seconds(error.headers.get("Retry-After")), error.code == 429)
        elif error.code in OWN_FAULT:
            raise _OwnFault(said)
        advice = {401: f"set {self.endpoint.key_variable} to a valid key", 404: "look at base_url and model"}
        raise JudgeError(f"{self.label}: {said}; {advice.get(error.code, 'ask the one who runs the endpoint')}")

    def _read_reply(self, body: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(body)
            text = reply["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
            raise _TryAgain(f"a reply that is no chat completion ({type(error).__name__})") from None
        if not isinstance(text, str):
            raise _TryAgain("a reply without text")
        usage = reply["usage"] if isinstance(reply.get("usage"), dict) else {}
        tokens = {"read": usage.get("prompt_tokens"), "written": usage.get("completion_tokens")}
        return {
            "text": self._clean(text),
            "served": self._clean(str(reply.get("model", ""))[:200]),
            "tokens": {name: count if type(count) is int else 0 for name, count in tokens.items()},
        }

    def _clean(self, text: str) -> str:
        """Return text of a server in one line without the key, should it have said it back."""
        return " ".join(text.replace(self._key, "[key]").split()) if self._key else " ".join(text.split())


class _TryAgain(Exception):
    """Something that may pass; `wait`: seconds that the server asks for; `is_limit`: everybody is to wait."""

    def __init__(self, message: str, wait: float | None = None, is_limit: bool = False) -> None:
        super().__init__(message)
        self.wait, self.is_limit = wait, is_limit


class _OwnFault(Exception):
    """This request has no reply; others may."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: urllib would take the key along, to any host."""

    def redirect_request(self, *arguments):
        return None


class _Pace:
    """When the next request of any thread may go out."""

    def __init__(self, per_minute: float | None) -> None:
        self.stopped = threading.Event()
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._gap
        self.sleep(turn - time.monotonic())

    def pause(self, seconds: float) -> None:
        """Let nobody begin for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        if (seconds > 0 and self.stopped.wait(seconds)) or self.stopped.is_set():
            raise _OwnFault("stopped")


def _read(response, deadline: float) -> bytes:
    """Return the whole body; a server that sends a byte now and then does not keep us for ever."""
    parts, size = [], 0
    while part := response.read1(2**16):
        size += len(part)
        if size > MAX_BODY:
            raise http.client.HTTPException(f"a reply of more than {MAX_BODY} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the reply did not end in time")
        parts.append(part)
    if getattr(response, "length", None):
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _seconds(retry_after: str | None) -> float | None:
    """Return what a Retry-After header asks for: a number, or a date; None: nothing that can be read."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return None
    return seconds if 0 <= seconds < float("inf") else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
