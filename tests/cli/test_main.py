"""The program as a whole: its help, what it loads, how errors leave."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from p2pcloop import errors
from p2pcloop.cli.commands import COMMANDS as TABLE
from p2pcloop.cli.main import cli
from p2pcloop.errors import P2pcloopError
from tests.support.command import Run

COMMANDS = [
    "boot",
    "run",
    "fetch",
    "info",
    "images",
    "log",
    "update",
    "verify",
    "ps",
    "attach",
    "exec",
    "cp",
    "logs",
    "display",
    "stop",
    "start",
    "suspend",
    "resume",
    "migrate",
    "seed",
    "publish",
    "unpublish",
    "squash",
    "optimize",
    "profile",
    "diff",
    "rebase",
    "import",
    "export",
    "mirror",
    "block",
    "mount",
    "umount",
    "netboot",
    "doctor",
    "status",
    "web",
    "picture",
    "metrics",
    "daemon",
    "config",
    "limit",
    "key",
    "name",
    "rm",
    "pin",
    "unpin",
    "gc",
]


def test_help_lists_every_command_in_a_line(p2pcloop: Run) -> None:
    ran = p2pcloop("--help")
    assert ran.code == 0
    listed = ran.out.partition("Options:")[2]
    for command in COMMANDS:
        assert f"\n  {command} " in listed
    assert list(TABLE) == COMMANDS
    assert "Examples:" in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet(command: str) -> None:
    found = cli.get_command(click.Context(cli), command)
    commands = list(found.commands.values()) if isinstance(found, click.Group) else [found]
    for each in commands:
        assert each is not None
        assert {"--quiet", "-q"} <= {name for option in each.params for name in option.opts}


def test_help_loads_no_command(home: Path) -> None:
    code = (
        "import sys; sys.argv = ['p2pcloop', '--help']\n"
        "from p2pcloop.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    bad = {'trio', 'rich', 'libtorrent', 'cryptography', 'zstandard', 'msgpack'}\n"
        "    print(*sorted(bad & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Usage: p2pcloop" in done.stdout
    assert done.stderr.split() == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_what_it_does_with_examples(p2pcloop: Run, command: str) -> None:
    ran = p2pcloop(command, "--help")
    assert ran.code == 0
    assert f"p2pcloop {command} " in ran.out.splitlines()[0]
    examples = ran.out.partition("Examples:")[2].splitlines()
    assert any(line.split()[:2] == ["p2pcloop", command] for line in examples)


@pytest.mark.parametrize(
    "command",
    [
        "seed",
        "info",
        "fetch",
        "export",
        "verify",
        "log",
        "update",
        "status",
        "key list",
        "name list",
        "daemon status",
    ],
)
def test_commands_that_print_facts_know_json_and_home(p2pcloop: Run, command: str) -> None:
    out = p2pcloop(*command.split(), "--help").out
    assert "--json" in out
    assert "--home DIR" in out
    assert "P2PCLOOP_HOME" in out


def test_version(p2pcloop: Run) -> None:
    assert p2pcloop("--version").out.startswith("p2pcloop, version ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("info /nonexistent/a.cloop", 7, "there is no file /nonexistent/a.cloop"),
        ("verify /nonexistent/a.cloop", 7, "there is no file"),
        ("export /nonexistent/a.cloop /dev/out.img", 7, "there is no file"),
        ("info magnet:?xt=urn:btih:00", 2, "no x.p2pcloop part"),
        ("info magnet:?x.p2pcloop=@a/b&x.p2pcloop=@a/b", 2, "has 2 parts"),
        ("info @k1y/debian", 2, "is not a key"),
        ("info @nothing", 2, "is not a name"),
        ("info /", 2, "is not a file"),
        ("daemon run --log-level loud", 2, "'loud' is not one of"),
        ("nothing", 2, "No such command"),
        ("info", 2, "Missing argument"),
        ("info --nothing a", 2, "No such option"),
        ("status", 9, "no p2pcloopd runs"),
        ("daemon status", 9, "no p2pcloopd runs"),
        ("fetch /etc/hostname", 2, "is here already"),
        ("seed /nonexistent/a.cloop --name Debian", 2, "is not a label"),
        ("seed /nonexistent/a.cloop --name debian", 7, "there is no file"),
        ("seed /nonexistent/日本.img", 7, "there is no file"),
        ("seed /", 2, "/ is not a file"),
        ("seed .", 2, ". is not a file"),
    ],
)
def test_errors_end_with_a_line_and_their_code(
    p2pcloop: Run, arguments: str, code: int, said: str
) -> None:
    ran = p2pcloop(*arguments.split())
    assert ran.code == code
    assert said in ran.err
    assert "Traceback" not in ran.err
    if ran.err.startswith("p2pcloop: ") and "is not a file" not in said:
        assert "\n  hint: " in ran.err


@pytest.mark.parametrize(
    ("typed", "meant"), [("imags", "images"), ("bot", "boot"), ("statsu", "status"), ("list", "")]
)
def test_a_command_that_does_not_exist_names_the_one_that_was_meant(
    p2pcloop: Run, typed: str, meant: str
) -> None:
    ran = p2pcloop(typed)
    assert (ran.code, ran.out) == (2, "")
    said = ran.err.rpartition("Error: ")[2].strip()
    expected = f"No such command '{typed}'."
    assert said.startswith(f"{expected} Did you mean: {meant}" if meant else expected)


def test_what_users_of_other_programs_type_does_the_same(p2pcloop: Run) -> None:
    assert p2pcloop("ls") == p2pcloop("images")


def test_alone_it_tells_what_to_do_first(p2pcloop: Run, home: Path) -> None:
    ran = p2pcloop()
    assert ran.code == 0
    assert f"No image is known in {home}" in ran.out
    assert "p2pcloop seed debian.cloop" in ran.out
    assert list(home.iterdir()) == [], "nothing is made"


def test_alone_it_tells_what_can_be_done_with_what_is_here(p2pcloop: Run, tmp_path: Path) -> None:
    (tmp_path / "raw.img").write_bytes(b"\1" * 4096)
    try:
        assert p2pcloop("seed", str(tmp_path / "raw.img"), "--raw", "--name", "one").code == 0
        said = p2pcloop().out
        assert said.startswith("1 image known, no guests running, p2pcloopd runs.")
        ref = next(line for line in said.splitlines() if "p2pcloop boot @" in line).split()[2]
        assert p2pcloop("info", ref).code == 0, "it can be typed as it stands"
    finally:
        p2pcloop("daemon", "stop")
    assert "p2pcloopd does not run" in p2pcloop().out


def test_an_empty_ref_is_told_as_such(p2pcloop: Run) -> None:
    """What a shell makes of an unset variable in quotes."""
    ran = p2pcloop("info", "")
    assert (ran.code, ran.out) == (2, "")
    assert "REF is empty" in ran.err


def test_a_hint_names_the_home_it_is_about(p2pcloop: Run, home: Path) -> None:
    assert f"p2pcloop daemon start --home {home}`" in p2pcloop("status").err


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "raw.img").write_bytes(b"\1")
    command = [sys.executable, "-c", "from p2pcloop.cli.main import main; main()"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "info", tmp_path / "raw.img"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == errors.StorageError.exit_code
    assert done.stderr.splitlines()[0] == (
        "p2pcloop: cannot use the standard output: No space left on device"
    )
    assert "Traceback" not in done.stderr


def test_every_error_has_an_exit_code_of_its_own() -> None:
    """Click's own errors end with 1 and 2; shells take 126 and up."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, P2pcloopError)
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) == 12
    assert all(0 < code < 126 for code in codes)


