"""Links: what is written is read; what is damaged or foreign is told apart and refused."""

import base64
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, P2pcloopError, UsageError
from p2pcloop.formats.link import (
    MAX_LINK_LENGTH,
    MAX_PEERS,
    Link,
    format_peer,
    is_link,
    parse_link,
    parse_mirror,
    parse_peer,
)
from p2pcloop.formats.name import Name
from p2pcloop.formats.pasted import clean_pasted

NAME = Name(bytes(range(32)), "debian")
MANIFEST = bytes(range(100, 132))
TORRENT = bytes(range(20))
PACK = bytes(range(50, 70))
TEXT = (
    "magnet:?xt=urn:btih:32333435363738393a3b3c3d3e3f404142434445"
    "&dn=debian"
    "&x.p2pcloop=@aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq/debian"
    "&x.manifest=6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283"
    "&x.mt=000102030405060708090a0b0c0d0e0f10111213"
    "&x.pe=192.0.2.1:6881&x.pe=[2001:db8::1]:65535"
    "&tr=http://tracker.example:80/announce%3Fa%3D1%26b%3D2"
    "&ws=https://mirror.example/a%20b/".replace("a%20b", "a%2520b")
    + "&x.mirror=http://192.0.2.1:6882/&x.mirror=https://copy.example/k/"
)
SECRET = "#key=aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"

LINK = Link(
    name=NAME,
    manifest_id=MANIFEST,
    manifest_torrent=TORRENT,
    pack_torrent=PACK,
    peers=(("192.0.2.1", 6881), ("2001:db8::1", 65535)),
    trackers=("http://tracker.example:80/announce?a=1&b=2",),
    web_seeds=("https://mirror.example/a%20b/",),
    mirrors=("http://192.0.2.1:6882/", "https://copy.example/k/"),
    secret=bytes(range(32)),
)

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"\A[0-9A-Za-z]([0-9A-Za-z-]{0,20}[0-9A-Za-z])?(\.[0-9A-Za-z]{1,63}){0,2}\Z"),
)
paths = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=20).map(
    lambda text: text.replace(" ", "")
)


@st.composite
def urls(draw: st.DrawFn, schemes: tuple[str, ...]) -> str:
    port = draw(st.sampled_from(("", ":1", ":65535")))
    return f"{draw(st.sampled_from(schemes))}://host.example{port}/{draw(paths)}"


def test_a_link_character_by_character() -> None:
    assert str(LINK) == TEXT + SECRET
    assert parse_link(TEXT + SECRET) == LINK


def test_the_secret_stands_in_the_fragment_only() -> None:
    assert str(LINK.public()) == TEXT
    assert parse_link(TEXT) == LINK.public()
    assert LINK.public().secret is None


@settings(max_examples=100, deadline=None)
@given(
    st.builds(
        Link,
        name=st.just(NAME),
        manifest_id=st.binary(min_size=32, max_size=32),
        manifest_torrent=st.binary(min_size=20, max_size=20),
        pack_torrent=st.none() | st.binary(min_size=20, max_size=20),
        peers=st.lists(st.tuples(hosts, st.integers(1, 65535)), max_size=5).map(tuple),
        trackers=st.lists(urls(("http", "https", "udp")), max_size=3).map(tuple),
        web_seeds=st.lists(urls(("http", "https")), max_size=3).map(tuple),
        mirrors=st.lists(
            st.from_regex(r"\Ahttps?://h(:81)?/([a-z0-9%-]{1,9}/){0,2}\Z"), max_size=3
        ).map(tuple),
        secret=st.none() | st.binary(min_size=32, max_size=32),
    )
)
def test_links_are_read_as_they_were_written(link: Link) -> None:
    assert parse_link(str(link)) == link


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.characters(), st.booleans())
def test_a_damaged_link_is_another_link_or_an_error(at: int, letter: str, cut: bool) -> None:
    text = TEXT[:at] if cut else TEXT[:at] + letter + TEXT[at + 1 :]
    try:
        link = parse_link(text)
    except (UsageError, FormatError):
        return
    assert parse_link(str(link)) == link


def test_a_link_that_would_have_more_parts_when_written_is_refused() -> None:
    text = TEXT.replace("&dn=debian", "") + "&tr=udp://h" * 245
    assert parse_link(str(parse_link(text))) == parse_link(text)
    with pytest.raises(FormatError, match="more than 256 parts"):
        parse_link(text + "&tr=udp://h")


