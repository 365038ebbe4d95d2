import json

import pack
import pytest
from report_rows import timed_pairs

from ulskip_cli.core.config import compose
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.files import append_line
from ulskip_cli.experiments.record import Record, Settings, read
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.rows import warnings

POINT = Record.joined(Settings.of(compose([]), "p")).to_row()


def answer(text):
    return {"source": "s", "reference": "r", "hypothesis": text}


def record(run_id, **keys):
    return read(json.dumps({**POINT, "id": run_id, **keys}))


@pytest.fixture
def folder(tmp_path):
    """A folder with two rows of the point p."""
    config = compose([f"results_dir={tmp_path}", "name=x"])
    folder = ResultsFolder.of(config)
    for bleu in (1, 2):
        folder.save_generations("p", [answer("a\u2028b\x85ü")])
        folder.save(record("p", bleu=bleu))
    return folder


def ids(folder):
    return [record.id for record in folder.records()]


def test_saved_runs_are_read_back_the_newest_winning(folder):
    folder.append(record("q", bleu=3))
    assert [(row.id, row.bleu) for row in folder.records()] == [("p", 2), ("q", 3)]
    assert folder.generations("p") == [answer("a\u2028b\x85ü")]
    assert len((folder.path / "runs.jsonl").read_text().splitlines()) == 3


def test_answers_are_read_from_the_archive_of_a_folder(folder):
    pack.pack(folder)
    folder.generations_path("p").unlink()
    assert folder.generations("p") == [answer("a\u2028b\x85ü")]
    assert folder.generations("q") == []
    assert all(map(folder.is_complete, folder.rows()))


def test_a_finished_row_counts_if_it_has_its_generations(folder):
    folder.append(record("p", status="failed"))
    assert [folder.is_complete(row) for row in folder.rows()] == [True, True, False]
    folder.generations_path("p").unlink()
    assert not any(map(folder.is_complete, folder.rows()))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": "half', "JSON object"),
        ("[" * 100_000, "JSON object"),
        ('{"id": "q", "status": "done"}', "config"),
        (json.dumps({**POINT, "dataset": "\ud800"}), "JSON object"),
    ],
)
def test_a_refused_line_is_named_and_costs_only_itself(folder, line, named, capsys):
    with folder.runs_path.open("a") as stream:
        stream.write(line)
    folder.append(record("r"))
    folder.records(warn=True)
    (message,) = capsys.readouterr().err.splitlines()
    assert f" skipped {folder.runs_path}, line 3: " in message and named in message
    assert ids(folder) == ["p", "r"]


@pytest.mark.parametrize("line", ["[]", '{"source": 1, "reference": "r", "hypothesis": "h"}'])
def test_a_line_that_is_no_answer_is_refused_by_file_and_number(folder, line):
    append_line(folder.generations_path("p"), line)
    with pytest.raises(UsageError, match=r"p\.jsonl, \w+ 2\b"):
        folder.generations("p")


def test_a_saved_run_removes_what_a_killed_attempt_left_of_its_files(folder):
    left = folder.path / "generations/.p.partial.jsonl.2a39141a.tmp"
    left.write_text("{")
    folder.save(record("p"))
    assert not left.exists()


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=str(tmp_path / "file")):
        ResultsFolder(tmp_path / "file" / "x").check_writable()
    ResultsFolder(tmp_path / "x" / "y").check_writable()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_row_is_superseded_by_a_later_one_with_its_identity(folder):
    for run_id in ("q", "r"):
        config = compose([f"seed={ord(run_id)}"]).recorded()
        folder.append(record(run_id, status="failed", config=config))
    config = compose(["ratio=3"]).recorded()
    folder.append(record("early", status="failed", config=config))
    assert ids(folder) == ["p", "q", "r", "early"]
    folder.append(record("late", config=config))
    folder.append(record(compose(["ratio=3"]).identity(), status="failed", config=config))
    assert ids(folder) == ["p", "q", "r", "late"]


def timed(run_id, *seconds, precision=None):
    """A row with one unit for each of `seconds` of the strategy, beside those of the full model."""
    ones = dict.fromkeys(("decoded_tokens", "generated_tokens", "first_token_seconds"), 1)
    pairs = timed_pairs([2.0] * len(seconds), list(seconds), **ones)
    row = record(run_id, pairs={**pairs, "precision": precision})
    return row.replace(**row.pairs.speedups())


def test_a_wide_interval_is_warned_of():
    (line,) = warnings([timed("q", 1.0, 1.1, 0.9, precision=0.05)])
    assert "reaches more than 5% to a side" in line and "speed.seconds" in line
    assert warnings([timed("q", *[1.0] * 8, precision=0.05)]) == []
    assert warnings([timed("q", 1.0, 1.1, precision=0.05)]) == []  # too few units for an interval


def test_a_pair_without_a_decoded_token_does_not_count():
    row = timed("q", 1.0, 1.0, 1.0)
    own = row.pairs.strategy.replace(decode_seconds=(1.0, 1.0, 0.001), decoded_tokens=(8, 8, 0))
    full = row.pairs.full.replace(decode_seconds=(2.0, 2.0, 0.1), decoded_tokens=(8, 8, 0))
    assert row.pairs.replace(strategy=own, full=full).speedup().value == pytest.approx(2.0)
