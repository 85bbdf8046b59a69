"""The web page of a node: a process of its own, which p2pcloopd starts when a browser connects."""
