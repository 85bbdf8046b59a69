"""`python -m p2pcloopd`."""

from p2pcloopd.node.main import main

main()
