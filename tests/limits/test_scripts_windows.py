"""Windows in the scripts, rolling and of the calendar: what counts, when they reopen, and what a wrong clock does."""

from typing import TYPE_CHECKING, Any

import pytest

from gateway.limits import keys
from gateway.limits.allowances import Unit, Window

if TYPE_CHECKING:
    from tests.limits.conftest import Teller
else:
    Teller = Any

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
# The start of a minute, and some way into it.
MINUTE_START_MS = 1_800_000_000_000
START_MS = MINUTE_START_MS + 12_345
HOUR = (MINUTE_MS, 60, 0)

# How one stream fills a limit of 100 in each unit: what it estimates and what it comes to.
UNITS = {Unit.REQUESTS: 1, Unit.TOKENS: 100, Unit.MONEY: 100}


@pytest.fixture(autouse=True)
async def account(teller: Teller) -> None:
    teller.set_clock(START_MS)
    await teller.grant(1_000_000)


def budget(limit: int, bounds: tuple[int, int, int] = HOUR, unit: Unit = Unit.MONEY) -> Window:
    return Window("limit", limit, bounds, unit)


class TestRolling:
    @pytest.mark.parametrize("unit", list(Unit))
    async def test_it_reopens_after_exactly_the_time_it_tells(self, teller: Teller, unit: Unit) -> None:
        teller.limit(windows=[Window("spare", 10**9, HOUR, Unit.MONEY), budget(UNITS[unit], unit=unit)])
        await teller.reserve("a", 100, tokens=100)
        await teller.settle("a", 100, tokens=100)
        assert teller.window("limit") == (UNITS[unit], 0)
        refused = await teller.reserve("b", 100, tokens=100)
        assert (refused.code, refused.index) == (-3, 2)
        # The window covers its hour and at most a part more.
        assert refused.retry_after_ms == MINUTE_START_MS + HOUR_MS + MINUTE_MS - START_MS
        teller.set_clock(START_MS + refused.retry_after_ms - 1)
        last = await teller.reserve("b", 100, tokens=100)
        assert (last.code, last.retry_after_ms) == (-3, 1)
        teller.set_clock(START_MS + refused.retry_after_ms)
        assert (await teller.reserve("b", 100, tokens=100)).code == 1
        assert teller.window("limit") == (0, UNITS[unit])

    async def test_one_waits_for_as_much_to_leave_as_is_needed(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100)])
        for number in range(10):
            teller.set_clock(MINUTE_START_MS + number * MINUTE_MS)
            await teller.reserve(f"s{number}", 10)
            await teller.settle(f"s{number}", 10)
        teller.set_clock(MINUTE_START_MS + 20 * MINUTE_MS)
        for amount, parts in ((1, 1), (10, 1), (11, 2), (95, 10), (100, 10)):
            refused = await teller.reserve("next", amount)
            assert (refused.code, refused.retry_after_ms) == (-3, (60 + parts - 20) * MINUTE_MS)
        assert (await teller.reserve("next", 101)).code == -7

    async def test_what_is_held_cannot_be_waited_for(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100)])
        await teller.reserve("running", 100)
        refused = await teller.reserve("next", 10)
        assert (refused.code, refused.retry_after_ms) == (-3, 1000)
        teller.set_clock(START_MS + 30 * DAY_MS)
        await teller.extend("running")
        assert (await teller.reserve("next", 10)).code == -3

    async def test_parts_that_left_are_dropped_and_the_others_kept(self, teller: Teller) -> None:
        teller.limit(windows=[budget(1000)])
        key = keys.limits_of("acme").window("limit")
        for number in range(0, 60, 2):
            teller.set_clock(MINUTE_START_MS + number * MINUTE_MS)
            await teller.settle(f"s{number}", 10)
        assert teller.window("limit") == (300, 0)
        teller.set_clock(MINUTE_START_MS + 71 * MINUTE_MS)
        before = teller.everything()
        assert (await teller.reserve("too much", 801)).code == -3
        after = teller.everything()
        assert [key_ for key_ in before if before[key_] != after[key_]] == [key.encode()]
        parts = {name: value for name, value in teller.hash(key).items() if name.startswith("b")}
        assert teller.window("limit")[0] == 240 == sum(int(value) for value in parts.values())
        assert int(teller.hash(key)["lo"]) == (MINUTE_START_MS + 11 * MINUTE_MS) // MINUTE_MS
        teller.set_clock(MINUTE_START_MS + 10 * DAY_MS)
        await teller.reserve("much later", 801)
        assert teller.window("limit") == (0, 801)
        assert [name for name in teller.hash(key) if name.startswith("b")] == []

    async def test_a_stream_is_posted_when_it_ends_whenever_it_began(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100)])
        await teller.reserve("long", 60)
        teller.set_clock(START_MS + 5 * HOUR_MS)
        await teller.settle("long", 90)
        assert teller.window("limit") == (90, 0)
        refused = await teller.reserve("next", 20)
        assert refused.code == -3
        assert HOUR_MS < refused.retry_after_ms <= HOUR_MS + MINUTE_MS

    async def test_a_clock_that_stepped_back_forgets_nothing(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100)])
        await teller.settle("a", 60)
        teller.set_clock(START_MS - 10 * MINUTE_MS)
        assert (await teller.reserve("b", 50)).code == -3
        await teller.settle("c", 30)
        assert teller.window("limit") == (90, 0)
        teller.set_clock(START_MS + 55 * MINUTE_MS)
        assert (await teller.reserve("d", 40)).code == 1
        assert teller.window("limit") == (60, 40)
        teller.set_clock(START_MS + 61 * MINUTE_MS)
        await teller.settle("d", 0)
        assert teller.window("limit") == (0, 0)

    async def test_it_is_kept_as_long_as_something_in_it_may_count(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100), Window("never used", 10, HOUR, Unit.MONEY)])
        await teller.reserve("a", 10)
        ttl_ms = teller.store.pttl(keys.limits_of("acme").window("limit"))
        assert HOUR_MS + DAY_MS < ttl_ms <= HOUR_MS + 2 * DAY_MS

    async def test_what_a_provider_bills_beyond_the_hold_may_pass_a_budget_but_not_the_balance(
        self, teller: Teller
    ) -> None:
        teller.limit(windows=[budget(100)])
        await teller.reserve("a", 100)
        reply = await teller.settle("a", 150)
        assert (reply.charged, reply.absorbed) == (150, 0)
        assert teller.window("limit") == (150, 0)
        assert (await teller.reserve("b", 0)).code == -3

    @pytest.mark.parametrize("op", ["settle what is lost", "revive"])
    async def test_a_window_that_was_lost_with_its_stream_is_made_again_and_ends(self, teller: Teller, op: str) -> None:
        teller.limit(windows=[budget(100)])
        if op == "revive":
            await teller.extend("lost", used=10, need=10, target=40, revive=True)
            assert teller.window("limit") == (0, 40)
        else:
            await teller.settle("lost", 30)
            assert teller.window("limit") == (30, 0)
        assert teller.store.pttl(keys.limits_of("acme").window("limit")) > 0


