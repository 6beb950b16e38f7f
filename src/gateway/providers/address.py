"""A provider's URL, taken apart once: where to connect, and the head of a request as far as it is always the same."""

import base64
import re
import urllib.parse
from collections.abc import Mapping

import msgspec

from gateway.providers.dialing import Origin

_PORTS = {"http": 80, "https": 443}
# What may stand in a path and a query as it is; an escape stays what it is.
_TARGET_SAFE = "/?:@!$&'()*+,;=-._~%{}"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAKS = re.compile(r"[\r\n\0]")


class Address(msgspec.Struct, frozen=True):
    """Where a request goes. ``host`` is the header's, ``target`` what stands in the request line.

    ``basic`` is the proof made of a user name and password in the URL.
    """

    origin: Origin
    host: str
    target: str
    basic: str | None = None

    @property
    def url(self) -> str:
        """The URL as it goes on the wire."""
        return f"{'https' if self.origin.is_tls else 'http'}://{self.host}{self.target}"

    def head(self, headers: Mapping[str, str]) -> bytes:
        """A request's head up to the number of its body's bytes. Raises ``ValueError`` for what no header may hold."""
        lines = [f"POST {self.target} HTTP/1.1", f"host: {self.host}"]
        if self.basic is not None:
            lines.append(f"authorization: {self.basic}")
        for name, padded in headers.items():
            value = padded.strip()
            if _NAME.fullmatch(name) is None or _BREAKS.search(value) is not None:
                raise ValueError(f"The header {name!r} cannot be sent.")
            lines.append(f"{name}: {value}")
        lines.append("content-length: ")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")


def address_of(url: str) -> Address:
    """An absolute URL of http or https. Raises ``ValueError`` where it is none."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("A provider's URL must begin with http:// or https:// and name a host.")
    name = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    port = parts.port or _PORTS[parts.scheme]
    host = f"[{name}]" if ":" in name else name
    if port != _PORTS[parts.scheme]:
        host = f"{host}:{port}"
    target = urllib.parse.quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_TARGET_SAFE)
    return Address(Origin(name, port, parts.scheme == "https"), host, target, _basic_of(parts))


def _basic_of(parts: urllib.parse.SplitResult) -> str | None:
    if parts.username is None:
        return None
    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
