from ulskip_cli.report.plot import learning_curve, measured_against_predicted, quality_against_speedup


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


def test_a_learning_curve_has_a_line_a_target_or_a_depth(tmp_path):
    curve = [{"step": step, "validation_loss": {"1x": 3.0 / step, "2x": 3.5 / step}} for step in (1, 2, 3)]
    _, svg = learning_curve({"learning_curve": curve}, tmp_path / "curve")
    drawn = svg.read_text()
    assert "<!-- 1x -->" in drawn and "<!-- 2x -->" in drawn
    by_depth = [{"step": step, "validation_loss": {"12": 3.0 / step}} for step in (1, 2)]
    _, svg = learning_curve({"learning_curve": by_depth}, tmp_path / "by_depth")
    assert "<!-- 12 layers -->" in svg.read_text()
    assert learning_curve({"learning_curve": curve[:1]}, tmp_path / "none") == []


def test_the_clock_is_drawn_against_the_cost_model(tmp_path):
    rows = [row("unified", ratio, batch_size=batch) for ratio in (2.0, 3.0) for batch in (1, 8)]
    rows.append(row("unified", 4.0, batch_size=2, predicted_speedup=None))
    png, svg = measured_against_predicted(
        rows, tmp_path / "speedup", ["fast", "transformers", "fast", "fast", "fast"], "a title"
    )
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    for text in ("fast, batch 1", "transformers, batch 8", "fast, batch 8", "measured decode speedup", "a title"):
        assert f"<!-- {text} -->" in drawn
    assert "batch 2" not in drawn
    assert measured_against_predicted(rows[-1:], tmp_path / "none", ["fast"]) == []
