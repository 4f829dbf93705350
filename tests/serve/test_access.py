"""Who may stream: tokens and what each allows, pages of which sites, clients behind proxies."""

import asyncio
import time
from http import HTTPStatus
from urllib.parse import quote

import pytest
from serving import PCM, expected, make_recognizer, run, serving, until, uri
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from sumix_stream.serve import access as module
from sumix_stream.serve.access import Access, Account, Asked, Grant, Origins, Refusal, read_networks, read_tokens
from sumix_stream.serve.client import ServerError, transcribe
from sumix_stream.serve.commands import make_access
from sumix_stream.serve.http import path_below


def asked(path: str = "/stream", peer: str = "192.0.2.1", **headers: str | list[str]) -> Asked:
    given = {name.replace("_", "-").lower(): value for name, value in headers.items()}

    def values(name: str) -> list[str]:
        value = given.get(name.lower(), [])
        return [value] if isinstance(value, str) else value

    return Asked(path, values, peer)


def status(found: Grant | Refusal) -> int:
    return 101 if isinstance(found, Grant) else int(found.status)


SHOWN = {
    "Bearer s3cret": 101,
    "bearer s3cret": 101,
    "BEARER  s3cret ": 101,
    "Basic s3cret": 401,
    "s3cret": 401,
    "Bearer s3cret2": 401,
    "Bearer": 401,
    "Bearer s\udcffcret": 401,
}


@pytest.mark.parametrize(("shown", "expected_status"), SHOWN.items(), ids=map(ascii, SHOWN))
def test_bearer_in_any_case(shown, expected_status):
    access = Access([Account("all", "s3cret")])
    assert status(access.admit(asked(Authorization=shown))) == expected_status


def test_a_token_in_the_query_and_an_account_of_each():
    access = Access([Account("a", "s3cret&"), Account("b", "other")])
    assert access.account(asked(f"/stream?token={quote('s3cret&')}")).name == "a"
    assert access.account(asked("/stream?x=1&token=other")).name == "b"
    assert access.account(asked("/stream?token=")) is access.account(asked()) is None
    assert Access().is_open_to(asked()) and not access.is_open_to(asked())


HERE = (
    ("http://asr.example", "asr.example"),
    ("https://asr.example", "asr.example"),  # TLS may end at a proxy
    ("https://ASR.Example", "asr.example:443"),
    ("http://asr.example:80", "ASR.example"),
    ("https://asr.example:8443", "asr.example:8443"),
    ("http://[::1]:6006", "[::1]:6006"),
)
ELSEWHERE = (
    ("https://asr.example:8443", "asr.example"),
    ("https://evil.example", "asr.example"),
    ("https://asr.example.evil.example", "asr.example"),
    ("null", "asr.example"),
    ("asr.example", "asr.example"),
    ("https://asr.example@evil.example", "asr.example"),
    ("https://x/https://asr.example", "asr.example"),
    ("https://asr.example:99999", "asr.example"),
    ("", ""),
)


def test_the_own_page_by_host_without_case_and_default_ports():
    origins = Origins()
    assert [pair for pair in HERE if not origins.admit(*pair)] == []
    assert [pair for pair in ELSEWHERE if origins.admit(*pair)] == []


ALLOWED = {
    "https://app.example": (["https://app.example", "https://APP.example:443"], ["http://app.example", "https://b.app.example"]),
    "https://*.example": (["https://a.example", "https://b.a.example"], ["https://example", "https://aexample", "http://a.example"]),
    "app.example": (["http://app.example", "https://app.example"], ["https://app.example:8443", "https://x.example"]),
    "http://localhost:3000": (["http://localhost:3000"], ["http://localhost", "http://localhost:3001"]),
    "*": (["https://anything.example", "null"], []),
}  # fmt: skip


@pytest.mark.parametrize(("pattern", "sites"), ALLOWED.items(), ids=ALLOWED)
def test_allowed_origins(pattern, sites):
    origins = Origins(["https://other.example", pattern])
    yes, no = sites
    assert all(origins.admit(site, "asr.example") for site in yes)
    assert not any(origins.admit(site, "asr.example") for site in no)


