import json

import pytest
from recipe import load_recipe

quality = load_recipe("engines/quality.py")
REFERENCES = ["a small dog runs in the park", "two men sit on a long bench", "the woman reads a thick book"]


@pytest.fixture
def rows(tmp_path):
    """Points of two formats, full and with skipping; skipping in q4_0 loses one answer more."""
    found = []
    for weights, kept, wrong in ((None, 4, 0), (None, 2, 1), ("q4_0", 4, 0), ("q4_0", 2, 2)):
        name = f"{weights}-{kept}"
        answers = ["x"] * wrong + REFERENCES[wrong:]
        (tmp_path / "generations").mkdir(exist_ok=True)
        (tmp_path / "generations" / f"{name}.jsonl").write_text(
            "".join(
                json.dumps({"source": "s", "reference": reference, "hypothesis": answer, "token_ids": [1]}) + "\n"
                for reference, answer in zip(REFERENCES, answers, strict=True)
            )
        )
        found.append({
            "id": name, "folder": str(tmp_path), "model": "m", "task": "cnn_dm", "engine": "e", "engine_weights": weights,
            "dtype": "bfloat16", "kept_layers": list(range(kept)), "num_layers": 4, "decode_loss": 3 + wrong / 10,
            "rouge1": 100 - 100 * wrong / 3,
        })  # fmt: skip
    return found


def test_the_loss_by_skipping_is_compared_between_formats(rows):
    plain, quantized = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in quality.lines(rows))
    assert plain[:8] == ["m", "e", "bfloat16", "2/4", "3.000", "3.100", "+0.100", "–"]
    assert plain[10] == plain[13] == "–" and plain[11].startswith("-33.33 (")
    assert quantized[2] == "q4_0" and quantized[6:8] == ["+0.200", "+0.100"]
    assert quantized[10] == "+0.00 (+0.00 to +0.00)"
    assert quantized[11].startswith("-66.67 (") and quantized[12].startswith("-66.67 (")
    assert quantized[13].startswith("-33.33 (")


def test_a_format_without_its_full_model_is_left_out(rows):
    assert len(quality.lines([rows[0], rows[1], rows[3]])) == 1


def test_a_sample_of_answers_has_its_own_bleu():
    score = quality.scorer("bleu", ["x", *REFERENCES[1:]], REFERENCES)
    assert score(quality.np.array([1, 2])) == pytest.approx(100)
    assert score(quality.np.array([0, 1])) < 60
