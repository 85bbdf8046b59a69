from p2pcloop.protocol.waiting import describe_slow, describe_waiting


def test_a_slow_read_is_told_with_its_size_its_pace_and_its_peers() -> None:
    fields = {"rate": 612_400, "peers": ["10.0.0.1:6881", "10.0.0.2:6881"]}
    assert describe_slow(fields, 65_536) == "65.5 kB, 612.4 kB/s from 10.0.0.1:6881, 10.0.0.2:6881"


def test_nobody_answering_is_told_with_who_was_tried() -> None:
    fields = {"connected": False, "seconds": 12.3, "tried": []}
    assert describe_waiting(fields) == (
        "no peer reachable for 12 s, still trying; no peer is known"
    )


def test_a_server_that_sends_slowly_is_no_peer_that_cannot_be_reached() -> None:
    tried = ["http://10.0.0.2/ (asked, and not all has come)"]
    fields = {"connected": False, "arriving": True, "seconds": 9, "tried": tried}
    assert describe_waiting(fields) == (
        "a server sends slowly for 9 s, still trying; tried: http://10.0.0.2/ (asked, and not all"
        " has come)"
    )


def test_servers_that_were_tried_are_not_called_peers() -> None:
    tried = ["10.0.0.1:6881 (connection refused)", "http://10.0.0.2/: it ignores ranges"]
    assert describe_waiting({"connected": True, "seconds": 3, "tried": tried}) == (
        "no peer sends anything for 3 s, still trying; tried: 10.0.0.1:6881 (connection refused),"
        " http://10.0.0.2/: it ignores ranges"
    )
