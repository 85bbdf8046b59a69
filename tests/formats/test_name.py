"""Names: one spelling for each, whatever looks alike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.name import (
    Name,
    check_label,
    format_key,
    is_label,
    parse_key,
    parse_name,
    suggest_label,
)

KEY = bytes(range(32))
TEXT = "aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypq"
"""RFC 4648 base32 of KEY, lower case, without padding."""

labels = st.from_regex(r"\A[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z").filter(lambda s: ".." not in s)


def test_a_name_byte_by_byte() -> None:
    assert str(Name(KEY, "debian-12")) == f"@{TEXT}/debian-12"
    assert parse_name(f"@{TEXT}/debian-12") == Name(KEY, "debian-12")


@given(st.binary(min_size=32, max_size=32), labels)
def test_names_are_read_as_they_were_written(key: bytes, label: str) -> None:
    assert parse_name(str(Name(key, label))) == Name(key, label)


@pytest.mark.parametrize("label", ["a", "0", "a" * 64, "a.b_c-d", "a--b", "v1.2.3"])
def test_labels(label: str) -> None:
    assert check_label(label) == label


@pytest.mark.parametrize(
    "label",
    [
        "",
        "a" * 65,
        "a/b",
        "/etc/passwd",
        ".",
        "..",
        "a..b",
        ".a",
        "a.",
        "-a",
        "a-",
        "_a",
        "Debian",
        "a b",
        "a\0b",
        "a\n",
        "\na",
        "a\x1b[2J",
        "d\N{CYRILLIC SMALL LETTER IE}bian",
        "debi\N{FULLWIDTH LATIN SMALL LETTER A}n",
        "de\N{ZERO WIDTH SPACE}bian",
        "a\N{RIGHT-TO-LEFT OVERRIDE}b",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "a\N{COMBINING ACUTE ACCENT}b",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "\udcff",
        "a%2fb",
        "a\\b",
    ],
)
def test_what_is_no_label(label: str) -> None:
    with pytest.raises(FormatError, match="is not a label") as caught:
        check_label(label)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT[:-1],
        TEXT + "a",
        TEXT.upper(),
        TEXT + "====",
        "1" + TEXT[1:],
        "0" + TEXT[1:],
        "\N{CYRILLIC SMALL LETTER A}" + TEXT[1:],
        TEXT[:-1] + "\n",
        "-" + TEXT[1:],
    ],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(FormatError, match="is not a key"):
        parse_key(text)


def test_only_one_last_character_spells_a_key() -> None:
    """52 characters hold 260 bits: the last four must be zero."""
    others = [TEXT[:-1] + last for last in "abcdefghijklmnopqrstuvwxyz234567"]
    taken = []
    for text in others:
        try:
            taken.append(parse_key(text))
        except FormatError as err:
            assert "bits that must be zero" in str(err)
    assert len(taken) == 2
    assert KEY in taken


@given(st.text(max_size=80))
def test_any_text_is_a_name_in_its_only_spelling_or_an_error(text: str) -> None:
    for candidate in (text, f"@{text}", f"@{TEXT}/{text}"):
        try:
            assert str(parse_name(candidate)) == candidate
        except FormatError as err:
            assert err.hint


def test_a_label_is_no_path_out_of_a_folder() -> None:
    for text in (f"{TEXT}/a", f"@{TEXT}", f"@{TEXT}/", f"@{TEXT}//a", f"@{TEXT}/a/b", "@/a", "@"):
        with pytest.raises(FormatError):
            parse_name(text)
    assert format_key(parse_key(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("KNOPPIX_V9.1CD-2021-01-25-EN", "knoppix_v9.1cd-2021-01-25-en"),
        ("my disk (2)", "my-disk-2"),
        ("..a..b--", "a.b"),
        ("x" * 70, "x" * 64),
        ("a" * 63 + ". b", "a" * 63),
    ],
)
def test_a_label_of_a_file_name(text: str, label: str) -> None:
    assert suggest_label(text) == label


@given(st.text(max_size=80))
def test_a_suggested_label_is_one_or_is_refused(text: str) -> None:
    assert is_label(suggest_label(text)) or suggest_label(text) == text
