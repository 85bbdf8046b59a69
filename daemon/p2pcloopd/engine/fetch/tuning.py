"""All constants that decisions of the engine depend on, each with its unit and its reason.

Times are in seconds, sizes in bytes. docs/scheduling.md has the measurements behind them. Limits
of formats and of memory stand where they are kept, and libtorrent's settings in bt/settings.py.
"""

from __future__ import annotations

from p2pcloop.frozen import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Tuning:
    """One set of constants; a test may have another.

    Attributes:
        min_window, max_window, window_seconds: readahead and backfill ask peers for what arrives
            in `window_seconds` at the present rate, within these bounds. A line is kept busy by its
            rate times its round trip; a reader waits behind all that was asked for.
        stall: a read, or readahead, stalls that got nothing for so long; idle peers are then asked
            for the same.
        crowd_patience: a reader in a crowd waits so long for the piece to come from other clients.
        dispatch_patience: the same where a dispatcher gives each piece to one client at a time, and
            `crowd_gap` more for each other client; twice that for all clients but one.
        crowd_gap: in a crowd nothing may arrive for so much longer, for each other client, before
            it stalls or peers count as silent: all share the seeder's uplink, so what each gets
            comes in gaps. What a server sent to one of them meanwhile would take that uplink from
            all, and make the gaps longer.
        crowd_linger: a crowd is one until nothing was read ahead for so long: what its guests read
            next is the same.
        look: between two looks at what other clients have, while something is read ahead:
            libtorrent does not tell.
        look_others: between two looks at who they are.
        shared: so much is asked for at once of what other clients of a crowd have: libtorrent
            shares it out among them.
        rare: so many pieces are asked for at once of those that only complete seeders have: more
            than libtorrent asks a peer for in a crowd (settings.py), so that such a seeder is asked
            for nothing else.
        crowd_piece: a miss in a crowd comes by its exact range where a piece is larger than this
            for each client: one piece for all of them would cost more than the bytes for each.
        dispatch_concurrency: requests that all clients of a crowd have at a dispatcher together.
            More would only wait in the queue of a slow line.
        dispatch_per_client: those that one client has.
        dispatch_retry: a dispatcher is asked again after so long where all that it was asked for
            went to other clients.
        dispatch_cooldown: it is left alone for so long after it failed.
        exact_hedge: where no server sends anything for so long, peers are asked, too,
        exact_limit: and where a request takes so long.
        exact_cooldown: exact ranges are not asked for so long after a request failed.
        exact_range: the most that one request for exact pieces asks for.
        rest_concurrency: such requests at once that no reader waits for: each takes a round trip.
        server_concurrency: range requests at once of what peers do not send: each waits for a
            round trip, or for a new connection.
        min_range, max_range, range_seconds: such a request asks for what arrives in so long, within
            these bounds: less would be mostly round trips, more would keep a reader waiting.
        silent: peers that are connected, or are being tried, have so long before servers are asked
            for what they do not send.
        late: a web seed is asked for what peers did not send in so long.
        server_hedge: peers are asked for what a server did not send in so long.
        absent: no server is asked for so long for a piece that none of them has: some are nodes
            that have a part.
        server_retry: after a failure of which no server says when to ask again.
        whole_unsaved: bytes of a whole file that are handed over before libtorrent has taken them.
        small_torrent, foreign_window: foreign clients choke a peer that wants nothing, if only for
            a moment. A torrent up to the first is asked of them whole, and of others the second at
            least.
        foreign_look, unknown_look: between two looks at who is connected, where foreign clients
            are, and where none is yet.
        interest_linger: interest in foreign clients lasts so long after the last read:
            transmission looks that often who is interested.
        fill_quiet: backfill waits until no reader has waited for so long.
        complete_idle: the rest of pieces that are here in part waits until nothing was read for so
            long: boots right after one another are one,
        complete_quiet: and each step of it until no reader has waited for so long.
        complete_window: bytes of pieces that are completed at once: a reader may find them in its
            way.
        complete_patience: pieces that do not arrive within this give way to others.
        assemble_quiet: no reader must have waited for so long before a piece is put together of
            what is here: its hash takes the processor.
        save_after, save_bytes: arrived pieces are made durable after so long, or once they are so
            many.
        flush: how long libtorrent may take to write its cache. Nothing depends on it: what is not
            in the file fails the comparison.
        write_quiet, write_after, write_bytes: provisional bytes are written once no reader has
            waited for so long, or so long after the first of them, or once there are so many: a
            guest that waits has the processor to itself. Until then SIGKILL loses them.
        unwritten: so many are kept in memory where the disk takes nothing.
        refused: a server that sent wrong bytes is asked for nothing of the layer for so long,
            although commands name it: it may be mended by then.
        first_stagger: before the metadata is known, the next mirror is asked where one does not
            answer for so long.
        first_patience: and the metadata is asked for as well after so long.
        guess: readahead on a guess is not worth more of the line: one guess in five is wrong, and a
            right one saves no more than the pauses between two reads.
        metadata_follow: once the first chunk has arrived, the metadata is asked for when no reader
            has waited for so long: what a reader wants next goes first, and in a crowd each client
            takes these bytes from the seeder's line,
        metadata_late: or after so long.
        metadata_retry: mirrors that alone may have it are asked again after so long.
        lookahead: bytes of a stream that are wanted at once; policy.py chooses among them.

        peer_retry: peers that the user named, and that are not connected, are tried so often.
        peer_silent: a peer that sent nothing for so long is silent: idle ones are asked for what it
            was asked for.
        peers_stall: where nothing arrives for so long, the user is told, and peers are searched for
            so often.
        peers_search: between two searches for peers that were not named, where something arrives.
        ban: bans are forgotten when data was needed for so long and nothing arrived: the peers that
            are left do not have it, and a banned one may be a seed that its user has mended since.
        end_game: idle peers are asked for the same blocks for so long: within it libtorrent takes a
            peer that does not answer for useless.
        tracker_retry: between two lookups of a tracker's name that is not found.
        rate_seconds: a rate is what arrived in so long,
        http_rate_seconds: and over HTTP in so long: an answer is counted when all of it is here.
        recent: bytes of pieces that are kept in memory when they have arrived: a chunk's neighbour
            often wants the same one.
        idle_concurrency: torrents of which pieces are completed at once.

        disk_retry: after an error of the disk readers get the same error for so long.
        in_place_look: between two looks at files that are seeded where they lie.
        compare_step: bytes that are compared with their hashes at once; then it may be cancelled.
        compare_concurrency: threads that compare what other clients ask for: pieces have up to
            16 MiB, and a range may touch two.
        compare_holds: a comparison counts for so long: disks rot slowly.
        heal, heal_pause: what was lost on the disk is asked for so long, and then not for so long:
            what is asked for keeps a torrent from giving room back.
    """

    min_window: int = 128 << 10
    max_window: int = 16 * MIB
    window_seconds: float = 0.25
    stall: float = 1.0
    crowd_patience: float = 0.25
    dispatch_patience: float = 1.0
    crowd_gap: float = 0.25
    crowd_linger: float = 5.0
    look: float = 0.05
    look_others: float = 0.25
    shared: int = 2 * MIB
    rare: int = 4
    crowd_piece: int = 32 << 10
    dispatch_concurrency: int = 8
    dispatch_per_client: int = 4
    dispatch_retry: float = 0.1
    dispatch_cooldown: float = 10.0
    exact_hedge: float = 1.0
    exact_limit: float = 10.0
    exact_cooldown: float = 10.0
    exact_range: int = MIB
    rest_concurrency: int = 8
    server_concurrency: int = 4
    min_range: int = 256 << 10
    max_range: int = 4 * MIB
    range_seconds: float = 0.25
    silent: float = 1.0
    late: float = 3.0
    server_hedge: float = 2.0
    absent: float = 10.0
    server_retry: float = 1.0
    whole_unsaved: int = 8 * MIB
    small_torrent: int = 4 * MIB
    foreign_window: int = MIB
    foreign_look: float = 1.0
    unknown_look: float = 0.05
    interest_linger: float = 10.0
    fill_quiet: float = 0.5
    complete_idle: float = 30.0
    complete_quiet: float = 2.0
    complete_window: int = 64 << 10
    complete_patience: float = 30.0
    assemble_quiet: float = 0.1
    save_after: float = 1.0
    save_bytes: int = 8 * MIB
    flush: float = 10.0
    write_quiet: float = 0.1
    write_after: float = 1.0
    write_bytes: int = 4 * MIB
    unwritten: int = 16 * MIB
    refused: float = 600.0
    first_stagger: float = 1.0
    first_patience: float = 3.0
    guess: float = 0.012
    metadata_follow: float = 3.0
    metadata_late: float = 30.0
    metadata_retry: float = 2.0
    lookahead: int = 4 * MIB

    peer_retry: float = 1.0
    peer_silent: float = 1.0
    peers_stall: float = 10.0
    peers_search: float = 60.0
    ban: float = 30.0
    end_game: float = 30.0
    tracker_retry: float = 60.0
    rate_seconds: float = 0.1
    http_rate_seconds: float = 3.0
    recent: int = 16 * MIB
    idle_concurrency: int = 4

    disk_retry: float = 1.0
    in_place_look: float = 3.0
    compare_step: int = 64 * MIB
    compare_concurrency: int = 4
    compare_holds: float = 24 * 3600.0
    heal: float = 60.0
    heal_pause: float = 600.0


TUNING = Tuning()
"""What a node has."""