def test_the_manual_lists_every_exit_code() -> None:
    manual = (Path(__file__).parents[2] / "docs/commands.md").read_text()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, P2pcloopError):
            assert f"\n| {kind.exit_code} | {kind.__name__} |" in manual


@pytest.mark.parametrize(
    "words",
    [
        ("mirror", "x", ""),
        ("mirror", "x", "http://host/dir"),
        ("seed", ""),
        ("info", ""),
        ("images", "--home", ""),
    ],
)
def test_an_empty_place_or_a_url_is_refused(p2pcloop: Run, words: tuple[str, ...]) -> None:
    ran = p2pcloop(*words)
    assert (ran.code, len(ran.err.splitlines())) == (2, 2)
    assert "is empty" in ran.err or "is a URL" in ran.err


def test_an_error_of_stop_is_the_only_json(p2pcloop: Run) -> None:
    ran = p2pcloop("stop", "none", "--json")
    assert ran.json["error"]["exit_code"] == ran.code == 7


def test_a_file_whose_name_is_no_label_needs_one(p2pcloop: Run, tmp_path: Path) -> None:
    image = tmp_path / "日本.img"
    image.write_bytes(b"x")
    ran = p2pcloop("seed", image)
    assert (ran.code, "--name LABEL" in ran.err) == (2, True)
    assert f"no label can be made of the name of {image}" in ran.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("key", "list"), "no key yet"),
        (("key", "trust"), "no key of another user is trusted here"),
        (("name", "list"), "no short name yet"),
    ],
)
def test_a_list_that_is_empty_says_so(p2pcloop: Run, words: tuple[str, ...], told: str) -> None:
    """Not on standard output, which has one entry a line."""
    ran = p2pcloop(*words)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith(told)
    assert p2pcloop(*words, "--json").err == ""
