import json

import pytest
from ulskip_cli.core.adapter_record import adapter_records

from ulskip_cli.core.config_schema import ModelConfig
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.model_metadata import fingerprint


def hf(path, **options):
    return ModelConfig(name="hf", source="hf", path=str(path), **options)


@pytest.mark.parametrize("change", [{"kept_sets": 7}, {"kept_sets": [0, 1]}, {"base": "x"}, {"kind": None}])
def test_a_damaged_record_of_a_skip_adapter_is_refused(model_folder, tmp_path, change):
    record = {"base": {"fingerprint": fingerprint(hf(model_folder))}, "kept_sets": [[0, 5]], "kind": "bias"}
    (tmp_path / "adapter.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(UsageError, match=f"adapter.json.*expected {next(iter(change))}"):
        adapter_records(hf(model_folder, skip_adapter=[str(tmp_path)]))
    (tmp_path / "adapter.json").write_text(json.dumps(record))
    assert adapter_records(hf(model_folder, skip_adapter=[str(tmp_path)])) == [record]
