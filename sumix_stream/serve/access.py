"""Who may stream: tokens, pages of which sites, and how much of the server one client may have.

A request is asked about as `Asked`, so that this holds for whatever HTTP layer it came through.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml

ANYBODY = "token"  # name of the account of the one token that is given without a name
_DAY = 86_400
_IN_SUBPROTOCOL = "openai-insecure-api-key."  # of OpenAI's realtime API
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_TOKEN_KEYS = {"name", "token", "streams", "seconds_a_day"}
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Asked(NamedTuple):
    """An HTTP request, as far as access goes."""

    path: str  # with its query
    headers: Callable[[str], Sequence[str]]  # all values of a header, whose name may be in any case
    peer: str  # address at the other end of the connection


class Refusal(NamedTuple):
    reason: str  # of the metric sumix_refused
    status: HTTPStatus
    text: str
    headers: Mapping[str, str] = MappingProxyType({})


@dataclass(eq=False)
class Account:
    """What a token allows, and what has been used of it. Raises ValueError for a limit that is not above 0.

    Args:
        streams: at a time; None = as many as the server has.
        seconds_a_day: of audio, counted from midnight UTC in this process; None = no limit.
    """

    name: str
    token: str = field(repr=False)
    streams: int | None = None
    seconds_a_day: float | None = None
    num_streams: int = field(default=0, init=False)
    _used: float = field(default=0.0, init=False)
    _day: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a text that is not empty, got {self.name!r}")
        if not isinstance(self.token, str) or not self.token:
            raise ValueError(f"token of {self.name} must be a text that is not empty")
        if self.streams is not None and (type(self.streams) is not int or self.streams < 1):
            raise ValueError(f"streams of {self.name} must be a whole number above 0, got {self.streams!r}")
        seconds = self.seconds_a_day
        if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < float("inf")):
            raise ValueError(f"seconds_a_day of {self.name} must be a number above 0, got {seconds!r}")

    def spend(self, seconds: float) -> bool:
        """Count audio; whether it was within the day's seconds."""
        if self.seconds_a_day is None:
            return True
        day = int(time.time()) // _DAY
        if day != self._day:
            self._day, self._used = day, 0.0
        self._used += seconds
        return self._used <= self.seconds_a_day

    @property
    def is_spent(self) -> bool:
        return not self.spend(0.0)


def read_tokens(path: Path) -> list[Account]:
    """The accounts of a YAML list of name, token, streams, seconds_a_day. Raises ValueError naming file and entry."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: must be a list of at least one token, each with name and token")
    accounts = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not {"name", "token"} <= entry.keys() <= _TOKEN_KEYS:
            keys = sorted(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
            allowed = "name, token, and if wanted streams, seconds_a_day"
            raise ValueError(f"{path}: entry {number} must have {allowed}; it has {keys}")
        try:
            accounts.append(Account(**entry))
        except ValueError as error:
            raise ValueError(f"{path}: entry {number}: {error}") from None
    for key in ("name", "token"):
        values = [getattr(account, key) for account in accounts]
        if len(set(values)) < len(values):
            raise ValueError(f"{path}: two entries have the same {key}")
    return accounts


class Origins:
    """Pages of which sites may stream: this server's own, and those named.

    Args:
        allowed: such as `https://app.example`, `https://*.example` (any host below it), `app.example` (any scheme), or
            `*`. Raises ValueError for anything else.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._any = "*" in allowed
        self._allowed = [_read_origin(text) for text in allowed if text != "*"]

    def admit(self, origin: str, host: str) -> bool:
        """Whether the page of `origin` may use the server that was asked for as `host`; TLS may end before it."""
        if self._any:
            return True
        scheme, separator, _ = origin.partition("://")
        try:
            found = _read_origin(origin)
            own = separator and _read_origin(f"{scheme}://{host}") == found
        except ValueError:
            return False
        return bool(own) or any(_matches(pattern, found) for pattern in self._allowed)


_Origin = tuple[str, str, int | None]  # scheme ("" = any), host, port


def _read_origin(text: str) -> _Origin:
    """Raises ValueError for what is no origin. Default ports are written out, letters small."""
    parts = urlsplit(text if "://" in text else f"//{text}")
    port, scheme = parts.port, parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".")
    whole = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if not host or not whole or scheme not in ("", *_PORTS) or "*" in host.removeprefix("*."):
        raise ValueError(f"{text!r} is no origin: give https://HOST, https://HOST:PORT, https://*.HOST, HOST or *")
    return scheme, host, port or _PORTS.get(scheme)


def _matches(pattern: _Origin, found: _Origin) -> bool:
    scheme, host, port = pattern
    if scheme and scheme != found[0]:
        return False
    if port is not None and port != found[2]:
        return False
    if not scheme and port is None and found[2] != _PORTS.get(found[0]):
        return False
    return found[1].endswith(host[1:]) if host.startswith("*.") else found[1] == host


def read_networks(texts: Sequence[str]) -> list[Network]:
    """Raises ValueError for what is neither an address nor a network such as 10.0.0.0/8."""
    try:
        return [ipaddress.ip_network(text, strict=False) for text in texts]
    except ValueError as error:
        raise ValueError(f"--trusted-proxies: {error}; give addresses or networks such as 10.0.0.0/8") from None


