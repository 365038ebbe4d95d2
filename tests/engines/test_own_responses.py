import json

import pytest
import torch
from reference import build_model, random_ids, reference_greedy

from ulskip_cli.core.config_schema import OwnResponses
from ulskip_cli.core.progress import ProgressCallback
from ulskip_cli.engines import own_responses
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.own_responses import generate_own_responses, greedy_request

LENGTH = 6
PROMPTS = [random_ids(1, 3 + i % 5, seed=i)[0].tolist() for i in range(10)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of 4, so that 10 prompts are several."""
    monkeypatch.setattr(own_responses, "BATCH_SIZE", 4)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "answers.jsonl"


def answers(file, samples=2, prompts=PROMPTS, seed=1, **changes):
    model = build_model("llama")
    model.generation_config.eos_token_id = changes.pop("eos", None)
    options = OwnResponses(samples=samples, **changes)
    request = greedy_request(model, 0, LENGTH, seed)
    return generate_own_responses(model, prompts, options, request, file, ProgressCallback())


def test_the_first_answer_is_the_models_greedy_one_and_the_others_are_sampled(file):
    found, model = answers(file, samples=3), build_model("llama")
    for prompt, rows in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        greedy = reference_greedy(model, ids, torch.ones_like(ids), range(6), LENGTH)
        assert rows[0] == greedy[0].tolist()
        assert len(rows) == 3 and all(len(row) == LENGTH for row in rows)
    assert [rows[1] for rows in found] != [rows[0] for rows in found]
    assert [rows[1] for rows in found] != [rows[2] for rows in found]


def test_beams_decode_the_first_answer_alone(file):
    found, greedy = (answers(file, num_beams=count, eos=7) for count in (3, 1))
    model, beams = build_model("llama"), {"num_beams": 3, "do_sample": False, "pad_token_id": 0}
    model.generation_config.update(max_new_tokens=LENGTH, eos_token_id=7, **beams)
    for prompt, rows in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids))
        assert rows[0] == expected[0, len(prompt) :].tolist()
    assert [rows[0] for rows in found] != [rows[0] for rows in greedy]
    assert [rows[1] for rows in found] == [rows[1] for rows in greedy]


@pytest.mark.parametrize("share", [0.0, 0.35, 0.77, 1.0])
def test_a_file_that_was_cut_is_completed_with_equal_answers(file, share, monkeypatch):
    found, whole = answers(file), file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    if share == 1:
        monkeypatch.setattr(Decoder, "generate", lambda *_, **__: pytest.fail("generated again"))
    assert answers(file) == found
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    assert {json.loads(line)["sample"] for line in lines} == {0, 1}


def test_answers_of_other_settings_are_added_to_the_file(file):
    found = answers(file)
    assert answers(file, seed=2) == answers(file.with_name("other.jsonl"), seed=2) != found
    assert answers(file) == found
