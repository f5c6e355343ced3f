"""A judge behind HTTP, against a real server on this machine: faults pass, replies are kept, the key stays inside."""

import logging
import time

import pytest

from modeling_video_ma2mba.eval import judge_endpoint
from modeling_video_ma2mba.eval.judge import JudgeError, JudgeRequest
from modeling_video_ma2mba.eval.judge_endpoint import Endpoint, EndpointJudge
from tests.eval.judge_server import said

KEY = "sk-a-secret-0123456789"


def echo(number, body, headers):
    return said(body["messages"][1]["content"].upper(), usage={"prompt_tokens": 7, "completion_tokens": 2})


def judge(server, cache=None, **changes):
    settings = {"base_url": server.url, "model": "m", "first_wait": 0.01, "concurrency": 2, "timeout": 5.0, **changes}
    return EndpointJudge(Endpoint(**settings), cache)


def requests(*texts):
    return [JudgeRequest(system="sys", user=text, max_new_tokens=8) for text in texts]


def texts(replies):
    return [reply.text for reply in replies]


def test_requests_and_replies(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(echo)
    one = judge(server)
    assert texts(one.reply(requests("a", "b", "c"))) == ["A", "B", "C"]
    path, body, headers = next(sent for sent in server.bodies if sent[1]["messages"][1]["content"] == "a")
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "sys"}, {"role": "user", "content": "a"}],
        "temperature": 0,
        "max_tokens": 8,
    }
    facts = one.describe()
    assert facts["served_models"] == ["served-model"] and facts["tokens"] == {"read": 21, "written": 6}
    assert facts["kind"] == "endpoint" and facts["model"] == "m" and facts["has_key"] and one.label == "endpoint m"


def test_without_a_key_none_is_sent(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(echo)
    assert texts(judge(server).reply(requests("a"))) == ["A"]
    assert "Authorization" not in server.bodies[0][2]


def test_a_limit_passes_and_its_wait_is_kept(serve):
    server = serve(lambda n, *rest: (429, {"Retry-After": "0.3"}, "slow down") if n == 0 else echo(n, *rest))
    one = judge(server, concurrency=1)
    assert texts(one.reply(requests("a", "b"))) == ["A", "B"]
    assert len(server.bodies) == 3 and server.times[1] - server.times[0] >= 0.3


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, "oops"),
        (503, {"Retry-After": "soon"}, ""),
        (408, {}, ""),
        (200, {}, "{not json"),
        (200, {}, "[]"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        (200, {}, "[" * 100_000),
        (200, {"Content-Length": "9999"}, "{}"),
        (200, {}, "x" * (judge_endpoint.MAX_BODY + 1)),
    ],
)
def test_faults_of_the_server_pass(serve, fault):
    server = serve(lambda n, *rest: fault if n < 2 else echo(n, *rest))
    assert texts(judge(server, timeout=1.0).reply(requests("a"))) == ["A"]
    assert len(server.bodies) == 3


def test_what_does_not_pass_is_an_error_of_that_request(serve):
    def script(n, body, headers):
        return (500, {}, "oops") if body["messages"][1]["content"] == "b" else echo(n, body, headers)

    server = serve(script)
    replies = judge(server, attempts=3).reply(requests("a", "b", "c"))
    assert texts(replies) == ["A", None, "C"] and replies[1].error == "HTTP 500: oops (3 tries)"
    assert len(server.bodies) == 5


@pytest.mark.parametrize("how", ["silent", "a byte now and then"])
def test_a_slow_reply_is_given_up(serve, how):
    def script(n, *rest):
        if n:
            return echo(n, *rest)
        if how == "silent":
            time.sleep(0.6)
            return echo(n, *rest)
        return 200, {}, [" "] * 10 + list(echo(n, *rest)[2])

    server = serve(script)
    start = time.monotonic()
    assert texts(judge(server, timeout=0.3).reply(requests("a"))) == ["A"]
    assert len(server.bodies) == 2 and time.monotonic() - start < 2