class TestTokensAndRequests:
    WINDOWS = (Window("tokens", 1000, HOUR, Unit.TOKENS), Window("requests", 3, HOUR, Unit.REQUESTS))

    @pytest.fixture(autouse=True)
    def limits(self, teller: Teller, account: None) -> None:
        teller.limit(windows=self.WINDOWS)

    async def test_the_estimate_is_held_and_the_true_figure_posted(self, teller: Teller) -> None:
        await teller.reserve("a", tokens=400)
        assert (teller.window("tokens"), teller.window("requests")) == ((0, 400), (0, 1))
        await teller.extend("a", tokens=700)
        assert teller.window("tokens") == (0, 700)
        await teller.settle("a", 5, tokens=650)
        assert (teller.window("tokens"), teller.window("requests")) == ((650, 0), (1, 0))

    async def test_a_refund_posts_no_request(self, teller: Teller) -> None:
        await teller.reserve("a", tokens=400)
        await teller.settle("a", 0, tokens=0, refund=True)
        assert (teller.window("tokens"), teller.window("requests")) == ((0, 0), (0, 0))

    async def test_what_is_reaped_posts_what_was_taken_and_is_corrected(self, teller: Teller) -> None:
        await teller.reserve("a", tokens=400)
        await teller.extend("a", tokens=500)
        teller.lapse("a")
        await teller.reap("a")
        assert (teller.window("tokens"), teller.window("requests")) == ((500, 0), (1, 0))
        await teller.settle("a", 5, tokens=450)
        assert (teller.window("tokens"), teller.window("requests")) == ((450, 0), (1, 0))

    async def test_what_is_reaped_and_refunded_counts_nothing(self, teller: Teller) -> None:
        await teller.reserve("a", tokens=400)
        teller.lapse("a")
        await teller.reap("a")
        teller.set_clock(START_MS + 5 * MINUTE_MS)
        await teller.settle("a", 0, tokens=0, refund=True)
        assert (teller.window("tokens"), teller.window("requests")) == ((0, 0), (0, 0))

    async def test_a_lost_stream_is_counted_when_it_is_settled_or_comes_back(self, teller: Teller) -> None:
        await teller.settle("lost", 5, tokens=300)
        assert (teller.window("tokens"), teller.window("requests")) == ((300, 0), (1, 0))
        await teller.extend("revived", tokens=200, revive=True)
        assert (teller.window("tokens"), teller.window("requests")) == ((300, 200), (1, 1))

    async def test_requests_are_refused_by_number(self, teller: Teller) -> None:
        assert [(await teller.reserve(sid)).code for sid in "abcd"] == [1, 1, 1, -3]
        assert (await teller.reserve("d")).index == 2
        assert (await teller.reserve("d", tokens=1001)).code == -7