@pytest.mark.parametrize("text", ["", "ftp://x", "https://x/path", "https://a*.example", "https://", "http://x:port"])
def test_what_is_no_origin_is_said(text):
    with pytest.raises(ValueError):
        Origins([text])


def test_headers_of_proxies_are_believed_from_trusted_ones_only():
    access = Access(streams_per_client=1, trusted_proxies=read_networks(["10.0.0.0/8", "::1"]))
    chain = {"X_Forwarded_For": ["203.0.113.7, 198.51.100.1", "10.1.1.1"]}
    first = access.admit(asked(peer="10.0.0.1", **chain))
    assert status(first) == 101
    assert status(access.admit(asked(peer="::ffff:10.0.0.2", **chain))) == 429, "the same client by another proxy"
    assert status(access.admit(asked(peer="198.51.100.1"))) == 429, "and without one"
    assert status(access.admit(asked(peer="10.0.0.1", X_Forwarded_For="forged, 203.0.113.7"))) == 101
    assert status(access.admit(asked(peer="203.0.113.9", X_Forwarded_For="203.0.113.50"))) == 101
    assert status(access.admit(asked(peer="203.0.113.9", X_Forwarded_For="203.0.113.51"))) == 429, "not trusted"
    first.close()
    first.close()
    assert status(access.admit(asked(peer="198.51.100.1"))) == 101
    origin = {"Origin": "https://asr.example", "Host": "127.0.0.1:6006", "X_Forwarded_Host": "asr.example"}
    assert status(access.admit(asked(peer="10.9.9.9", **origin))) == 101
    assert status(access.admit(asked(peer="192.0.2.77", **origin))) == 403
    with pytest.raises(ValueError, match="trusted-proxies.*nonsense"):
        read_networks(["nonsense"])


def test_one_network_of_ipv6_is_one_client():
    access = Access(streams_per_client=1)
    assert status(access.admit(asked(peer="2001:db8::1"))) == 101
    assert status(access.admit(asked(peer="2001:db8::2%eth0"))) == 429
    assert status(access.admit(asked(peer="2001:db8:0:1::1"))) == 101


def test_a_token_allows_streams_and_seconds(monkeypatch):
    account = Account("a", "t", streams=1, seconds_a_day=10)
    access, show = Access([account]), {"Authorization": "Bearer t"}
    grant = access.admit(asked(**show))
    busy = access.admit(asked(**show))
    assert (busy.status, busy.reason) == (HTTPStatus.TOO_MANY_REQUESTS, "token_streams")
    assert grant.spend(6.0) and grant.spend(4.0) and not grant.spend(0.1)
    grant.close()
    spent = access.admit(asked(**show))
    assert (spent.status, spent.reason) == (HTTPStatus.TOO_MANY_REQUESTS, "quota")
    assert 0 < int(spent.headers["Retry_After"]) <= 86_400
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(module.time, "time", lambda: tomorrow)
    assert status(access.admit(asked(**show))) == 101


GOOD = "- {name: a, token: first, streams: 2}\n- {name: b, token: second, seconds_a_day: 3600.5}\n"
BAD = {
    "": "list of at least one token",
    "a: b": "list of at least one token",
    "- [": "cannot be read as YAML",
    "- just text": "entry 1 must have name, token",
    "- {name: a}": "entry 1 must have name, token",
    "- {name: a, token: b, stream: 3}": "entry 1 must have name, token.*'stream'",
    "- {name: a, token: ''}": "entry 1: token of a must be a text that is not empty",
    "- {name: a, token: 12345}": "entry 1: token of a must be a text",
    "- {name: a, token: b, streams: 0}": "streams of a must be a whole number above 0, got 0",
    "- {name: a, token: b, seconds_a_day: .inf}": "seconds_a_day of a must be a number above 0",
    "- {name: a, token: b}\n- {name: a, token: c}": "two entries have the same name",
    "- {name: a, token: b}\n- {name: c, token: b}": "two entries have the same token",
}


