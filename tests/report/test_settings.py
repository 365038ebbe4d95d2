from report_rows import sweep_row

from ulskip_cli.report import settings


def row(strategy="unified", **more):
    made = sweep_row(strategy)
    for part, values in more.pop("config", {}).items():
        made = {**made, "config": {**made["config"], part: {**made["config"].get(part, {}), **values}}}
    return {**made, **more}


def test_what_configurations_differ_in_becomes_a_key():
    short, long = (row(config={"decoding": {"name": "greedy", "max_new_tokens": n}}) for n in (4, 24))
    told = settings.told([short, long, short])
    assert [one["decoding.max_new_tokens"] for one in told] == [4, 24, 4]
    assert settings.keys(told) == ["decoding.max_new_tokens"]
    assert settings.told([short, short]) == [short, short]


def test_paths_and_what_rows_say_themselves_are_no_settings():
    one, other = (row(config={"task": {"name": "wmt", "file": file}}) for file in ("a", "b"))
    assert settings.keys(settings.told([one, other])) == []


def test_another_choice_in_a_group_is_no_difference_in_its_keys():
    one = row(config={"decoding": {"name": "greedy", "max_new_tokens": 4}})
    other = row(config={"decoding": {"name": "beam", "max_new_tokens": 24}})
    assert settings.keys(settings.told([one, other])) == []


def test_calibration_concerns_those_that_were_calibrated():
    few, many = (row(calibration={"id": "c"}, config={"calibration": {"examples": n}}) for n in (8, 64))
    told = settings.told([few, many, row("full", config={"calibration": {"examples": 8}})])
    assert [one.get("calibration.examples") for one in told] == [8, 64, None]
