import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulskip_cli.engines.draft_length import CREDIT, MARGIN, DraftLength

CHECKS = [1.0, 1.05, 1.13, 1.28, 1.44, 1.54, 1.62, 1.83]


def test_a_fixed_draft_length_does_not_change():
    length = DraftLength(12, 0.5, CHECKS)
    for _ in range(50):
        length.update(0, 12)
    assert length.next() == 12


def test_more_is_drafted_while_drafts_are_accepted():
    length = DraftLength("auto", 0.1, CHECKS)
    first = length.next()
    for _ in range(30):
        length.update(length.next(), length.next())
    assert length.next() > first > 1


def test_cheap_drafts_and_cheap_checks_are_made_longer():
    flat, steep = [1.0] * 8, [1.0, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 3.1]
    assert DraftLength("auto", 0.1, CHECKS).next() > DraftLength("auto", 0.6, CHECKS).next()
    assert DraftLength("auto", 0.1, flat).next() > DraftLength("auto", 0.1, steep).next()


@pytest.mark.parametrize("draft_cost", [0.0, 0.6])
def test_drafts_that_are_accepted_later_are_found(draft_cost):
    length = DraftLength("auto", draft_cost, CHECKS)
    for _ in range(200):
        length.update(0, length.next())
    for _ in range(400):
        length.update(length.next(), length.next())
    assert length.next() > 0


@given(
    st.floats(0, 2),
    st.lists(st.floats(1, 8), min_size=1, max_size=8).map(sorted),
    st.lists(st.integers(0, 8), min_size=1, max_size=300),
)
def test_no_drafts_cost_more_than_the_credit_and_the_margin(draft_cost, checks, accepted):
    length, time, tokens = DraftLength("auto", draft_cost, [1.0, *checks[1:]]), 0.0, 0
    for count in accepted:
        drafted = length.next()
        gained = 1 + min(count, drafted)
        length.update(gained - 1, drafted)
        time, tokens = time + length.cost(drafted), tokens + gained
    assert time <= (1 + MARGIN) * tokens + CREDIT + 1e-6


def test_drafts_after_the_first_rejected_one_do_not_count():
    lengths = [DraftLength("auto", 0.05, CHECKS) for _ in range(2)]
    for length, drafted in zip(lengths, (2, 7), strict=True):
        length.update(1, drafted)
    assert lengths[0].next() == lengths[1].next()


def test_larger_checks_than_were_measured_cost_in_proportion():
    length = DraftLength(15, 0.5, CHECKS)
    assert length.cost(15) == pytest.approx(15 * 0.5 + 2 * CHECKS[-1])
    assert length.cost(0) == 1
