"""Groups are dealt out completely and evenly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dam_lightning.methods.draws import dealt_out


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(0, 8), st.integers(1, 9))
def test_shares_are_complete_disjoint_and_even(classes: int, domains: int, world: int) -> None:
    shares = []
    for rank in range(world):
        own = [("class", row) for row in dealt_out(classes, rank, world)]
        own += [("domain", row) for row in dealt_out(domains, rank, world, first=classes)]
        shares.append(own)
    every = [("class", row) for row in range(classes)] + [("domain", r) for r in range(domains)]
    assert sorted(group for share in shares for group in share) == sorted(every)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
