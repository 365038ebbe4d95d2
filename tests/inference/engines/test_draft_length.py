from ulskip_cli.inference.engines.draft_length import MOST, DraftLength


def test_a_number_stays_what_it_is():
    length = DraftLength(3, 0.5)
    length.saw(0, 3)
    assert length.next() == 3


def test_more_is_drafted_while_drafts_are_accepted_and_less_when_they_are_not():
    length = DraftLength("auto", 0.3)
    first = length.next()
    for _ in range(30):
        length.saw(length.next(), length.next())
    assert length.next() == MOST > first
    for _ in range(30):
        length.saw(0, length.next())
    assert length.next() == 1 < first


def test_cheap_drafts_are_made_longer():
    assert DraftLength("auto", 0.1).next() > DraftLength("auto", 0.7).next()


def test_what_was_not_reached_says_nothing():
    one, other = DraftLength("auto", 0.3), DraftLength("auto", 0.3)
    one.saw(1, 2)
    other.saw(1, 12)
    assert one.next() == other.next()
