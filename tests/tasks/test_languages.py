import re

from ulskip_cli.tasks.languages import LANGUAGES
from ulskip_cli.tasks.wmt import PAPER_PAIRS


def test_codes_are_iso_639_1():
    assert all(re.fullmatch("[a-z]{2}", code) for code in LANGUAGES)
    assert list(LANGUAGES) == sorted(LANGUAGES)
    assert (LANGUAGES["zh"], LANGUAGES["de"], LANGUAGES["cs"]) == ("Chinese", "German", "Czech")


def test_the_papers_pairs_are_known():
    assert all(code in LANGUAGES for pair in PAPER_PAIRS for code in pair.split("-"))
