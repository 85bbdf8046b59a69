"""Links: magnets that standard clients open, with additional parameters of p2pcloop.

    magnet:?xt=urn:btih:<pack>&dn=<label>&x.p2pcloop=<name>&x.manifest=<id>&x.mt=<info hash>
           &x.pe=<host>:<port>&tr=<tracker>&ws=<web seed>&x.mirror=<URL>#key=<secret>

`xt`, `dn`, `x.pe`, `tr` and `ws` are those of BEP 9 and BEP 19: a standard client gets the top
layer's pack. `x.p2pcloop` is `@key/label`, `x.manifest` the manifest's id (SHA-256, hexadecimal),
`x.mt` the info hash of the manifest's own torrent, `x.mirror` the base URL of a mirror or of a
node (docs/formats/mirror.md). Unknown parts are ignored, as in BEP 9: parameters of other names,
other kinds of `xt`, URLs of other schemes (a later client may know them). The secret of a private
image is in the fragment only, which no client sends anywhere.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import replace
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.name import KEY_CHARACTERS, Name, format_key, parse_key, parse_name
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_LINK_LENGTH = 8192
MAX_PARTS = 256
MAX_PEERS = 64
_BTIH = "urn:btih:"
_WEB_SCHEMES = ("http", "https")
_TRACKER_SCHEMES = ("http", "https", "udp")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")  # RFC 3986, 3.1
_KEY_PART = "key="
_LABEL = "[0-9A-Za-z_]([0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
"""RFC 1035, 2.3.4; and the underscore, which names of containers have and resolvers take."""

_NUMBER = re.compile(r"\.[0-9]+$")
"""What some clients put behind the names of parts that come more than once: `tr.1`."""

_ENTITY = re.compile(r"&(?:amp|AMP|#0*38|#[xX]0*26);")


@dataclass(frozen=True, slots=True)
class Link:
    """The content of a link.

    Attributes:
        name: of the image, with its publisher's key.
        manifest_id: SHA-256 of the manifest's body, 32 bytes.
        manifest_torrent: info hash, 20 bytes, of the manifest's torrent.
        pack_torrent: info hash of the top layer's torrent, or None.
        peers: (host, port) of peers that have it; an IPv6 address has no brackets.
        trackers: URLs of BitTorrent trackers.
        web_seeds: URLs of BEP 19 web seeds.
        mirrors: base URLs of mirrors and nodes, each ending in "/".
        secret: 32 bytes that open a private image, or None.
    """

    name: Name
    manifest_id: bytes
    manifest_torrent: bytes
    pack_torrent: bytes | None = None
    peers: tuple[tuple[str, int], ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    secret: bytes | None = None

    def public(self) -> Link:
        """The link without the secret: with it a user can pass the image on, but not read it."""
        return replace(self, secret=None)

    def joined(self, other: Link) -> Link:
        """The link with the sources of another one after its own, as many as fit."""
        return replace(
            self,
            peers=tuple(dict.fromkeys(self.peers + other.peers))[:MAX_PEERS],
            trackers=tuple(dict.fromkeys(self.trackers + other.trackers)),
            web_seeds=tuple(dict.fromkeys(self.web_seeds + other.web_seeds)),
            mirrors=tuple(dict.fromkeys(self.mirrors + other.mirrors)),
        ).fitted()

    def fitted(self) -> Link:
        """The link, shortened to the length that a reader accepts.

        It loses the last ones of those mirrors, peers, web seeds or trackers that take most room.
        """
        link = self
        while not _fits(str(link)):
            kinds = ("mirrors", "peers", "web_seeds", "trackers")
            places = {kind: getattr(link, kind) for kind in kinds}
            most = max(kinds, key=lambda kind: len(str(places[kind])))
            if not places[most]:
                return link
            link = replace(link, **{most: places[most][:-1]})
        return link

    def __str__(self) -> str:
        pairs = []
        if self.pack_torrent is not None:
            pairs.append(("xt", _BTIH + self.pack_torrent.hex()))
        pairs += [
            ("dn", self.name.label),
            ("x.p2pcloop", str(self.name)),
            ("x.manifest", self.manifest_id.hex()),
            ("x.mt", self.manifest_torrent.hex()),
        ]
        pairs += [("x.pe", format_peer(peer)) for peer in self.peers]
        pairs += [("tr", url) for url in self.trackers]
        pairs += [("ws", url) for url in self.web_seeds]
        pairs += [("x.mirror", url) for url in self.mirrors]
        text = "magnet:?" + "&".join(f"{key}={quote(value, safe=':@/[]')}" for key, value in pairs)
        return text if self.secret is None else f"{text}#{_KEY_PART}{format_key(self.secret)}"


def is_link(text: str) -> bool:
    """Whether a text is a link, not a file or a name, by its first characters."""
    return text[:7].lower() == "magnet:"


def _from_source(entity: str) -> UsageError:
    return UsageError(
        tr(
            "the link has `{entity}` where a link has `&`: it comes from the source of a web page",
            entity=entity,
        ),
        hint=tr(
            "write & for each {entity}, or copy the link from the page as it is shown",
            entity=entity,
        ),
    )


def parse_link(text: str) -> Link:
    """Read a link.

    Raises:
        UsageError: it is not a magnet link, or one that p2pcloop did not make.
        FormatError: a part of it is damaged, or it would be too long as we write it.
    """
    if len(text) > MAX_LINK_LENGTH or not is_link(text) or not text.isprintable():
        raise UsageError(
            tr("{text!r} is not a link", text=text[:60]), hint="a link begins with magnet:?"
        )
    if entity := _ENTITY.search(text):
        raise _from_source(entity[0])
    query, _, fragment = text.partition("?")[2].partition("#")
    if query.count("&") >= MAX_PARTS:
        raise FormatError(tr("the link has more than {max_parts} parts", max_parts=MAX_PARTS))
    values: dict[str, list[str]] = {}
    for key, value in parse_qsl(query):
        values.setdefault(_NUMBER.sub("", key.lower()), []).append(value)
    if "x.p2pcloop" not in values and "x.p2pcloop" in text.lower():
        raise FormatError(
            "the link was changed on its way: `&` and `=` no longer join its parts",
            hint="take it whole and unchanged: `p2pcloop info REF` prints it where it is known",
        )
    if "x.p2pcloop" not in values:
        raise UsageError(
            "this magnet link has no x.p2pcloop part: it is for a BitTorrent client, not for us",
            hint="take the link that `p2pcloop seed` printed, whole and in quotes",
        )
    secret = _secret(fragment) if fragment else None
    try:
        link = replace(_parse_values(values), secret=secret)
    except FormatError as err:
        raise FormatError(
            err.message, hint="the link was cut short or changed: take it whole, in quotes"
        ) from err
    _check_written(str(link))
    return link


def _parse_values(values: dict[str, list[str]]) -> Link:
    topics = [xt for xt in values.get("xt", []) if xt.lower().startswith(_BTIH)]
    return Link(
        name=parse_name(_only(values, "x.p2pcloop")),
        manifest_id=_hexadecimal(_only(values, "x.manifest"), 32, "x.manifest"),
        manifest_torrent=_hexadecimal(_only(values, "x.mt"), 20, "x.mt"),
        pack_torrent=_btih(topics[0]) if topics else None,
        peers=tuple(parse_peer(peer) for peer in values.get("x.pe", [])[:MAX_PEERS]),
        trackers=tuple(map(parse_tracker, _known(values, "tr", _TRACKER_SCHEMES))),
        web_seeds=tuple(_url(url, _WEB_SCHEMES) for url in _known(values, "ws", _WEB_SCHEMES)),
        mirrors=tuple(map(parse_mirror, _known(values, "x.mirror", _WEB_SCHEMES))),
    )


def _known(values: dict[str, list[str]], key: str, schemes: tuple[str, ...]) -> list[str]:
    """The URLs of a part, without those of schemes that are not ours (wss, ftp)."""
    found = ((_SCHEME.match(url), url) for url in values.get(key, []))
    return [url for scheme, url in found if scheme is None or scheme[1].lower() in schemes]


def parse_peer(text: str) -> tuple[str, int]:
    """Read `host:port` or `[IPv6]:port`; an international name is returned in its form for DNS.

    Raises:
        FormatError: not of that form, or a port outside 1 to 65535.
    """
    host, _, port = text.rpartition(":")
    host = _to_ascii(host).removesuffix(".")  # the root of DNS
    if not (_HOST.fullmatch(host) or _is_ipv6(host)) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise FormatError(
            tr("{text!r} is not a peer", text=text[:80]), hint="a peer is written HOST:PORT"
        )
    if not 1 <= int(port) <= 65535:
        raise FormatError(tr("{text!r} has no port within 1 to 65535", text=text))
    return host.strip("[]"), int(port)


def parse_tracker(text: str) -> str:
    """Check the URL of a tracker: http, https or udp.

    Raises:
        FormatError: it is not one.
    """
    return _url(text, _TRACKER_SCHEMES)


def parse_mirror(text: str) -> str:
    """Check the base URL of a mirror: http or https, ending in "/", no query.

    Raises:
        FormatError: it is not one.
    """
    text = _url(text, _WEB_SCHEMES)
    if urlsplit(text).username is not None:
        # It would be passed on in links, and never sent: a mirror has no logins.
        raise FormatError("the URL of a mirror has a user's name in it", hint="leave that out")
    if not text.endswith("/") or "?" in text or "#" in text:
        raise FormatError(
            tr("{text!r} is not the URL of a mirror", text=text[:80]),
            hint='it ends in "/" and has neither "?" nor "#"',
        )
    return text


def format_peer(peer: tuple[str, int]) -> str:
    """Write a peer as `host:port`, with brackets round an IPv6 address."""
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_written(text: str) -> None:
    """Check the length of the link as it is written: quoting makes it longer."""
    if len(text) > MAX_LINK_LENGTH:
        raise FormatError(
            tr(
                "the link would be longer than {max_link_length} characters, quoted",
                max_link_length=MAX_LINK_LENGTH,
            )
        )
    if text.count("&") >= MAX_PARTS:
        raise FormatError(
            tr(
                "the link would have more than {max_parts} parts with its label",
                max_parts=MAX_PARTS,
            )
        )


def _fits(text: str) -> bool:
    return len(text) <= MAX_LINK_LENGTH and text.count("&") < MAX_PARTS


def _is_ipv6(host: str) -> bool:
    """Whether it is an IPv6 address in brackets, without a zone, which only its machine knows."""
    try:
        address = ipaddress.IPv6Address(host[1:-1])
    except ValueError:
        return False
    return host.startswith("[") and host.endswith("]") and address.scope_id is None


def _only(values: dict[str, list[str]], key: str) -> str:
    found = values.get(key, [])
    if len(found) != 1:
        raise FormatError(
            tr(
                "the link has {found_count} parts {key!r} where one is needed",
                found_count=len(found),
                key=key,
            )
        )
    return found[0]


def _hexadecimal(text: str, length: int, what: str) -> bytes:
    if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * length}}}", text):
        raise FormatError(
            tr(
                "{what} of the link is not {length} hexadecimal digits",
                what=what,
                length=2 * length,
            )
        )
    return bytes.fromhex(text)


def _btih(text: str) -> bytes:
    """Read an info hash: 40 hexadecimal digits, or 32 characters of base32 (BEP 9)."""
    digits = text[len(_BTIH) :]
    if re.fullmatch(r"[A-Za-z2-7]{32}", digits):
        return base64.b32decode(digits.upper())
    return _hexadecimal(digits, 20, "xt")


def _to_ascii(host: str) -> str:
    """A host's name in its form for DNS (RFC 3490); unchanged if it has none."""
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _secret(fragment: str) -> bytes:
    key = fragment.removeprefix(_KEY_PART)
    if not fragment.startswith(_KEY_PART) or len(key) != KEY_CHARACTERS:
        raise FormatError(
            tr(
                "what stands behind # in the link is not {key_part} and {key_characters}"
                " characters",
                key_part=_KEY_PART,
                key_characters=KEY_CHARACTERS,
            ),
            hint="take the link of the private image whole and in quotes",
        )
    try:
        return parse_key(key)
    except FormatError as err:
        raise FormatError(
            "the key behind # in the link is damaged", hint="copy the link again"
        ) from err


def _url(text: str, schemes: tuple[str, ...]) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as err:
        raise FormatError(tr("{text!r} is not a URL: {err}", text=text[:80], err=err)) from err
    # urlsplit silently drops line breaks, which would end up in a request to a tracker.
    clean = text.isprintable() and " " not in text
    if not clean or parts.scheme not in schemes or not parts.hostname:
        raise FormatError(
            tr("{text!r} is not a URL of {schemes}", text=text[:80], schemes=", ".join(schemes))
        )
    if parts.netloc.isascii():
        return text
    user, at, place = parts.netloc.rpartition("@")
    host, colon, port = place.partition(":")
    host = _to_ascii(host)
    if not _HOST.fullmatch(host):
        raise FormatError(tr("{text!r} names no host that DNS could know", text=text[:80]))
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}{colon}{port}"))
