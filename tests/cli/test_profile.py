import io

from rich.console import Console

from ulskip_cli.cli.profile import beside_the_model, profile_table

SECONDS = {"start": 1.0, "imports": 4.0, "encode": 0.5, "full: warm up": 0.25, "full: generate": 10.0, "write": 0.25}


def test_a_line_a_phase_and_the_sum():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(profile_table(SECONDS))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["full:", "generate", "10.00", "62%"] in lines
    assert ["all", "16.00"] in lines


def test_what_is_neither_start_nor_model():
    assert beside_the_model(SECONDS | {"time the layers": 2.0, "solve for 1.5x": 3.0}) == 0.75
