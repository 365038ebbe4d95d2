import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe import load_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
prepare = load_recipe("tiny/prepare.py")
sentences = st.integers(0, 12).map(lambda i: f"s{i}")


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=30))
def test_pairs_that_share_a_sentence_are_one_component(pairs):
    ids = prepare.components(pairs)
    for (german, english), one in zip(pairs, ids, strict=True):
        for (other_german, other_english), other in zip(pairs, ids, strict=True):
            if german == other_german or english == other_english:
                assert one == other


def test_no_sentence_is_on_two_sides():
    rng = random.Random(0)
    pairs = [(f"Satz {rng.randrange(300)}", f"sentence {rng.randrange(300)}") for _ in range(150)]
    parts = prepare.split(pairs, {"test": 20, "validation": 5})
    assert len(parts["test"]) >= 20 and len(parts["validation"]) >= 5
    for side in (0, 1):
        seen = [{pair[side] for pair in part} for part in parts.values()]
        assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_near_duplicates_of_a_protected_sentence_are_found():
    protected = [("Der Zug nach Köln fällt heute aus.", "The train to Cologne is canceled today.")]
    pairs = [
        ("Der Zug nach Köln fällt heute aus!", "x"),
        ("Der Zug fährt.", "It goes."),
        ("y", "Is the train to Cologne canceled today?"),
    ]
    assert prepare.near_duplicates(pairs, protected) == {0, 2}


@pytest.mark.slow
@pytest.mark.long
def test_make_train_tiny_goes_the_whole_way_in_a_smoke_size(tmp_path):
    rng = random.Random(1)
    german, english = "eins zwei drei vier rot blau", "one two three four red blue"
    numbers = list(zip(german.split(), english.split(), strict=True))
    lines = []
    for i in range(500):
        chosen = [rng.choice(numbers) for _ in range(4)] + [(f"n{i}", f"n{i}")]
        lines.append(f"{' '.join(g for g, _ in chosen)}\t{' '.join(e for _, e in chosen)}\n")
    data = tmp_path / "pairs.tsv.gz"
    data.write_bytes(gzip.compress("".join(lines).encode()))
    # this environment, which make must not install again
    here = ["-o", f"{sys.prefix}/bin/ulskip", f"VENV={sys.prefix}"]
    command = ["make", *here, "train-tiny", "SMOKE=1", f"DATA={data}", f"WORK={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "assets" / "tiny"
    record = json.loads((out / "training.json").read_text())
    assert (record["steps"], record["based_on"]["steps"]) == (8, 8)
    assert record["ratios"] == [1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert [point["step"] for point in record["learning_curve"]] == [4, 8]
    assert record["data"]["train"] < record["data"]["pairs"] == 400
    assert str(tmp_path) not in json.dumps(record)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 12
    assert AutoTokenizer.from_pretrained(out)("eins zwei")["input_ids"]
