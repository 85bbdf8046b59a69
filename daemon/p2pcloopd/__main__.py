"""`python -m p2pcloopd`."""

from p2pcloop.loading import loading

with loading():
    from p2pcloopd.node.main import main

main()
