import shutil
from pathlib import Path

from ulskip_cli.core.config import compose
from ulskip_cli.experiments.results import ResultsFolder
from ulskip_cli.report.paper import write_paper_report

REPRODUCTION = Path(__file__).parents[2] / "results" / "reproduce"


def test_table_and_plot_come_from_the_rows_of_the_folder(tmp_path):
    (tmp_path / "reproduce").mkdir()
    shutil.copy(REPRODUCTION / "runs.jsonl", tmp_path / "reproduce" / "runs.jsonl")
    files = write_paper_report(ResultsFolder.of(compose([f"results_dir={tmp_path}", "name=reproduce"])))
    assert [file.name for file in files] == ["table4.md", "quality.png", "quality.svg"]
    text = files[0].read_text()
    assert text.startswith("# tiny · wmt · de-en · sample · greedy")
    assert "| 2x | unified | 6/12 |" in text
    assert "weights of tiny trained with skipping" in text
    assert "<!-- unified -->" in files[2].read_text()
