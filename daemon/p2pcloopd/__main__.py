"""`python -m p2pcloopd`."""

from p2pcloopd.main import main

main()
