"""Which places a link passes on."""

from __future__ import annotations

import pytest

from p2pcloop.formats.link import parse_link
from p2pcloopd.node.links import _may_reach
from tests.support.ports import free_port
from tests.support.programs import Nodes

from .conftest import publish_version


@pytest.mark.parametrize(
    ("host", "from_elsewhere", "on_this_machine"),
    [
        ("example.org", True, True),
        ("192.168.1.7", True, True),
        ("10.0.0.1", True, True),
        ("fd00::7", True, True),
        ("127.0.0.1", False, True),
        ("127.3.4.5", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("localhost", False, True),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("fe80::1", False, False),
        ("169.254.3.4", False, False),
    ],
)
def test_loopback_is_for_this_machine_and_what_reaches_nobody_for_nobody(
    host: str, from_elsewhere: bool, on_this_machine: bool
) -> None:
    assert _may_reach(host, local=False) is from_elsewhere
    assert _may_reach(host, local=True) is on_this_machine


def test_links_of_public_images_name_the_trackers(nodes: Nodes, content: bytes) -> None:
    tracker = f"http://127.0.0.1:{free_port()}/announce"
    node = nodes.start(f'[discovery]\nannounce_trackers = ["{tracker}"]\n')
    made = publish_version(node, content)
    assert (made["announced"], parse_link(made["link"]).trackers) == (False, ())
    for public in (True, False):  # what is public stays so
        made |= node.call("seed_manifest", manifest=made["manifest"], public=public)
        assert (made["announced"], parse_link(made["link"]).trackers) == (True, (tracker,))
    quiet = nodes.start()
    made = publish_version(quiet, content)
    made = quiet.call("seed_manifest", manifest=made["manifest"], public=True)
    assert (made["announced"], parse_link(made["link"]).trackers) == (False, ())
