"""All constants of the fetch scheduler, each with its unit and its reason.

Times are in seconds, sizes in bytes. docs/scheduling.md has the measurements behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        dispatch_patience: the same where a dispatcher gives each piece to one client at a time.
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
        server_concurrency: range requests at once of what peers do not bring: each waits for a
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
        first_stagger: before the metadata is known, the next mirror is asked where one does not
            answer for so long.
        first_patience: and the metadata is asked for as well after so long.
        guess: readahead on a guess is not worth more of the line: one guess in five is wrong, and a
            right one saves no more than the pauses between two reads.
        metadata_follow: the metadata is asked for so long after the first chunk arrived: what a
            reader wants next goes first.
    """

    min_window: int = 128 << 10
    max_window: int = 16 * MIB
    window_seconds: float = 0.25
    stall: float = 1.0
    crowd_patience: float = 0.25
    dispatch_patience: float = 1.0
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
    first_stagger: float = 1.0
    first_patience: float = 3.0
    guess: float = 0.012
    metadata_follow: float = 0.1


TUNING = Tuning()
"""What a node has."""
