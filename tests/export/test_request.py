import pytest

from ulskip_cli.core.errors import UsageError
from ulskip_cli.export.request import FORMATS, ExportRequest, resolve

STAGES = ["strategy=skip_decode", "strategy.horizon=8"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["ratio_basis=latency"], "ratio_basis=cost"),
        (["strategy=early_exit", "strategy.threshold=0.5"], "strategy=early_exit"),
        (["strategy=block_influence"], "strategy=block_influence.*strategy=custom"),
        (["engine=llama_cpp"], "engine=llama_cpp.*engine=auto"),
        (["strategy=search"], "strategy=search.*strategy=custom"),
        (["strategy=skip_decode"], "strategy=skip_decode.*strategy=custom"),
    ],
    ids=str,
)
def test_layers_that_depend_on_a_run_are_refused_in_every_format(tmp_path, overrides, match):
    for form in FORMATS:
        with pytest.raises(UsageError, match=match):
            resolve(overrides, None, ExportRequest(tmp_path / "out", form))


@pytest.mark.parametrize("form", ["hf", "gguf", "mergekit"])
def test_stages_are_refused_in_formats_with_weights(tmp_path, form):
    assert resolve(STAGES, None, ExportRequest(tmp_path / "out", "schedule")).plan.later_stages
    with pytest.raises(UsageError, match=f"--format {form}.*strategy=skip_decode.*--format schedule"):
        resolve(STAGES, None, ExportRequest(tmp_path / "out", form))


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
