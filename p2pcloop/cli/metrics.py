"""`p2pcloop metrics`: what the node counts, as Prometheus reads it."""

from __future__ import annotations

import click

from p2pcloop.cli.options import home_option
from p2pcloop.client.control_client import ControlClient
from p2pcloop.store.home import Home

_EPILOG = """
\b
Examples:
  p2pcloop metrics
  p2pcloop metrics | grep ^p2pcloop_content
  p2pcloop config set metrics.listen 127.0.0.1:9190     # for a Prometheus on this machine
"""


@click.command(epilog=_EPILOG)
@home_option
def command(home: Home) -> None:
    """Print what the node counts, in the text format of Prometheus.

    docs/metrics.md lists the metrics. With the setting metrics.listen p2pcloopd serves them itself,
    at http://ADDRESS/metrics, to programs on this machine. Exit code 9 if no p2pcloopd runs.
    """
    with ControlClient.connect(home) as client:
        text: bytes = client.call("metrics")["text"]
    click.echo(text.decode(), nl=False)
