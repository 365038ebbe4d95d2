import hashlib

import pytest

from ulskip_cli.errors import RunError, UsageError
from ulskip_cli.tasks.template import INSTRUCTION_AFTER_INPUT
from ulskip_cli.tasks.wmt import SAMPLE, Wmt

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
    task = Wmt("en-de", prompt=INSTRUCTION_AFTER_INPUT[0], response=INSTRUCTION_AFTER_INPUT[1])
    assert task.prompt_for(task.examples()[0]).endswith("\nTranslate English to German:")
    assert task.response_for(task.examples()[0]).startswith(" ")


def test_a_hypothesis_is_one_line():
    assert Wmt().hypothesis("  A cat. \nTranslate") == "A cat."
    assert Wmt().hypothesis("\n") == ""


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
    assert [(e.source, e.reference) for e in examples] == [("eins", "one"), ("zwei\u2028drei", "two three")]


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        (b"a\n", None, "no file at"),
        (b"a\nb\n", b"a\n", "2 lines in .*1 in"),
        (b"", b"a\n", "is empty"),
        (b"a\n\nb\n", b"a\nb\nc\n", r"empty line \(2\)"),
        ("für".encode("latin-1"), b"for", "as UTF-8"),
    ],
)
def test_bad_files_are_refused(files, source, reference, message):
    with pytest.raises(UsageError, match=message):
        files(source, reference).examples()


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match=r"unknown task\.pair 'de-fr'"):
        Wmt(pair="de-fr")
    with pytest.raises(UsageError, match=r"expects task\.source_file"):
        Wmt(dataset="files")
    with pytest.raises(UsageError, match="dataset=files only"):
        Wmt(source_file="x")
    with pytest.raises(UsageError, match=r"unknown task\.dataset 'wmt2'; did you mean 'wmt2"):
        Wmt(dataset="wmt2").examples()
    with pytest.raises(UsageError, match="wmt24 has no pair de-en; it has"):
        Wmt(dataset="wmt24").examples()


def test_without_network_a_download_says_what_else_there_is(monkeypatch):
    from sacrebleu.dataset import DATASETS

    def fail(*args):
        raise OSError("no route")

    monkeypatch.setattr(DATASETS["wmt22"], "get_source_file", fail)
    with pytest.raises(RunError, match=r"cannot download wmt22 \(no route\); without network"):
        Wmt(dataset="wmt22").examples()
