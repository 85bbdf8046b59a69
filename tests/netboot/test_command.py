"""The command line of `p2pcloop netboot`."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from p2pcloop.errors import UsageError
from p2pcloopd.commands.netboot import command, publisher_words


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets so far")
@pytest.mark.parametrize("bad", ["a 'b", "a='\"'", "a#b"])
def test_words_that_cannot_be_passed_on_are_refused(bad: str) -> None:
    words = ["image", "--lan", "none0", "--append", bad]
    with pytest.raises(UsageError, match="kernel"):
        CliRunner().invoke(command, words, catch_exceptions=False)


@pytest.mark.parametrize("bad", ["a 'b", "a='\"'", "a#b"])
def test_words_of_a_publisher_are_refused_in_his_name(bad: str) -> None:
    assert publisher_words("@key/debian", "quiet ro") == ("quiet", "ro")
    with pytest.raises(UsageError, match="the publisher of @key/debian gave it words"):
        publisher_words("@key/debian", bad)
