import pytest

from ulskip_cli.core.errors import NotApplicable
from ulskip_cli.export.request import FORMATS, ExportRequest, resolve

STAGES = ["strategy=skip_decode", "strategy.horizon=8"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["ratio_basis=latency"],
        ["strategy=early_exit", "strategy.threshold=0.5"],
        ["strategy=search"],
        ["strategy=skip_decode"],
        ["correction=patch", "correction.kind=folded"],
    ],
    ids=" ".join,
)
def test_layers_that_depend_on_a_run_are_refused_in_every_format(tmp_path, overrides):
    for form in FORMATS:
        with pytest.raises(NotApplicable, match=f"--format {form}"):
            resolve(overrides, None, ExportRequest(tmp_path / "out", form))


@pytest.mark.parametrize("overrides", [STAGES, ["strategy.unit=attention"]], ids=" ".join)
def test_only_a_schedule_describes_stages_and_parts_of_layers(tmp_path, overrides):
    assert resolve(overrides, None, ExportRequest(tmp_path / "out", "schedule")).plan.num_kept
    for form in ("hf", "gguf", "mergekit"):
        with pytest.raises(NotApplicable, match=f"--format {form}"):
            resolve(overrides, None, ExportRequest(tmp_path / "out", form))


@pytest.mark.parametrize(
    ("form", "to", "expected"),
    [
        ("hf", "out", "out"),
        ("gguf", "out", "out/model.gguf"),
        ("gguf", "x.gguf", "x.gguf"),
        ("mergekit", "x.yml", "x.yml"),
        ("mergekit", "x.yaml", "x.yaml"),
        ("schedule", "x.yaml", "x.yaml/schedule.json"),
    ],
)
def test_a_file_gets_a_default_name_unless_it_has_one(tmp_path, form, to, expected):
    assert resolve(["ratio=2"], None, ExportRequest(tmp_path / to, form)).to == tmp_path / expected
