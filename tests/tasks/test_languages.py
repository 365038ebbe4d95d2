import re

from ulskip_cli.tasks.languages import LANGUAGES


def test_codes_are_sorted():
    assert all(re.fullmatch("[a-z]{2,3}", code) for code in LANGUAGES)
    assert list(LANGUAGES) == sorted(LANGUAGES)
    assert (LANGUAGES["zh"], LANGUAGES["de"], LANGUAGES["cs"]) == ("Chinese", "German", "Czech")


def test_every_language_of_wmts_test_sets_has_a_name():
    from sacrebleu.dataset import DATASETS

    pairs = [
        pair
        for name, dataset in DATASETS.items()
        if name.startswith("wmt")
        for pair in dataset.langpairs
    ]
    assert {code for pair in pairs for code in pair.split("-")} <= LANGUAGES.keys()
