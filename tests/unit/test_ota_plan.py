"""The cheapest way, held against all ways."""

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from ota.plan import MAX_STEPS, Leg, cheapest

BUNDLES = "ABCDE"


@st.composite
def legs(draw: st.DrawFn) -> list[Leg]:
    made = []
    for number in range(draw(st.integers(0, 9))):
        base = draw(st.sampled_from([None, *BUNDLES]))
        bundle = draw(st.sampled_from(BUNDLES))
        if base != bundle:
            made.append(Leg(bundle, f"{number}", draw(st.integers(0, 20)), 10, base, draw(st.integers(0, 3))))
    return made


def by_trying_all(wanted: str, legs: list[Leg], at_hand: set[str]) -> tuple[int, int] | None:
    best = (0, 0) if wanted in at_hand else None
    for count in range(1, 5):
        for way in permutations(legs, count):
            joined = all(one.bundle == other.base for one, other in pairwise(way))
            starts = way[0].base is None or way[0].base in at_hand
            if joined and starts and way[-1].bundle == wanted:
                cost = sum(leg.bytes for leg in way), len(way)
                best = cost if best is None else min(best, cost)
    return best


@given(legs().filter(lambda made: len(made) <= 6), st.sets(st.sampled_from(BUNDLES), max_size=2))
def test_no_way_is_cheaper(made: list[Leg], at_hand: set[str]) -> None:
    found = cheapest("A", made, at_hand)
    expected = by_trying_all("A", made, at_hand)
    assert (None if found is None else (found.fetch_bytes, len(found.legs))) == expected


@given(legs(), st.sets(st.sampled_from(BUNDLES), max_size=2), st.integers(0, 3))
def test_a_route_leads_from_what_is_at_hand_to_what_is_wanted(made: list[Leg], at_hand: set[str], memory: int) -> None:
    found = cheapest("A", made, at_hand, memory_bytes=memory)
    if found is None:
        return
    here = set(at_hand)
    for leg in found.legs:
        assert leg.base is None or leg.base in here
        assert leg.memory_bytes <= memory
        here.add(leg.bundle)
    assert "A" in here
    assert found.disk_bytes == found.fetch_bytes + 10 * len(found.legs)
    assert found.memory_bytes == max((leg.memory_bytes for leg in found.legs), default=0)


def test_what_has_arrived_costs_nothing() -> None:
    whole, delta = Leg("A", "whole", 100, 10), Leg("A", "delta", 20, 10, "B")
    assert cheapest("A", [whole, delta], {"B"}).kind == "delta"
    arrived = {"whole": 90}
    found = cheapest("A", [whole, delta], {"B"}, lambda leg: arrived.get(leg.file, 0))
    assert (found.kind, found.fetch_bytes) == ("whole", 10)


def test_the_kinds_of_routes() -> None:
    chain = [Leg("B", "1", 1, 10, "C"), Leg("A", "2", 1, 10, "B")]
    assert cheapest("A", chain, {"C"}).kind == "chain of deltas"
    assert cheapest("A", [*chain, Leg("C", "3", 1, 10)], set()).kind == "whole and deltas"
    assert cheapest("A", chain, {"A"}).kind == "at hand"
    assert cheapest("A", chain, set()) is None


def test_a_chain_has_an_end() -> None:
    chain = [Leg(f"{at + 1}", f"{at}", 1, 1, f"{at}") for at in range(MAX_STEPS + 1)]
    assert len(cheapest(f"{MAX_STEPS}", chain, {"0"}).legs) == MAX_STEPS
    assert cheapest(f"{MAX_STEPS + 1}", chain, {"0"}) is None
