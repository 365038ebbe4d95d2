import json

import pytest
from ulskip_cli.strategies.schedule_file import FORMAT, ScheduleFile, read

from ulskip_cli.core.errors import UsageError

ONE = ScheduleFile(
    num_layers=12,
    kept_layers=(0, 4, 7, 11),
    strategy="unified",
    strategy_options={"spacing": "even"},
    target_ratio=3.0,
    model="tiny",
    made_by="ulskip export ratio=3",
)


def test_a_schedule_comes_back_as_it_was(tmp_path):
    (tmp_path / "s.json").write_text(ONE.to_json())
    assert read(tmp_path / "s.json") == ONE
    assert list(json.loads(ONE.to_json()))[:4] == [
        "format",
        "format_version",
        "num_layers",
        "kept_layers",
    ]


def test_three_fields_are_enough(tmp_path):
    (tmp_path / "s.json").write_text(
        json.dumps({"format": FORMAT, "num_layers": 4, "kept_layers": [0, 3]})
    )
    assert read(tmp_path / "s.json") == ScheduleFile(num_layers=4, kept_layers=(0, 3))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", r"s\.json.*Expecting value"),
        ("[" * 100_000, "recursion"),
        (
            (
                '{"format": "ulskip-schedule", "num_layers": 4, "kept_layers": [0], "target_ratio":'
                ' "two"}'
            ),
            "target_ratio",
        ),
        (
            (
                '{"format": "ulskip-schedule", "num_layers": 4, "kept_layers": [0],'
                ' "strategy_options": []}'
            ),
            "strategy_options",
        ),
        ("[]", r"JSON object.*\[\]"),
        ('{"format": "other"}', '"format": "ulskip-schedule"'),
        ('{"format": "ulskip-schedule", "format_version": 9}', "format_version.* 9"),
        (
            '{"format": "ulskip-schedule", "num_layers": 4, "kept_layers": [0, "three"]}',
            "kept_layers",
        ),
        ('{"format": "ulskip-schedule", "num_layers": true, "kept_layers": [0]}', "num_layers"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path, text, match):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError, match=match):
        read(tmp_path / "s.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.json"):
        read(tmp_path / "nowhere.json")
