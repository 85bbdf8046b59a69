"""REF: files, links, places and short names told apart; `p2pcloop name`."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop import errors
from p2pcloop.client import refs
from p2pcloop.client.refs import read_ref, report_waiting
from p2pcloop.errors import FormatError, NotHereError, UsageError
from p2pcloop.formats.link import Link
from p2pcloop.formats.name import Name
from p2pcloop.store.home import Home
from p2pcloop.store.names import ShortNames
from tests.support.command import Run

NAME = Name(bytes(range(32)), "debian")
LINK = Link(NAME, b"m" * 32, b"t" * 20)


@pytest.fixture
def node(home: Path) -> Home:
    return Home.at(home)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_each_form(node: Home, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    ShortNames(node).add("knoppix", NAME)
    assert read_ref(str(LINK), node) == str(LINK)
    assert read_ref(str(NAME), node) == str(NAME)
    assert read_ref("knoppix", node) == str(NAME)
    assert read_ref(f"https://host/a/{NAME}", node) == f"https://host/a/{NAME}"
    for directory in ("mirror", "./mirror", f"{tmp_path}/mirror", "mirror/../mirror"):
        asked = read_ref(f"{directory}/{NAME}", node)
        assert isinstance(asked, str)
        assert asked.startswith("/")
        assert asked.endswith(f"mirror/{NAME}")
    for file in ("a.cloop", "./knoppix", "other", "a/b", "a@b", "x/a@b.img", "a/@b"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
        assert read_ref(file, node) == Path(file)


def test_a_directory_does_not_hide_a_short_name(node: Home, tmp_path: Path) -> None:
    ShortNames(node).add("knoppix", NAME)
    (tmp_path / "knoppix").mkdir()
    assert read_ref("knoppix", node) == str(NAME)
    (tmp_path / "debian").mkdir()
    assert read_ref("debian", node) == Path("debian")


def test_words_that_are_known_nowhere(node: Home) -> None:
    with pytest.raises(NotHereError, match="no file debian, and no image of that name") as caught:
        read_ref("debian", node)
    assert "`p2pcloop images` lists" in str(caught.value.hint)
    with pytest.raises(NotHereError, match=r"there is no file \./debian$"):
        read_ref("./debian", node)


def test_the_label_of_somebody_elses_image_tells_how_to_name_it(node: Home) -> None:
    ShortNames(node).add("knoppix", NAME)
    with pytest.raises(NotHereError, match="you have published no image as debian") as caught:
        read_ref("debian", node)
    short = f"@{str(NAME)[1:5]}/debian"
    assert short in str(caught.value.hint)
    assert read_ref(short, node) == str(NAME)


@pytest.mark.parametrize("ref", [f"{str(NAME)[:9]}…/debian", "magnet:?xt=…", f"{LINK}"[:40] + "…"])
def test_a_shortened_ref_is_told_as_such(node: Home, ref: str) -> None:
    with pytest.raises(UsageError, match="is shortened"):
        read_ref(ref, node)


@pytest.mark.parametrize("command", ["rm", "unpublish", "boot", "pin"])
def test_what_is_not_here_is_not_called_a_file(p2pcloop: Run, command: str) -> None:
    ran = p2pcloop(command, "debian")
    assert ran.code == errors.NotHereError.exit_code
    assert "no image of that name is known here" in ran.err


def test_run_tells_where_the_guests_command_stands(p2pcloop: Run) -> None:
    ran = p2pcloop("run", "debian.cloop", "ls", "-l")
    assert ran.code == errors.UsageError.exit_code
    assert "No such option '-l'" in ran.err
    assert "REF -- ls -l" in ran.err
    assert "REF -- ls" not in p2pcloop("run", "--ovrlay", "a", "debian.cloop", "--", "ls").err


@pytest.mark.parametrize(
    "ref",
    [f"ftp://x/{NAME}", "sftp://x/y.img", f"rsync://x/{NAME}", "ed2k://|file|x|", "file:///a.img"],
)
def test_a_url_of_another_scheme_is_no_file(node: Home, ref: str) -> None:
    with pytest.raises(
        UsageError, match=f"does not read {ref.partition(':')[0]}:// URLs"
    ) as caught:
        read_ref(ref, node)
    wanted = "give the path: /a.img" if ref.startswith("file") else "https://HOST/DIR/"
    assert wanted in str(caught.value.hint)


@pytest.mark.parametrize("base", ["www.example.org", "https:/example.org"])
def test_a_mirror_whose_url_has_no_scheme_is_told_so(node: Home, base: str) -> None:
    with pytest.raises(NotHereError, match="not a directory") as caught:
        read_ref(f"{base}/{NAME}", node)
    assert "begins with https://" in str(caught.value.hint)


def test_a_file_may_be_called_like_a_url(node: Home, tmp_path: Path) -> None:
    (tmp_path / "ftp:").mkdir()
    (tmp_path / "ftp:/x.img").touch()
    assert read_ref("ftp://x.img", node) == Path("ftp:/x.img")


def test_a_file_goes_before_the_label_of_an_image_and_says_so(
    node: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("p2pcloop.store.known_names.own_name", lambda *_: NAME)
    assert read_ref("debian", node) == str(NAME)
    assert capsys.readouterr().err == ""
    (tmp_path / "debian").touch()
    assert read_ref("debian", node) == Path("debian")
    said = capsys.readouterr().err
    assert said == "debian is a file here, and is taken; your image is @aaaq/debian\n"


def test_a_short_name_that_is_a_file_too(node: Home, tmp_path: Path) -> None:
    ShortNames(node).add("knoppix", NAME)
    (tmp_path / "knoppix").touch()
    with pytest.raises(UsageError, match="is a file here, and a short name of @") as caught:
        read_ref("knoppix", node)
    assert "./knoppix" in str(caught.value.hint)
    assert read_ref("./knoppix", node) == Path("knoppix")


@pytest.mark.parametrize(
    ("ref", "error"),
    [
        ("", UsageError),
        ("@", FormatError),
        ("@nob0dy/debian", FormatError),
        (f"{NAME}/..", FormatError),
        (f"{str(NAME)[:-6]}..", FormatError),
        (f"{str(NAME)[:-6]}DEBIAN", FormatError),
        (f"{str(NAME)[:-6]}d\N{CYRILLIC SMALL LETTER IE}bian", FormatError),
        (f"{str(NAME)[:-6]}deb\x1bian", FormatError),
        (f"{str(NAME)[:-6]}a/b", FormatError),
        ("http://127.0.0.1/image.cloop", FormatError),
        (f"http://127.0.0.1/?x/{NAME}", FormatError),
        (f"there/{NAME}", NotHereError),
        ("./@nob0dy/debian", FormatError),
        (f"{LINK}#key=short", FormatError),
        (f"{LINK}#key={'a' * 51}b", FormatError),
        (f"{LINK}#nonsense", FormatError),
    ],
)
def test_what_is_none(node: Home, ref: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_ref(ref, node)


@pytest.mark.parametrize("command", ["info", "fetch", "boot", "log", "update", "verify"])
def test_a_bad_label_is_one_line_and_changes_nothing(
    p2pcloop: Run, home: Path, command: str
) -> None:
    for label in (
        "..",
        "a/b",
        "A",
        "deb\N{CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I}an",
    ):
        if command == "boot":
            p2pcloop("boot", "@x/y")  # it makes the home
        before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
        ran = p2pcloop(command, f"{str(NAME)[:-6]}{label}")
        assert (ran.code, ran.out) == (errors.UsageError.exit_code, "")
        assert len(ran.err.splitlines()) == 2
        assert "is not a label" in ran.err
        assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_files_have_no_versions(p2pcloop: Run, tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(4096))
    for words in (("info", "a.img", "--at", "1"), ("log", "a.img"), ("update", "a.img")):
        ran = p2pcloop(*words)
        assert ran.code == errors.UsageError.exit_code
        assert "no versions" in ran.err
    for at in ("0", "-1", "x", str(1 << 54)):
        assert p2pcloop("info", "a.img", "--at", at).code == 2


def test_a_command_that_waits_tells_each_cause_once_and_once_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(refs, "_told", set())
    fields = {"connected": False, "seconds": 3.0, "tried": ["10.0.0.1:6881 (no answer yet)"]}
    for changed in ({}, {"seconds": 6.0}, {"tried": ["10.0.0.1:6881 (connection refused)"]}):
        report_waiting("waiting", fields | changed)
    first, hint, second = capsys.readouterr().err.splitlines()
    assert "no answer yet" in first
    assert hint.startswith("  hint: see that p2pcloopd runs there")
    assert "connection refused" in second


def test_short_names_are_added_listed_and_forgotten(p2pcloop: Run, home: Path) -> None:
    assert p2pcloop("name", "list", "--json").json == {"names": {}}
    assert p2pcloop("name", "add", "knoppix", NAME).out == f"knoppix stands for {NAME}\n"
    assert p2pcloop("name", "add", "linked", LINK).code == 0
    assert p2pcloop("name", "add", "placed", f"https://host/{NAME}").code == 0
    listed = p2pcloop("name", "list", "--json").json["names"]
    assert listed == dict.fromkeys(["knoppix", "linked", "placed"], str(NAME))
    assert f"knoppix  {NAME}\n" in p2pcloop("name", "list").out
    before = (home / "short-names").read_bytes()
    for words in (
        ("add", "knoppix", Name(NAME.key, "other")),
        ("add", "../x", NAME),
        ("add", "x", "@x/y"),
        ("add", "x", "file.cloop"),
        ("forget", "nobody"),
    ):
        ran = p2pcloop("name", *words)
        assert ran.code in (2, 7)
        assert ran.out == ""
    assert (home / "short-names").read_bytes() == before
    assert p2pcloop("name", "forget", "knoppix").code == 0
    assert "knoppix" not in p2pcloop("name", "list").out
