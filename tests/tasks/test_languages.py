import re

from ulskip_cli.tasks.languages import LANGUAGES


def test_codes_are_iso_639_1():
    assert all(re.fullmatch("[a-z]{2}", code) for code in LANGUAGES)
    assert list(LANGUAGES) == sorted(LANGUAGES)
    assert (LANGUAGES["zh"], LANGUAGES["de"], LANGUAGES["cs"]) == ("Chinese", "German", "Czech")
