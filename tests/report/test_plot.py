from ulskip_cli.report.plot import quality_against_speedup


def row(strategy, ratio, **more):
    interval = {"bleu": {"full": 20.0, "delta": -1.0, "delta_low": -2.0, "delta_high": 0.0}}
    known = {
        "bleu": 20 - ratio,
        "measured_speedup": ratio,
        "measured_speedup_low": 0.9 * ratio,
        "measured_speedup_high": 1.1 * ratio,
    }
    shape = {"kept_layers": [0, 1], "predicted_speedup": ratio, "layer_ratio": ratio, "target_speedup": ratio}
    return {"strategy": strategy, **known, **shape, "against_full": interval, **more}


def test_png_and_svg_show_every_strategy(tmp_path):
    rows = [row("full", 1.0), row("unified", 2.0), row("unified", 3.0), row("top_skip", 2.0, target_speedup=None)]
    png, svg = quality_against_speedup(rows, tmp_path / "plots" / "quality", "a title")
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    for text in ("unified", "top_skip", "measured decode speedup", "BLEU", "a title", "2 layers"):
        assert f"<!-- {text} -->" in drawn


def test_without_measurement_the_prediction_is_shown(tmp_path):
    rows = [row("unified", 2.0, measured_speedup=None, measured_speedup_low=None)]
    _, svg = quality_against_speedup(rows, tmp_path / "quality")
    assert "<!-- predicted decode speedup -->" in svg.read_text()


def test_without_quality_nothing_is_drawn(tmp_path):
    assert quality_against_speedup([row("unified", 2.0, bleu=None)], tmp_path / "quality") == []
    assert not list(tmp_path.iterdir())
