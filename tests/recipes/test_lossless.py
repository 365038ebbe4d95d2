import json

from recipe import load_recipe
from report_rows import COMMON

from ulskip_cli.experiments.record import read
from ulskip_cli.experiments.results import ResultsFolder

lossless = load_recipe("lossless/reproduce.py")
ROW = {
    **COMMON,
    "status": "done",
    "baseline_id": "full",
    "model": "m",
    "batch_size": 1,
    "num_examples": 3,
    "target_speedup": 2.0,
    "layer_ratio": 2.0,
    "kept_layers": [0, 3],
    "num_layers": 4,
    "predicted_speedup": 1.2,
    "acceptance_rate": 0.75,
    "mean_accepted_length": 2.5,
    "measured_speedup": 1.25,
    "measured_speedup_low": 1.2,
    "measured_speedup_high": 1.3,
    "strategy": "unified",
    "training": "somehow",
}
TEXTS = {"source": "s", "reference": "r", "hypothesis": "h"}


def test_the_page_counts_answers_that_differ(tmp_path):
    folder = ResultsFolder(tmp_path)
    folder.append(
        read(json.dumps({**ROW, "id": "full", "draft_tokens": 0, "acceptance_rate": None}))
    )
    for point, count, ids in (
        ("full", None, [1, 2, 3]),
        ("same", 2, [1, 2, 3]),
        ("other", "auto", [1, 2, 4]),
    ):
        folder.generations_path(point).parent.mkdir(exist_ok=True)
        folder.generations_path(point).write_text(
            "".join(json.dumps(TEXTS | {"token_ids": [i]}) + "\n" for i in ids)
        )
        if count:
            folder.append(read(json.dumps({**ROW, "id": point, "draft_tokens": count})))
    page = lossless.page(folder, lambda number, one, other: number == 1)
    assert "| 1 | layers | 2/4 | 2 | 0.75 | 2.50 | 1.20 | 1.25 | 1.20 to 1.30 | 0/3 | 0 |" in page
    assert (
        "| 1 | layers | 2/4 | auto | 0.75 | 2.50 | 1.20 | 1.25 | 1.20 to 1.30 | 1/3 | 1 |" in page
    )
