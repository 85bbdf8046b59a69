"""Images that were not made for p2pcloop: each gives its login on the console that its user sees,
and what is changed in it goes from node to node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import Guest, Node, Nodes
from tests.support.stock_images import STOCK, stock_image
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e

SLOW = 3 * BOUND
"""Seconds after which a boot or an end has failed, on a busy machine as well."""

READ = "cat /root/kept; grep -rl autologin /etc; echo o > /proc/sysrq-trigger; sleep 60"
"""Shows what was kept, and files that would have been changed to log a user in."""

ON_THE_SYSTEMS_KERNEL = ("bookworm", "busybox", "sysvinit")
"""Images that are changed there; the others have the newer one. All are read there."""


@pytest.fixture(scope="module")
def three() -> Iterator[list[Node]]:
    """A publisher, one who changes, and one who reads."""
    with Nodes() as nodes:
        yield [nodes.make() for _ in range(3)]


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_image_is_changed_and_passed_on(
    three: list[Node], tmp_path: Path, name: str
) -> None:
    publisher, changer, reader = three
    link = publisher.seed(stock_image(name), name)["link"]
    overlay = tmp_path / "mine.delta"
    kernel = ("--kernel", "system") if name in ON_THE_SYSTEMS_KERNEL else ()
    with Guest(changer, link, "--overlay", overlay, "--autologin", *kernel) as guest:
        guest.expect(r"# (\x1b\[6n)?$", SLOW)
        assert guest.run("tty", SLOW).strip() in ("/dev/tty1", "/dev/console")
        guest.run("echo mine > /root/kept && sync", SLOW)
        if name == "openrc":
            guest.kill()  # its scripts take half a minute to end
        else:
            guest.send_line("poweroff")
            assert guest.wait(SLOW) == 0, guest.said
    made = changer.json("publish", overlay, "--name", f"my-{name}")
    assert made["layers"] == 2
    words = ("--append", f"quiet init=/bin/sh -- -c '{READ}'", "--kernel", "system")
    with Guest(reader, made["link"], *words) as guest:
        assert guest.wait(SLOW) == 0, guest.said
    said = [line.strip() for line in guest.printed.splitlines()]
    assert "mine" in said
    assert not [line for line in said if line.startswith("/etc/")]


@pytest.mark.parametrize("name", ["bookworm", "busybox"])
def test_a_locked_root_is_told_before_the_prompt(three: list[Node], name: str) -> None:
    with Guest(three[1], stock_image(name)) as guest:
        guest.expect("p2pcloop: root is locked in this image", SLOW)
        guest.expect("login: $", SLOW)
        guest.kill()


def test_a_login_on_a_serial_line_is_not_waited_for(three: list[Node], tmp_path: Path) -> None:
    """Guests have no such lines: systemd would wait for one, and its login would fail endlessly."""
    image, overlay = stock_image("bookworm"), tmp_path / "mine.delta"
    wanted = "/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service"
    unit = "/lib/systemd/system/serial-getty@.service"
    three[1].run("run", image, "--overlay", overlay, "--", "ln", "-s", unit, wanted)
    with Guest(three[1], image, "--overlay", overlay, "--autologin") as guest:
        guest.expect(r"# (\x1b\[6n)?$", SLOW)
        assert guest.run("systemctl is-system-running --wait", SLOW).strip() == "running"
        state = guest.run("systemctl is-enabled serial-getty@ttyS0 || true", SLOW).strip()
        assert state == "masked-runtime"
        guest.kill()