def test_nobody_there(serve, monkeypatch):
    server = serve(echo)
    nowhere = judge(server, attempts=2, concurrency=4)
    server.shutdown()
    server.server_close()
    (reply,) = nowhere.reply(requests("a"))
    assert reply.text is None and "no reply: ConnectionRefusedError" in reply.error and "2 tries" in reply.error
    with pytest.raises(JudgeError, match="10 requests in a row failed, the last one: no reply"):
        nowhere.reply(requests(*map(str, range(40))))


@pytest.mark.parametrize(
    "status, body, advice",
    [
        (401, "bad key", "set OPENAI_API_KEY to a valid key"),
        (404, "no model m", "look at base_url and model"),
        (403, "", "HTTP 403;"),
        (429, '{"code": "insufficient_quota"}', "insufficient_quota"),
        (302, "", "HTTP 302"),
    ],
)
def test_what_would_fail_every_request_stops_at_once(serve, status, body, advice):
    other = serve(echo)
    server = serve(lambda *_: (status, {"Location": f"{other.url}/chat/completions"}, body))
    with pytest.raises(JudgeError, match=advice):
        judge(server, concurrency=1).reply(requests(*map(str, range(20))))
    assert len(server.bodies) == 1 and not other.bodies  # a redirect is not followed


def test_a_request_that_is_refused_is_its_own_fault(serve):
    server = serve(lambda n, *rest: (400, {}, "too long") if n == 0 else echo(n, *rest))
    replies = judge(server, concurrency=1).reply(requests("a", "b"))
    assert replies[0].error == "HTTP 400: too long" and replies[1].text == "B" and len(server.bodies) == 2


def test_kept_replies_ask_nobody(serve, tmp_path):
    server = serve(echo)
    assert texts(judge(server, tmp_path).reply(requests("a", "b"))) == ["A", "B"]
    again = judge(server, tmp_path)
    assert (again.estimate(requests("a", "b", "c")).requests, again.estimate(requests("a", "b", "c")).kept) == (3, 2)
    assert texts(again.reply(requests("b", "a"))) == ["B", "A"] and len(server.bodies) == 2
    assert again.describe()["served_models"] == ["served-model"] and again.describe()["tokens"]["read"] == 0
    # Another model, prompt or length is another request.
    judge(server, tmp_path, model="other").reply(requests("a"))
    again.reply([JudgeRequest(system="sys 2", user="a", max_new_tokens=8)])
    again.reply([JudgeRequest(system="sys", user="a", max_new_tokens=9)])
    assert len(server.bodies) == 5


def test_errors_are_not_kept_and_a_stopped_run_goes_on(serve, tmp_path):
    server = serve(lambda n, *rest: (401, {}, "expired") if n == 2 else echo(n, *rest))
    one = judge(server, tmp_path, concurrency=1)
    with pytest.raises(JudgeError, match="expired"):
        one.reply(requests("a", "b", "c", "d"))
    before = len(server.bodies)
    assert texts(one.reply(requests("a", "b", "c", "d"))) == ["A", "B", "C", "D"]
    assert len(server.bodies) <= before + 2
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b'{"asked": {}, "text": "other"}', b" " * 2**21])
def test_a_damaged_file_is_asked_again(serve, tmp_path, damage, caplog):
    server = serve(echo)
    judge(server, tmp_path).reply(requests("a"))
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    assert texts(judge(server, tmp_path).reply(requests("a"))) == ["A"] and len(server.bodies) == 2
    assert f"{file} is damaged" in caplog.text


