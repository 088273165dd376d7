"""Who may ask the studio for what: the address asked for, the token, the origin, the size of what is sent.

A page of another site can make a browser send requests here. It cannot read the answers, as no CORS header allows it;
it cannot make a request with a header of its own, so that whatever changes something asks for one; and it cannot give
this server a name of its own (DNS rebinding), since the names that are answered to are known.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

HEADER = "x-studio"
"""A request that changes something has it, with any value."""

COOKIE = "studio-token"

_SAFE = ("GET", "HEAD", "OPTIONS")
_JSON_LIMIT = 256 * 1024  # bytes of what is no picture

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = CONTENT_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Of the API's documentation, whose program writes styles."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """More has been sent than is taken; `limit` is in bytes."""

    def __init__(self, limit: int):
        super().__init__(f"that is too large: {limit / 1e6:.3g} MB are taken")


class Guard:
    """An ASGI application before another one.

    Args:
        hosts: names and addresses of this server; None answers to any, for a server that asks for a token.
        token: None asks for none.
        upload_limit: bytes of a picture.
        uploads: paths to which pictures are sent.
    """

    def __init__(
        self, app: App, hosts: Iterable[str] | None, token: str | None, upload_limit: int, uploads: Iterable[str]
    ):
        self.app, self.token, self.upload_limit = app, token, upload_limit
        self.hosts = None if hosts is None else {*hosts}
        self.uploads = {*uploads}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self.token is not None and "token" in (given := parse_qs(scope["query_string"].decode("latin-1"))):
            await self._log_in(scope, given["token"][0], send)
            return
        if self.token is not None and not self._is_known(headers):
            await _answer(send, 401, "this studio asks for its token: open the address that it printed when it began")
            return
        limit = self.upload_limit if scope["path"] in self.uploads else _JSON_LIMIT
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > limit:
            await _answer(send, 413, str(TooLarge(limit)))
            return

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_headers(scope["path"], message["headers"])]
            await send(message)

        await self.app(scope, _counting(receive, limit), sending)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """What is wrong with where a request comes from."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return 421, "this studio does not answer to that name: use the address that it printed"
        if scope["method"] in _SAFE:
            return None
        origin = headers.get("origin")
        if origin == "null" or (origin is not None and urlsplit(origin).netloc != host):
            return 403, "a page of another site asked for this: nothing was done"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "a page of another site asked for this: nothing was done"
        if HEADER not in headers:
            return 403, "a request that changes something needs the header X-Studio, with any value"
        return None

    def _is_known(self, headers: dict[str, str]) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(bearer.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except Exception:  # whatever it is, it is no cookie of ours
            return False
        return cookie is not None and self._is_token(cookie.value)

    def _is_token(self, given: str) -> bool:
        """In constant time, whatever is given."""
        assert self.token is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    async def _log_in(self, scope: Scope, given: str, send: Send) -> None:
        """The address with the token in it becomes one without, and a cookie that scripts cannot read."""
        if not self._is_token(given):
            await _answer(send, 401, "that is not the token of this studio")
            return
        cookie = f"{COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000"
        path = "/" + quote(scope["path"].lstrip("/"))  # two slashes would lead to another host
        headers = [(b"location", path.encode()), (b"set-cookie", cookie.encode())]
        headers += _headers(scope["path"], ())
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _name(host: str) -> str:
    """The Host header without its port."""
    if host.startswith("["):
        return host[1:].split("]")[0].lower()
    return host.rsplit(":", 1)[0].lower() if ":" in host else host.lower()


def _headers(path: str, own: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What every answer says, unless it says so itself."""
    policy = DOCS_POLICY if path.startswith("/api/v1/docs") else CONTENT_POLICY
    said = {name.lower() for name, _ in own}
    told = {
        b"content-security-policy": policy.encode(),
        b"x-content-type-options": b"nosniff",
        b"referrer-policy": b"no-referrer",
        b"cross-origin-opener-policy": b"same-origin",
        b"cross-origin-resource-policy": b"same-origin",
        b"x-frame-options": b"DENY",
        b"cache-control": b"no-store",
    }
    return [(name, value) for name, value in told.items() if name not in said]


def _counting(receive: Receive, limit: int) -> Receive:
    """A body of at most so many bytes, whatever its sender said of it."""
    taken = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise TooLarge(limit)
        return message

    return counted


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + _headers("", ())})
    await send({"type": "http.response.body", "body": body})