def replace(part: str, by: str) -> str:
    assert TEXT.count(part) == 1
    return TEXT.replace(part, by)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (replace("x.manifest=64", "x.manifest=6"), "x.manifest of the link is not 64"),
        (replace("x.manifest=64", "x.manifest=zz"), "x.manifest of the link is not 64"),
        (replace("x.manifest", "x.other"), "0 parts 'x.manifest'"),
        (TEXT + "&x.manifest=" + "00" * 32, "2 parts 'x.manifest'"),
        (replace("x.mt=00", "x.mt="), "x.mt of the link is not 40"),
        (replace("&x.mt=", "&x.nt="), "0 parts 'x.mt'"),
        (TEXT + f"&x.p2pcloop={NAME}", "2 parts 'x.p2pcloop'"),
        (replace("dypq/debian", "dypr/debian"), "bits that must be zero"),
        (replace("dypq/debian", "dypq/../a"), "is not a label"),
        (replace("dypq/debian", "dypq/a%2Fb"), "is not a label"),
        (replace("dypq/debian", "dypq/a%00"), "is not a label"),
        (replace("urn:btih:32", "urn:btih:"), "xt of the link is not 40"),
        (replace("192.0.2.1:6881", "192.0.2.1:0"), "no port within 1 to 65535"),
        (replace("192.0.2.1:6881", "192.0.2.1:65536"), "no port within 1 to 65535"),
        (replace("192.0.2.1:6881", "192.0.2.1:-1"), "is not a peer"),
        (replace("192.0.2.1:6881", "192.0.2.1:%D9%A1"), "is not a peer"),
        (replace("192.0.2.1:6881", "192.0.2.1"), "is not a peer"),
        (replace("192.0.2.1:6881", ":6881"), "is not a peer"),
        (replace("192.0.2.1:6881", "a%00b:6881"), "is not a peer"),
        (replace("192.0.2.1:6881", "a/b:6881"), "is not a peer"),
        (replace("192.0.2.1:6881", "a..b:6881"), "is not a peer"),
        (replace("192.0.2.1:6881", f"{'a' * 64}.b:6881"), "is not a peer"),
        (replace("192.0.2.1:6881", f"{'a.' * 127}b:6881"), "is not a peer"),
        (replace("[2001:db8::1]", "[2001:db8::1"), "is not a peer"),
        (replace("[2001:db8::1]", "2001:db8::1"), "is not a peer"),
        (replace("[2001:db8::1]", "[::::]"), "is not a peer"),
        (replace("[2001:db8::1]", "[192.0.2.1]"), "is not a peer"),
        (replace("[2001:db8::1]", "[fe80::1%25eth0]"), "is not a peer"),
        (replace("http://tracker", "//tracker"), "is not a URL of http, https, udp"),
        (replace("https://mirror", "mirror"), "is not a URL of http, https"),
        (replace("https://mirror.example/", "https:///"), "is not a URL"),
        (replace("https://mirror.example/", "https://[::1/"), "is not a URL"),
        (replace("tracker.example:80", "tracker.example:65536"), "is not a URL"),
        (replace("tracker.example:80", "tracker.example:http"), "is not a URL"),
        (replace("tracker.example:80/", "tracker.example:80/%0D%0AHost:+a"), "is not a URL"),
        (replace("tracker.example:80/", "tracker.example:80/%00"), "is not a URL"),
        (replace("example/k/", "example/k"), "is not the URL of a mirror"),
        (replace("example/k/", "example/%3Fk/"), "is not the URL of a mirror"),
        (replace("example/k/", "example/k%23/"), "is not the URL of a mirror"),
        (TEXT + "#key=", "is not key= and 52 characters"),
        (TEXT + "#" + "a" * 52, "is not key= and 52 characters"),
        (TEXT + SECRET + "a", "is not key= and 52 characters"),
        (TEXT + SECRET[:-1] + "b", "is damaged"),
        (TEXT + SECRET[:-1] + "A", "is damaged"),
        (TEXT + "&a=1" * 300, "more than 256 parts"),
        (TEXT + "&tr=http://h/" + "=" * 4000, "would be longer than 8192"),
    ],
)
def test_damaged_parts(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_link(text)


def test_a_link_cut_short_is_to_be_taken_whole() -> None:
    refused = 0
    for end in range(len("magnet:?"), len(TEXT)):
        try:
            parse_link(TEXT[:end])
        except (FormatError, UsageError) as err:
            assert "whole" in str(err.hint), end
            refused += 1
    assert refused > len(TEXT) / 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "magnet",
        "http://example.com/",
        "@aaaa/debian",
        TEXT + "\n",
        TEXT + "\0",
        TEXT + "&y=\udc80",
        TEXT.ljust(MAX_LINK_LENGTH + 1, "a"),
        "magnet:?xt=urn:btih:32333435363738393a3b3c3d3e3f404142434445&dn=debian.iso",
        "magnet:?xt=urn:btmh:1220caf1e1c30e81cb361b9ee167c4aa64228a7fa4fa9f6105232b28ad099f3a302e",
        "magnet:",
    ],
)
def test_what_is_no_link_of_ours(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_link(text)
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_parts_of_other_names_are_passed_over() -> None:
    assert parse_link(TEXT + "&so=0-3&kt=a+b&x.future=1") == LINK.public()


@pytest.mark.parametrize(
    "part",
    [
        "&tr=wss://tracker.example/",
        "&ws=ftp://mirror.example/debian",
        "&x.mirror=ipfs://mirror/",
        "&xt=urn:btmh:1220caf1e1c30e81cb361b9ee167c4aa64228a7fa4fa9f6105232b28ad099f3a302e",
        "&xt=urn:sha1:YNCKHTQCWBTRNJIV4WNAE52SJUQCZO5C",
    ],
)
def test_what_a_later_client_may_know_is_passed_over(part: str) -> None:
    assert parse_link(TEXT + part) == LINK.public()
    assert parse_link(TEXT.replace("magnet:?", f"magnet:?{part[1:]}&")) == LINK.public()


def test_an_info_hash_in_base_32() -> None:
    base32 = base64.b32encode(PACK).decode()
    for digits in (base32, base32.lower()):
        assert parse_link(TEXT.replace(PACK.hex(), digits)) == LINK.public()
    assert parse_link(TEXT.replace("&x.manifest", "&xt=urn:btih:zz&x.manifest")) == LINK.public()


@pytest.mark.parametrize(
    ("host", "read"),
    [
        ("my_host", "my_host"),
        ("_node._tcp.example", "_node._tcp.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_names_of_hosts_that_resolvers_know(host: str, read: str) -> None:
    assert parse_peer(f"{host}:6881") == (read, 6881)
    assert parse_link(f"{TEXT}&x.pe={host}:6881").peers[-1] == (read, 6881)
    assert parse_mirror(f"http://{host}:80/images/") == f"http://{read}:80/images/"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"<{text}>",
        lambda text: f"“({text})”",
        lambda text: f" {text}\r\n",
        lambda text: text[:100] + "\n  " + text[100:],
        lambda text: text[:100] + "\u200b" + text[100:200] + "\u00ad" + text[200:],
        lambda text: "\ufeff" + text,
        lambda text: text.replace("?", r"\?").replace("&", r"\&").replace("=", r"\="),
    ],
    ids=["mail", "quotes", "ends", "wrapped", "no width", "byte order", "shell"],
)
def test_what_pasting_does_to_a_link_is_undone(change: Callable[[str], str]) -> None:
    assert clean_pasted(change(TEXT + SECRET)) == TEXT + SECRET


def test_a_link_from_the_source_of_a_page_is_named() -> None:
    with pytest.raises(UsageError, match="&amp;"):
        parse_link(TEXT.replace("&", "&amp;"))


def test_the_longest_link_and_its_peers() -> None:
    peers = "".join(f"&x.pe=192.0.2.1:{port}" for port in range(1, MAX_PEERS + 20))
    text = (TEXT + peers + "&x.fill=").ljust(MAX_LINK_LENGTH, "a")
    assert len(parse_link(text).peers) == MAX_PEERS


def test_links_are_told_from_files_and_names() -> None:
    assert is_link("magnet:?x")
    assert is_link("MAGNET:?x")
    assert not is_link("./magnet:")
    assert not is_link("@key/label")


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ("::1", 65535), ("Host-1.example", 80)])
def test_peers(peer: tuple[str, int]) -> None:
    assert parse_peer(format_peer(peer)) == peer


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_peer_or_an_error(text: str) -> None:
    try:
        assert 1 <= parse_peer(text)[1] <= 65535
    except P2pcloopError as err:
        assert isinstance(err, FormatError)


@pytest.mark.parametrize("who", ["me:secret@", "me@", ":@"])
def test_a_mirror_with_a_users_name_is_refused(who: str) -> None:
    """Links are passed on, and what stands there is in each; the message does not repeat it."""
    with pytest.raises(FormatError) as caught:
        parse_mirror(f"https://{who}example.org/images/")
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    with pytest.raises(FormatError):
        parse_link(f"{TEXT}&x.mirror=https://{who}example.org/images/")


def test_parts_are_numbered_and_written_large_by_some() -> None:
    text = TEXT.replace("&tr=", "&tr.1=").replace("xt=", "xt.1=").replace("x.mt=", "X.MT=")
    assert text.count(".1=") == 2
    assert parse_link(text) == LINK.public()


def test_a_host_s_name_may_end_at_the_root() -> None:
    assert parse_peer("host.example.:6881") == ("host.example", 6881)