def test_the_key_is_nowhere(serve, tmp_path, monkeypatch, caplog, capfd):
    """Not in logs, errors, files, descriptions or what is printed, even where the server says it back."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def script(n, body, headers):
        key = headers["Authorization"]
        if n == 0:
            return 429, {}, f"slow down, {key}"
        return (400, {}, key) if n == 1 else said(f"you said {key}", model=key)

    server = serve(script)
    one = judge(server, tmp_path, concurrency=1)
    replies = one.reply(requests("a", "b", "c"))
    assert [reply.text or reply.error for reply in replies] == [
        "HTTP 400: Bearer [key]", "you said Bearer [key]", "you said Bearer [key]"
    ]  # fmt: skip
    server.script = lambda n, body, headers: (401, {}, f"wrong key {headers['Authorization']}")
    with pytest.raises(JudgeError, match=r"wrong key Bearer \[key\]") as error:
        one.reply(requests("d"))
    kept = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    printed = capfd.readouterr()
    everything = [caplog.text, kept, str(error.value), repr(one), str(one.describe()), printed.out, printed.err]
    assert "slow down" in caplog.text and "[key]" in kept
    assert not any(KEY in text for text in everything)


@pytest.mark.parametrize("key", ["sk\n-x", "sk x", "schlüssel"])
def test_a_key_that_no_header_takes(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ValueError, match="OPENAI_API_KEY has signs") as error:
        EndpointJudge(Endpoint())
    assert key not in str(error.value)


def test_a_key_does_not_travel_unencrypted(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match=r"would go to judge.example.org unencrypted: use https") as error:
        EndpointJudge(Endpoint(base_url="http://judge.example.org/v1"))
    assert KEY not in str(error.value)
    EndpointJudge(Endpoint(base_url="https://judge.example.org/v1"))
    EndpointJudge(Endpoint(base_url="http://[::1]:8000/v1"))
    monkeypatch.delenv("OPENAI_API_KEY")
    EndpointJudge(Endpoint(base_url="http://judge.example.org/v1"))


def test_the_estimate_and_its_limit(serve, capsys):
    request = JudgeRequest(system="s" * 1000, user="u" * 3000, max_new_tokens=64)
    server = serve(echo)
    paper = judge(server, model="gpt-3.5-turbo-0125")
    found = paper.estimate([request] * 1000)
    # A million tokens at $0.50, 64,000 at $1.50 a million.
    assert (found.tokens_read, found.tokens_written) == (1_000_000, 64_000)
    assert found.dollars == pytest.approx(0.596) and "at most about $0.60" in str(found)
    assert judge(server).estimate([request]).dollars is None and "cost not known" in str(judge(server).estimate([]))
    for limited in ({"model": "gpt-3.5-turbo-0125", "max_dollars": 0.0001}, {"max_dollars": 10.0}):
        with pytest.raises(JudgeError, match="max_dollars="):
            judge(server, **limited).reply([request])
    assert "endpoint m: 1 requests (0 more are on disk), about 1,000 tokens to read" in capsys.readouterr().err
    assert not server.bodies and Endpoint().model == "gpt-3.5-turbo-0125"


def test_requests_at_once_and_per_minute(serve):
    def slow(*arguments):
        time.sleep(0.1)
        return echo(*arguments)

    server = serve(slow)
    judge(server, concurrency=3).reply(requests(*"abcdef"))
    assert server.most == 3
    server = serve(echo)
    judge(server, concurrency=4, requests_per_minute=1200).reply(requests(*"abcdef"))
    assert server.times[-1] - server.times[0] >= 5 * 0.05 * 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_url": "localhost:8000"}, "base_url, --judge-url"),
        ({"base_url": "file:///etc/passwd"}, "base_url, --judge-url"),
        ({"base_url": "https://user:secret@host/v1"}, "base_url, --judge-url"),
        ({"base_url": "http://host/v1/chat/completions"}, "leave /chat/completions out"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"requests_per_minute": 0}, "requests_per_minute=0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Endpoint(**options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "header, seconds",
    [("2", 2), ("0.5", 0.5), ("-1", None), ("nan", None), ("inf", None), ("soon", None), (None, None)],
)
def test_retry_after(header, seconds):
    assert judge_endpoint._seconds(header) == seconds


def test_retry_after_a_date():
    assert judge_endpoint._seconds("Wed, 21 Oct 2015 07:28:00 GMT") is None
    assert judge_endpoint._seconds("Wed, 21 Oct 2115 07:28:00 GMT") > 1e6
