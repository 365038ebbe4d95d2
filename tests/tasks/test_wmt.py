import hashlib
import json
from unittest.mock import Mock

import pytest

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.tasks.wmt import LANGUAGES, SAMPLE, Wmt

SAMPLE_SHA256 = "f2e4ef3329b95ed9ffc9964f46d4af8945f9db21f18d5b83a4acfd3e6688725e"


def test_the_sample_is_frozen():
    content = b"".join((SAMPLE / name).read_bytes() for name in ("sample.de", "sample.en"))
    assert hashlib.sha256(content).hexdigest() == SAMPLE_SHA256
    examples = Wmt().examples()
    assert len(examples) >= 200
    assert len({example.source for example in examples}) == len(examples)


def test_both_directions_are_the_same_pairs():
    there, back = Wmt(pair="de-en").examples(), Wmt(pair="en-de").examples()
    assert [(e.source, e.reference) for e in there] == [(e.reference, e.source) for e in back]


def test_prompts_name_the_languages():
    task = compose(["task.pair=en-de"]).task
    example = task.examples()[0]
    plain, chat = (task.template_for(has_chat) for has_chat in (False, True))
    assert plain.prompt(example) == f"{example.source}\nTranslate English to German:"
    assert plain.response(example) == f" {example.reference}"
    assert chat.prompt(example).endswith(f"\n\n{example.source}")
    assert chat.response(example) == example.reference


def test_every_language_of_wmts_test_sets_has_a_name():
    from sacrebleu.dataset import DATASETS

    datasets = [dataset for name, dataset in DATASETS.items() if name.startswith("wmt")]
    pairs = {pair for dataset in datasets for pair in dataset.langpairs}
    assert {code for pair in pairs for code in pair.split("-")} <= LANGUAGES.keys()
    assert (LANGUAGES["zh"], LANGUAGES["nb"]) == ("Chinese", "Norwegian Bokmål")


@pytest.mark.parametrize("row", [{"translation": {"cs": "a", "en": "b"}}, {"cs": "a", "en": "b"}])
def test_sentences_of_a_dataset_are_in_columns_named_after_the_languages(tmp_path, row):
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    task = Wmt(pair="cs-en", dataset=str(tmp_path))
    assert [(one.source, one.reference) for one in task.examples()] == [("a", "b")]


@pytest.fixture
def files(tmp_path):
    def write(source, reference):
        paths = tmp_path / "a.de", tmp_path / "a.en"
        for path, content in zip(paths, (source, reference), strict=True):
            if content is not None:
                path.write_bytes(content)
        return Wmt(dataset="files", source_file=str(paths[0]), reference_file=str(paths[1]))

    return write


def test_files_are_read_line_by_line(files):
    examples = files("eins\nzwei\u2028drei\n".encode(), b"one\ntwo three").examples()
    assert [example.source for example in examples] == ["eins", "zwei\u2028drei"]
    assert [example.reference for example in examples] == ["one", "two three"]
    assert files(b"eins", b"one").data == "a.de" and Wmt().data == "sample"


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [(b"a\nb\n", b"a\n", "2 lines in .*1 in"), (b"a\n\nb\n", b"a\nb\nc\n", "line 2")],
)
def test_bad_files_are_refused(files, source, reference, message):
    with pytest.raises(UsageError, match=message):
        files(source, reference).examples()


def test_a_failed_download_names_the_test_set_and_the_reason(monkeypatch):
    from sacrebleu.dataset import DATASETS

    fails = Mock(side_effect=OSError("no route"))
    monkeypatch.setattr(DATASETS["wmt22"], "get_source_file", fails)
    with pytest.raises(UsageError, match=r"wmt22.*no route"):
        Wmt(dataset="wmt22").examples()


def test_a_hypothesis_is_one_line():
    assert Wmt().hypothesis("  A cat. \nTranslate") == "A cat."
    assert Wmt().hypothesis("\n") == ""