class TestCalendar:
    YESTERDAY, TODAY, TOMORROW = (MINUTE_START_MS + days * DAY_MS for days in (-1, 0, 1))
    BOUNDS = (YESTERDAY, TODAY, TOMORROW)
    NEXT_BOUNDS = (TODAY, TOMORROW, TOMORROW + DAY_MS)

    async def test_it_begins_anew_at_its_boundary(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        teller.set_clock(self.TOMORROW - 5000)
        await teller.settle("a", 90)
        refused = await teller.reserve("b", 20)
        assert (refused.code, refused.retry_after_ms) == (-3, 5000)
        teller.set_clock(self.TOMORROW - 1)
        assert (await teller.reserve("b", 20)).retry_after_ms == 1
        teller.set_clock(self.TOMORROW)
        teller.limit(windows=[budget(100, self.NEXT_BOUNDS)])
        assert (await teller.reserve("b", 20)).code == 1
        assert teller.window("limit") == (0, 20)

    async def test_what_is_held_over_the_boundary_counts_where_it_is_posted(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        await teller.reserve("over", 60)
        teller.set_clock(self.TOMORROW + 5)
        await teller.extend("over")
        assert (await teller.reserve("b", 50)).code == -3
        await teller.settle("over", 60)
        assert teller.window("limit") == (60, 0)
        teller.limit(windows=[budget(100, self.NEXT_BOUNDS)])
        assert (await teller.reserve("b", 50)).code == -3
        assert (await teller.reserve("b", 40)).code == 1

    @pytest.mark.parametrize("clock_off", [-1, 0, 1])
    async def test_a_caller_may_be_off_by_a_whole_period(self, teller: Teller, clock_off: int) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        teller.set_clock(self.TODAY + 1000)
        await teller.settle("a", 90)
        theirs = tuple(bound + clock_off * DAY_MS for bound in self.BOUNDS)
        teller.limit(windows=[budget(100, theirs)])
        refused = await teller.reserve("b", 20)
        assert (refused.code, refused.retry_after_ms) == (-3, DAY_MS - 1000)
        await teller.settle("c", 5)
        assert teller.window("limit") == (95, 0)

    async def test_periods_nobody_asked_in_leave_nothing_behind(self, teller: Teller) -> None:
        for day in (0, 1, 4, 40):
            teller.set_clock(self.TODAY + day * DAY_MS + 1)
            teller.limit(windows=[budget(100, tuple(bound + day * DAY_MS for bound in self.BOUNDS))])
            assert (await teller.reserve(f"s{day}", 80)).code == 1
            await teller.settle(f"s{day}", 80)
            assert teller.window("limit") == (80, 0)
        parts = [name for name in teller.hash(keys.limits_of("acme").window("limit")) if name.startswith("b")]
        assert len(parts) == 1

    @pytest.mark.parametrize("shift_h", [-7, 2])
    async def test_a_time_zone_that_was_changed_counts_nothing_for_ever(self, teller: Teller, shift_h: int) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        teller.set_clock(self.TODAY + 12 * HOUR_MS)
        await teller.settle("a", 90)
        for day in range(4):
            shifted = tuple(bound + shift_h * HOUR_MS + day * DAY_MS for bound in self.BOUNDS)
            teller.limit(windows=[budget(100, shifted)])
            teller.set_clock(self.TODAY + day * DAY_MS + 13 * HOUR_MS)
            # To the west the new day began before the old one: it goes on with what was used of that.
            is_same_day = day == 0 and shift_h < 0
            assert (await teller.reserve(f"s{day}", 80)).code == (-3 if is_same_day else 1)
            await teller.settle(f"s{day}", 80)
            assert teller.window("limit") == (170 if is_same_day else 80, 0)

    async def test_a_stream_that_outlived_its_calendar_counts_in_the_newest_period(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        await teller.reserve("long", 30)
        outlived = teller.allowances
        teller.set_clock(self.TODAY + 3 * DAY_MS)
        teller.limit(windows=[budget(100, tuple(bound + 3 * DAY_MS for bound in self.BOUNDS))])
        await teller.settle("a", 60)
        current = teller.allowances
        teller.allowances = outlived
        assert (await teller.extend("long", used=30, need=40, target=900)).held == 40
        await teller.settle("long", 35)
        teller.allowances = current
        assert teller.window("limit") == (95, 0)
        assert (await teller.reserve("b", 6)).code == -3
        assert (await teller.reserve("b", 5)).code == 1

    async def test_it_is_kept_beyond_its_period(self, teller: Teller) -> None:
        teller.limit(windows=[budget(100, self.BOUNDS)])
        await teller.reserve("a", 10)
        assert teller.store.pttl(keys.limits_of("acme").window("limit")) > 2 * DAY_MS