class Access:
    """Decides about requests and keeps count of who streams.

    Args:
        accounts: whose tokens are taken; none = everybody may stream.
        streams_per_client: at a time from one address; None = no limit.
        trusted_proxies: whose X-Forwarded-For and X-Forwarded-Host are believed.
    """

    def __init__(
        self,
        accounts: Sequence[Account] = (),
        origins: Origins | None = None,
        streams_per_client: int | None = None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self.accounts, self._origins = list(accounts), origins or Origins()
        self._most, self._trusted = streams_per_client, list(trusted_proxies)
        self._streams: Counter[str] = Counter()

    def account(self, asked: Asked) -> Account | None:
        """Whose token a request shows: `Authorization: Bearer`, or for browsers, which cannot set headers, ?token= or a
        websocket's subprotocol."""
        given = []
        for value in asked.headers("Authorization"):
            kind, _, rest = value.strip().partition(" ")
            given += [rest.strip()] if kind.lower() == "bearer" else []
        given += parse_qs(urlsplit(asked.path).query).get("token", [])
        for value in asked.headers("Sec-WebSocket-Protocol"):
            offered = (part.strip() for part in value.split(","))
            given += [part.removeprefix(_IN_SUBPROTOCOL) for part in offered if part.startswith(_IN_SUBPROTOCOL)]
        found = None
        for account in self.accounts:  # all of them: how long it takes tells nothing
            for value in given:
                if hmac.compare_digest(value.encode(errors="surrogateescape"), account.token.encode()):
                    found = account
        return found

    def is_open_to(self, asked: Asked) -> bool:
        """Whether a request shows a token, if one is needed."""
        return not self.accounts or self.account(asked) is not None

    def admit(self, asked: Asked, needs_token: bool = True) -> Refusal | Grant:
        """Whether a request may stream; a grant is to be closed when the stream is over.

        needs_token: of a server that has tokens; False where its protocol has no place for one.
        """
        account = self.account(asked) if needs_token else None
        if self.accounts and account is None and needs_token:
            return unauthorised()
        if not self.admits_page(asked):
            text = "pages of other sites may not stream to this server; see --allow-origin\n"
            return Refusal("origin", HTTPStatus.FORBIDDEN, text)
        client = self._client(asked)
        if account is not None and account.is_spent:
            left = str(_DAY - int(time.time()) % _DAY)
            text = f"quota: the {account.seconds_a_day:g} seconds of audio of this day are used up\n"
            return Refusal("quota", HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry_After": left})
        if account is not None and account.streams is not None and account.num_streams >= account.streams:
            text = f"busy: all {account.streams} streams of this token are open\n"
            return Refusal("token_streams", HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry_After": "2"})
        if self._most is not None and self._streams[client] >= self._most:
            text = f"busy: all {self._most} streams of one client are open\n"
            return Refusal("client_streams", HTTPStatus.TOO_MANY_REQUESTS, text, {"Retry_After": "2"})
        return Grant(self, client, account)

    def _forwarded(self, asked: Asked, name: str) -> list[str]:
        """Values of a forwarding header, last proxy's last; none where the connection is not from a trusted one."""
        if not self._is_trusted(asked.peer):
            return []
        return [part.strip() for value in asked.headers(f"X-Forwarded-{name}") for part in value.split(",")]

    def _is_trusted(self, address: str) -> bool:
        found = _address(address)
        return found is not None and any(found in network for network in self._trusted)

    def _client(self, asked: Asked) -> str:
        """The address that streams are counted by: the last one that no trusted proxy has; of IPv6 its /64."""
        chain = [asked.peer, *reversed(self._forwarded(asked, "For"))]
        address = next((one for one in chain if not self._is_trusted(one)), chain[-1])
        found = _address(address)
        if isinstance(found, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found or "unknown")

    def admits_page(self, asked: Asked) -> bool:
        """Whether a request comes from no browser, or from a page that may stream."""
        origins = asked.headers("Origin")
        hosts = self._forwarded(asked, "Host")[-1:] or asked.headers("Host")
        return not origins or (len(origins) == len(hosts) == 1 and self._origins.admit(origins[0], hosts[0]))


class Grant:
    """A stream that was let in: it counts for its client and its token until `close`."""

    def __init__(self, access: Access, client: str, account: Account | None) -> None:
        self._access, self._client, self.account = access, client, account
        self._open = True
        access._streams[client] += 1
        if account is not None:
            account.num_streams += 1

    def spend(self, seconds: float) -> bool:
        """Count audio; whether the token allows it."""
        return self.account is None or self.account.spend(seconds)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._access._streams[self._client] -= 1
            if not self._access._streams[self._client]:
                del self._access._streams[self._client]
            if self.account is not None:
                self.account.num_streams -= 1


def unauthorised() -> Refusal:
    text = "a token is needed: Authorization: Bearer TOKEN, or ?token=TOKEN\n"
    return Refusal("token", HTTPStatus.UNAUTHORIZED, text, {"WWW_Authenticate": "Bearer"})


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
