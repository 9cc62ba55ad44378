"""What limits count over random histories: the periods' counts add up to all that was used, whatever the unit, zone and clock."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.api.zones import zone_of
from fabric.gate.account_events import CreateKey
from fabric.gate.limit_events import LearnZone, LimitTerms, SetLimit, Unit, Whose
from fabric.gate.limits import count, standing
from fabric.gate.periods import Period, around
from fabric.units import UHS_PER_CT
from tests.gate.world import DAY, Clockwork, S

ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe")
PRICE = 500_000
"""Of a token, in 10⁻⁶ CNY, on the plan of the world's first account."""
USES = st.lists(
    st.tuples(
        st.sampled_from(
            [0, 1, 900, 7_200, 86_400, 3 * 86_400, 40 * 86_400]
        ),  # how long after the one before it is told
        st.sampled_from([0, 1, 600, 5_000]),  # how long before that it ended
        st.sampled_from([0, 1, 600, 90_000]),  # how long it took
        st.integers(0, 10**9),  # µHs
        st.integers(0, 5_000),  # LLM tokens
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    uses=USES,
    period=st.sampled_from(Period),
    unit=st.sampled_from(Unit),
    zone=st.sampled_from(ZONES),
    starts_on=st.integers(1, 31),
)
def test_what_is_counted_in_all_periods_is_what_was_used(uses, period, unit, zone, starts_on):
    world = Clockwork("ada")
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    if zone != "UTC":
        world.do(LearnZone(zone=zone_of(zone)))
    start = {Period.MONTH: starts_on, Period.WEEK: (starts_on - 1) % 7 + 1}.get(period, 1)
    terms = LimitTerms(period=period, unit=unit, amount=10**9, zone=zone, starts_on=start)
    world.do(SetLimit(account_id="ada", whose=Whose.KEY, name="k", terms=terms))
    core, now, total, closed = world.gate._core, world.now_us, 0, 0
    (limit,) = core.state.limits["key/k"]
    for later, before, took, uhs, llm in uses:
        now += later * S
        core.begin(now)
        was = standing(core, limit, now)
        ended = now - before * S
        if was.from_us != limit.from_us:
            closed += limit.used_before + (limit.used if was.used_before == 0 else 0)
        count(core, "ada", "k", uhs, from_us=ended - took * S, until_us=ended, llm=llm)
        total += {Unit.CT: uhs, Unit.CNY: uhs * PRICE, Unit.LLM: llm}[unit]
        assert (limit.from_us, limit.until_us) == around(now, period, zone=zone_of(zone), starts_on=start)
        told = limit.used_ever * (UHS_PER_CT if unit is Unit.CNY else 1) + limit.rest
        assert told == total, "a fraction is lost"
        assert closed + limit.used_before + limit.used == limit.used_ever
        assert ended > limit.from_us or not uhs or limit.used == was.used, "it burned before this period"
    assert limit.until_us is None or limit.until_us - limit.from_us <= 32 * DAY
