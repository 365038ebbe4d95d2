import json
from pathlib import Path

import bands
import pytest
import verify
from report_rows import sweep_row

ROOT = Path(__file__).parents[2]
STORED = sweep_row(speedup=1.8, bleu=28.0)


@pytest.mark.parametrize("source", verify.SOURCES, ids=lambda source: source.page)
def test_every_source_is_one_committed_row_with_a_speedup(source, monkeypatch):
    monkeypatch.chdir(ROOT)
    row = verify.stored_row(source)
    assert row.is_done and row.speedup.low and not row.config.model_extra
    own = verify.jobs_of(row)[1].config
    assert (own.strategy, own.engine) == (row.config.strategy, row.config.engine)
    assert "model.path" not in " ".join(verify.overrides_of(row.config, row.command))
    file = next(ROOT.glob(source.page.partition(",")[0] + "*"), None)
    assert file or (ROOT / "docs" / source.page.partition(",")[0]).is_file()


@pytest.mark.parametrize(
    ("here", "judged"),
    [
        ({"speedup": 1.81, "bleu": 28.1}, [verify.INSIDE, verify.INSIDE]),
        ({"speedup": 2.5, "bleu": 20.0}, [verify.SAME, verify.DIFFERS]),
        ({"speedup": 1.2, "bleu": 29.9}, [verify.SAME, verify.SAME]),
        ({"speedup": 0.9, "bleu": 28.0}, [verify.DIFFERS, verify.INSIDE]),
        ({"num_examples": 3}, ["not comparable: other examples"] * 2),
        ({"batch": 8}, ["not comparable: other batch size"] * 2),
        ({"units": 2, "speedup": 1.9}, ["not comparable: too few", verify.INSIDE]),
    ],
)
def test_figures_are_judged_in_three_grades(here, judged):
    row = sweep_row(**{"speedup": 1.8, **here})
    found = list(verify.figures("page", STORED, row, {}))
    assert [figure.name for figure in found] == ["page: speedup", "page: BLEU kept"]
    assert found[0].stored == "1.80x (1.78 to 1.82)"
    for figure, expected in zip(found, judged, strict=True):
        assert figure.judged.startswith(expected)


def test_a_speedup_inside_the_band_of_other_machines_holds(tmp_path):
    file = tmp_path / "machines.jsonl"
    for host, speedup in (("a", 1.7), ("b", 1.9), ("c", 2.0)):
        line = bands.Measurement(STORED.id, "x", speedup, None, None, host, None, None, None)
        bands.append_line(file, json.dumps(line._asdict()))
    bands.append(sweep_row(speedup=1.86), file)
    bands.append(sweep_row(speedup=1.86), file)
    known = bands.bands(bands.read(file))
    assert known[STORED.id].text() == "1.9 (1.5 to 2.4; 4 machines)"
    inside, outside = (
        next(verify.figures("page", STORED, sweep_row(speedup=speedup), known))
        for speedup in (2.2, 2.5)
    )
    assert (inside.verdict, outside.verdict) == (verify.INSIDE, verify.SAME)
    assert inside.band == "1.9 (1.5 to 2.4; 4 machines)"


def test_stored_rows_are_measured_again_and_compared(
    model_folder, ulskip, quick, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(model_folder.parent)
    words = [f"model.path={model_folder}", "model.dtype=float32", "task.metrics=[chrf]"]
    words += ["speed.enabled=false", *quick[1:2], "limit=10"]
    for name in ("here", "gone"):
        assert ulskip("run", *words, f"name={name}")[0] == 0
    rows = Path("results/gone/runs.jsonl")
    rows.write_text(rows.read_text("utf-8").replace(str(model_folder), "nowhere/model"), "utf-8")
    sources = [verify.Source(name, name, {"strategy": "unified"}) for name in ("here", "gone")]
    measured = tmp_path / "machines.jsonl"
    assert verify.verify(sources, tmp_path / "page.md", measured) == 0
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "1 of 1 figures inside the band, 1 not comparable." in page and "\n\nulskip 0" in page
    out, err = capsys.readouterr()
    assert "1 of 1 figures inside the band, 1 not comparable" in out and "unified: generate" in err
    assert verify.verify(sources[:1], file=measured) == 0
    out, err = capsys.readouterr()
    assert "generate" not in err  # the stored row counts
    assert "measured on" not in out
    rows = Path("results/here/runs.jsonl")
    key = '"instruction_set": "'
    rows.write_text(rows.read_text("utf-8").replace(key, f"{key}other "), "utf-8")
    assert verify.verify(sources[:1], file=measured) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"some stored figures on {verify.stored_row(sources[0]).environment.machine}" in told
    assert verify.verify(sources[1:], file=measured) == 1
    assert "exit code 1" in capsys.readouterr().out