def test_a_file_of_tokens(tmp_path):
    path = tmp_path / "tokens.yaml"
    path.write_text(GOOD)
    first, second = read_tokens(path)
    assert (first.name, first.streams, first.seconds_a_day) == ("a", 2, None)
    assert (second.token, second.streams, second.seconds_a_day) == ("second", None, 3600.5)
    assert "first" not in repr(first), "a token never gets into a log"
    for text, message in BAD.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=f"tokens.yaml: .*{message}") as fault:
            read_tokens(path)
        assert "first" not in str(fault.value)
    with pytest.raises(ValueError, match="none.yaml: cannot be read"):
        read_tokens(tmp_path / "none.yaml")


def test_an_empty_token_is_no_way_to_have_none(monkeypatch, tmp_path):
    monkeypatch.delenv("SUMIX_SERVE_TOKEN", raising=False)
    assert make_access(None).accounts == []
    for token in ("", "  "):
        with pytest.raises(ValueError, match="--token is empty"):
            make_access(token)
    monkeypatch.setenv("SUMIX_SERVE_TOKEN", "")
    with pytest.raises(ValueError, match="SUMIX_SERVE_TOKEN is empty"):
        make_access(None)
    monkeypatch.setenv("SUMIX_SERVE_TOKEN", "s3cret")
    (tmp_path / "t.yaml").write_text(GOOD)
    assert [account.name for account in make_access(None, tmp_path / "t.yaml").accounts] == ["token", "a", "b"]
    with pytest.raises(ValueError, match="must be a text that is not empty"):
        run(lambda: _serve_once(""))


async def _serve_once(token: str) -> None:
    async with serving(token=token):
        pass


def test_an_open_address_without_a_token_is_warned_of(monkeypatch, caplog):
    from sumix_stream.serve import commands
    from sumix_stream.serve.limits import Limits

    monkeypatch.setattr(commands.pacing, "run", lambda main: main.close())
    monkeypatch.setattr(commands, "set_up", lambda: None)
    for host, token, warned in (("0.0.0.0", None, 1), ("::", None, 1), ("0.0.0.0", "t", 0), ("127.0.0.1", None, 0),
                                ("::1", None, 0), ("localhost", None, 0), ("asr.example", None, 1)):  # fmt: skip
        caplog.clear()
        access = Access([] if token is None else [Account("all", token)])
        commands.run(make_recognizer, host, 0, Limits(), workers=1, access=access)
        assert sum("no token" in record.getMessage() for record in caplog.records) == warned, host


def test_paths_below_a_base():
    paths = ["/stream", "/asr/stream?x=1", "/asr/", "/asr", "/asrx", "/"]
    assert [path_below("/asr", path) for path in paths] == ["/stream", "/stream", "/", "/", "/asrx", "/"]
    assert [path_below("", path) for path in paths[:2]] == ["/stream", "/asr/stream"]


def test_limits_of_tokens_and_clients_over_the_socket():
    accounts = [Account("a", "first", streams=1), Account("b", "second", seconds_a_day=5.0)]

    async def test():
        async with serving(access=Access(accounts, Origins(["https://*.example"]))) as (server, port):
            async with connect(uri(port, "?token=first")) as client:
                with pytest.raises(InvalidStatus) as refused:
                    await connect(uri(port, "?token=first"))
                assert refused.value.response.status_code == 429
                assert refused.value.response.headers["Retry-After"] == "2"
                async with connect(uri(port, "?token=second"), origin="https://app.example"):
                    pass
                await client.close()
            await until(lambda: server.num_streams == 0)
            result = await transcribe(uri(port), PCM, token="second")
            assert [segment["text"] for segment in result.segments] == [one.text for one in expected(PCM)]
            with pytest.raises(ServerError, match="quota: the day's seconds"):
                await transcribe(uri(port), PCM, token="second")
            await asyncio.sleep(0)
            with pytest.raises(InvalidStatus) as refused:
                await transcribe(uri(port), PCM, token="second")
            assert refused.value.response.status_code == 429
            await transcribe(uri(port), PCM[:1600], token="first")
            assert server.metrics.value("sumix_refused_total", reason="quota") == 1

    run(test)
