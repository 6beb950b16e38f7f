"""The fifty faults: what is expected of each, how it is brought about, and which tests are the evidence.

Evidence is named as pytest names tests, without parameters. ``not_run`` says why a row has none.
"""

import msgspec

_CHAOS = "tests/reliability/test_chaos.py::test_"
_CLIENTS = "tests/reliability/test_clients.py::test_"
_GATEWAYS = "tests/reliability/test_gateways.py::test_"
_PROVIDERS = "tests/reliability/test_providers.py::test_"
_STORES = "tests/reliability/test_stores.py::test_"
_NETWORK = "tests/reliability/test_network.py::test_"
_ENDINGS = "tests/exchange/test_endings.py::test_"
_FAULTS = "tests/exchange/test_faults.py::test_"
_BEATS = "tests/exchange/test_heartbeats.py::test_"
_SETTLE = "tests/limits/test_scripts_settle.py::Test"

LEAVES = f"{_CLIENTS}a_client_that_leaves_while_the_provider_is_idle_pays_for_what_it_was_sent"


class Row(msgspec.Struct, frozen=True):
    """One fault of the matrix."""

    number: int
    fault: str
    expected: str
    injected: str
    evidence: tuple[str, ...] = ()
    not_run: str = ""


ROWS = (
    Row(
        1,
        "client closes while the provider is idle",
        "noticed at once; the provider is hung up on; charged for what was sent; hold and slot free",
        "20 clients close after three tokens; the crowd's leavers",
        (
            LEAVES,
            f"{_ENDINGS}a_client_that_leaves_pays_for_what_it_was_sent",
            f"{_CHAOS}nothing_goes_wrong_where_nothing_fails",
        ),
    ),
    Row(
        2,
        "client resets its connection",
        "as 1, and no error in the log",
        "SO_LINGER 0",
        (LEAVES, f"{_CHAOS}nothing_goes_wrong_where_nothing_fails"),
    ),
    Row(
        3,
        "client vanishes without a word",
        "noticed when nothing was acknowledged for 30 s, then as 1",
        "a client in a network namespace that goes silent",
        (f"{_NETWORK}a_client_that_vanishes_is_noticed",),
    ),
    Row(
        4,
        "client reads nothing",
        "memory bounded; cut at the send deadline, charged what was sent",
        "a small receive buffer and no read",
        (f"{_ENDINGS}a_client_that_stops_reading_is_cut_and_its_connection_reset",),
    ),
    Row(5, "client closes its half", "taken as gone", "shutdown(SHUT_WR) after three tokens", (LEAVES,)),
    Row(
        6,
        "client leaves during admission",
        "hold voided, nothing charged, no provider asked",
        "close while Redis is stopped",
        (f"{_CLIENTS}a_client_that_leaves_during_admission_gets_everything_back",),
    ),
    Row(7, "client leaves while queued", "its ticket goes", "-", not_run="the gateway refuses instead of queueing"),
    Row(
        8,
        "the same request twice at once",
        "one runs, the other gets 409",
        "two requests with one idempotency key",
        (f"{_CLIENTS}an_idempotency_key_runs_once",),
    ),
    Row(
        9,
        "a retry after success",
        "409, no second charge",
        "the same request again",
        (f"{_CLIENTS}an_idempotency_key_runs_once",),
    ),
    Row(10, "the same key with another body", "422", "-", (f"{_CLIENTS}an_idempotency_key_runs_once",)),
    Row(
        11,
        "gateway killed, then restarted",
        "every stream charged exactly by its journal; holds free",
        "SIGKILL of one of three under load",
        (
            f"{_CHAOS}a_killed_gateway_that_returns_charges_what_its_journal_says",
            f"{_ENDINGS}a_killed_gateway_charges_what_it_had_forwarded",
            "tests/limits/test_settlements.py::TestRecovery::test_the_streams_of_a_killed_gateway_are_posted_once",
        ),
    ),
    Row(
        12,
        "gateway killed, never restarted, its journal lost",
        "another one reaps; undercharged by less than a slice per stream; slots free",
        "SIGKILL, journal deleted",
        (
            f"{_CHAOS}a_gateway_lost_with_its_journal_costs_less_than_a_slice_per_stream",
            f"{_FAULTS}another_replica_frees_what_a_killed_gateway_held",
        ),
    ),
    Row(
        13,
        "gateway frozen longer than its lease",
        "forwards nothing more of what was reaped; corrected exactly",
        "SIGSTOP until reaped, SIGCONT",
        (
            f"{_CHAOS}a_gateway_frozen_beyond_its_lease_forwards_nothing_it_does_not_hold",
            "tests/limits/test_reservation.py::TestLease::test_a_process_that_slept_while_it_was_reaped_forwards_nothing_more",
        ),
    ),
    Row(
        14,
        "event loop blocked for 2 s",
        "leases survive",
        "a busy signal handler in one of two gateways",
        (f"{_GATEWAYS}an_event_loop_that_blocks_for_two_seconds_loses_no_lease",),
    ),
    Row(
        15,
        "SIGTERM with open streams",
        "new requests 503; running ones may finish within the grace, then are told; all settled before the exit",
        "SIGTERM",
        (
            f"{_GATEWAYS}a_gateway_that_is_told_to_stop_ends_and_settles_everything_first",
            f"{_ENDINGS}a_running_stream_may_finish_while_the_gateway_drains",
            f"{_ENDINGS}a_stream_that_outlasts_the_drain_is_told_and_settled",
        ),
    ),
    Row(
        16,
        "SIGTERM twice",
        "exits at once; settled at the next start",
        "two signals",
        (f"{_GATEWAYS}a_second_signal_ends_a_gateway_at_once_and_its_journal_has_the_truth",),
    ),
    Row(
        17,
        "all gateways and Redis die together",
        "journals and append-only file agree after the restart",
        "SIGKILL of all",
        (f"{_CHAOS}all_gateways_and_redis_may_die_together",),
    ),
    Row(
        18,
        "Redis killed, fsync every second",
        "no acknowledged write lost; streams go on",
        "SIGKILL, restart",
        (f"{_CHAOS}a_redis_that_is_killed_and_restarted_is_survived",),
    ),
    Row(
        19,
        "Redis killed, fsync always",
        "as 18",
        "SIGKILL, restart",
        (
            f"{_CHAOS}a_redis_that_is_killed_and_restarted_is_survived",
            f"{_FAULTS}redis_restarting_within_a_lease_is_not_noticed_by_a_stream",
        ),
    ),
    Row(
        20,
        "Redis loses the last 1.5 s",
        "told again by the gateways; absorbed 0",
        "its folder put back from a copy, with ample and with exhausted credit",
        (f"{_CHAOS}a_redis_restored_from_an_old_copy_is_told_what_it_lost",),
    ),
    Row(
        21,
        "failover to a replica that lags",
        "as 20; streams survive the outage with their slice",
        "replica stopped, master killed a second later",
        (f"{_STORES}a_failover_to_a_replica_that_lags_is_told_what_it_lost",),
    ),
    Row(
        22,
        "Redis away for 7 s",
        "new requests 503; running ones to the end of their hold; nothing lost",
        "SIGKILL, 7 s, start",
        (
            f"{_CHAOS}seven_seconds_without_redis_close_the_door_and_lose_nothing",
            f"{_FAULTS}without_redis_new_requests_are_refused_and_running_ones_end_with_their_hold",
        ),
    ),
    Row(
        23,
        "Redis hangs",
        "calls are repeated without harm",
        "SIGSTOP for 0.9 s, three times",
        (
            f"{_CHAOS}a_redis_that_hangs_makes_calls_ambiguous_and_changes_nothing",
            "tests/limits/test_redis.py::test_a_redis_that_hangs_is_given_up_and_late_calls_do_no_harm",
        ),
    ),
    Row(
        24,
        "Redis out of memory",
        "admissions 503, running streams keep their slice, settlements wait, no script half done",
        "maxmemory below what is used, for 2 s",
        (
            f"{_CHAOS}a_redis_out_of_memory_refuses_and_recovers",
            "tests/limits/test_redis.py::test_where_memory_is_full_a_script_does_all_or_nothing",
        ),
    ),
    Row(
        25,
        "Redis may not write (disk full)",
        "as 24",
        "a bound on its files' size",
        (
            f"{_STORES}a_redis_whose_disk_is_full_refuses_and_recovers",
            "tests/limits/test_redis.py::test_a_redis_that_may_not_write_is_unavailable",
        ),
    ),
    Row(
        26,
        "Redis forgets its scripts",
        "not noticed",
        "SCRIPT FLUSH ten times a second",
        (f"{_CHAOS}forgotten_scripts_are_not_noticed",),
    ),
    Row(
        27,
        "all connections to Redis cut",
        "not noticed",
        "CLIENT KILL 15 times",
        (
            f"{_CHAOS}connections_that_are_cut_are_not_noticed",
            "tests/limits/test_redis.py::test_a_connection_that_was_cut_is_replaced",
        ),
    ),
    Row(
        28,
        "Redis emptied",
        "closed, said in the log, no crash; what waited is posted once there is an account again",
        "FLUSHALL",
        (f"{_CHAOS}a_redis_that_was_emptied_closes_the_door_until_credit_is_back",),
    ),
    Row(
        29,
        "two gateways reap the same stream",
        "posted once",
        "two survivors of 12",
        (
            f"{_CHAOS}a_gateway_lost_with_its_journal_costs_less_than_a_slice_per_stream",
            f"{_SETTLE}Races::test_two_reapers_post_once",
            "tests/limits/test_model.py::test_server_and_books_say_the_same_after_every_operation",
        ),
    ),
    Row(
        30,
        "a settlement races a reaper",
        "the charge is the true one, whoever is first",
        "13; random operations",
        (
            f"{_CHAOS}a_gateway_frozen_beyond_its_lease_forwards_nothing_it_does_not_hold",
            f"{_SETTLE}Races::test_a_reaped_stream_is_corrected_once",
            "tests/limits/test_model.py::test_server_and_books_say_the_same_after_every_operation",
        ),
    ),
    Row(
        31,
        "a settlement older than the retention",
        "not charged silently: given up and said",
        "a stream of long ago",
        (
            f"{_SETTLE}LostRecord::test_what_is_older_than_the_retention_is_not_posted",
            "tests/limits/test_settlements.py::TestRecovery::test_what_is_too_old_is_given_up_and_said",
        ),
    ),
    Row(
        32,
        "a slot of the cluster moves",
        "followed, no effect",
        "CLUSTER SETSLOT and MIGRATE four times under load",
        (
            f"{_STORES}a_slot_that_moves_while_it_is_used_is_followed",
            "tests/limits/test_redis_cluster.py::test_a_slot_on_its_way_is_asked_for_where_its_keys_are",
        ),
    ),
    Row(
        33,
        "Redis's clock jumps by an hour",
        "nothing negative, nothing frozen, leases heal",
        "libfaketime, forwards and back, backwards and back",
        (
            f"{_STORES}a_redis_whose_clock_jumps_freezes_nothing",
            "tests/limits/test_scripts_buckets.py::test_a_clock_that_stepped_back_takes_nothing_and_freezes_nothing",
        ),
    ),
    Row(
        34,
        "gateways' clocks are wrong",
        "no effect",
        "libfaketime: one an hour ahead, one an hour behind",
        (f"{_STORES}gateways_with_wrong_clocks_make_no_difference",),
    ),
    Row(
        35,
        "provider refuses, has no address or no TLS",
        "the next target before the first byte; nothing charged; else 502 or 504",
        "a closed port, an unknown name, plain text for https",
        (f"{_PROVIDERS}a_provider_that_cannot_be_reached_is_left_for_the_next_one_or_told",),
    ),
    Row(
        36,
        "provider says 429 or 529",
        "another target, else passed on with Retry-After",
        "ordered answers",
        (
            f"{_PROVIDERS}a_provider_that_is_overloaded_is_left_for_the_next_one_or_quoted",
            f"{_ENDINGS}an_upstream_error_before_the_stream_is_an_http_error_and_costs_nothing",
        ),
    ),
    Row(
        37,
        "provider silent",
        "deadlines for the first event and between two; heartbeats meanwhile",
        "ordered stalls",
        (
            f"{_ENDINGS}an_upstream_that_says_nothing_is_an_http_error_in_time",
            f"{_ENDINGS}a_stall_within_the_stream_is_told_after_the_idle_time",
            f"{_BEATS}a_silent_provider_is_bridged_by_harmless_heartbeats",
        ),
    ),
    Row(
        38,
        "provider resets, truncates, forgets [DONE]",
        "told; what was forwarded is charged, marked as estimated",
        "ordered faults; the crowd's failing providers",
        (
            f"{_ENDINGS}an_upstream_error_within_the_stream_is_told_and_what_came_is_charged",
            f"{_ENDINGS}a_stream_without_its_end_is_told_as_truncated",
            f"{_ENDINGS}a_stream_that_only_lacks_done_is_complete",
            f"{_CHAOS}nothing_goes_wrong_where_nothing_fails",
        ),
    ),
    Row(
        39,
        "provider says 200 and then an error",
        "passed on in the client's protocol; not tried again after the first byte",
        "an ordered error event",
        (
            f"{_ENDINGS}an_upstream_error_within_the_stream_is_told_and_what_came_is_charged",
            f"{_CHAOS}nothing_goes_wrong_where_nothing_fails",
        ),
    ),
    Row(
        40,
        "provider sends garbage, a huge line, compressed bytes",
        "bounded; told",
        "ordered bytes",
        (f"{_PROVIDERS}bytes_that_make_no_sense_are_bounded_and_told",),
    ),
    Row(
        41,
        "provider's usage missing, negative or far too high",
        "our own count, or what is there; the rest absorbed",
        "ordered figures",
        (
            f"{_PROVIDERS}a_provider_that_counts_wrongly_does_not_decide_what_is_charged",
            f"{_PROVIDERS}a_provider_that_bills_a_hundredfold_takes_what_is_there_and_no_more",
        ),
    ),
    Row(
        42,
        "the balance ends with 200 streams open",
        "charged no more than granted; streams cut one by one",
        "a grant of a quarter of what is asked for",
        (
            f"{_CHAOS}a_balance_that_ends_while_all_are_served_is_never_overspent",
            "tests/exchange/test_overspend.py::test_fifty_streams_over_two_gateways_cannot_spend_more_than_a_cent",
        ),
    ),
    Row(
        43,
        "a top-up while streams are being cut",
        "those that still run go on",
        "a grant after the first cut",
        (f"{_CHAOS}a_top_up_reaches_the_streams_that_still_run",),
    ),
    Row(
        44,
        "price or tier change mid-stream",
        "the price of the admission; the tier's limits at the next request",
        "the admin API; a gateway with another price",
        (
            f"{_CLIENTS}a_change_of_tier_spares_what_runs_and_holds_for_what_comes",
            f"{_CLIENTS}a_price_holds_from_admission_to_the_end",
        ),
    ),
    Row(
        45,
        "a key is revoked mid-stream",
        "cut on every gateway, charged what was sent",
        "the admin API",
        (f"{_CLIENTS}a_revoked_key_ends_what_runs_with_it",),
    ),
    Row(
        46,
        "gateway out of file descriptors",
        "new connections wait; running streams go on; no crash",
        "the limit set to what is in use",
        (f"{_GATEWAYS}a_gateway_without_descriptors_keeps_what_runs_and_recovers",),
    ),
    Row(
        47,
        "no room for the journal",
        "refuses to start and says why; later it cannot run out, its size is fixed",
        "a bound on file size; a file in the folder's place",
        (
            f"{_GATEWAYS}a_gateway_without_a_journal_does_not_start",
            "tests/limits/test_journal.py::test_it_has_its_full_size_from_the_start_and_keeps_it",
            "tests/limits/test_admission.py::TestRefusals::test_a_full_journal_refuses_before_anything_is_taken",
        ),
    ),
    Row(
        48,
        "hundreds of calls to providers cancelled",
        "no connection lost from the pool",
        "600 clients that leave at random",
        (
            f"{_PROVIDERS}connections_to_providers_survive_six_hundred_cancellations",
            f"{_FAULTS}two_hundred_clients_that_leave_at_random_points_leave_nothing_behind",
        ),
    ),
    Row(
        49,
        "the exporter is down",
        "no effect on traffic",
        "-",
        not_run="nothing is exported: the ledger stays in Redis",
    ),
    Row(
        50,
        "two versions at once",
        "scripts are known by digest, records only gain fields",
        "two sets of scripts, all gateways replaced under load",
        (f"{_GATEWAYS}two_versions_share_their_books_while_one_replaces_the_other",),
    ),
)
