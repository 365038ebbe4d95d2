import json

import pytest

SHOWN = {
    "model=random ratio=2 strategy.spacing=reference": [
        "  █·█·█·█·█·█·█·█·█·█·█·█·█·█··█   █ kept",
        "15 of 30 layers",
    ],
    "correction=patch": [
        *("kept: 0, 2, 4, 7, 9, 11\n", " 1.6", "12,288 during the prompt, 6,144 in decode"),
        "full, 5 gaps, 1,315,840 bytes",
    ],
    "strategy=early_exit strategy.min_exit=2 strategy.every=4": [
        *("6 of 12 layers", "after layers: 2, 6, 10\n", "of 6 layers: 2\n", "top two"),
        "warning: strategy=early_exit is not calibrated yet",
    ],
}


@pytest.mark.parametrize(("words", "texts"), SHOWN.items())
def test_a_plan_is_drawn_and_listed(ulskip, words, texts):
    code, out, _ = ulskip("plan", *words.split())
    assert (code, [text for text in texts if text not in out]) == (0, [])


def test_a_plan_shows_the_bytes_of_weights_and_of_their_copies(ulskip):
    whole = "model.dtype=float32"
    _, out, _ = ulskip("plan", "model=tiny", whole)
    assert "weights             44 MB in float32, and " in out
    plan = json.loads(ulskip("plan", "model=random", whole, "--json")[1])
    assert plan["weight_bytes"] == 4 * 134_515_008
