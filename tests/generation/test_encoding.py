import torch

from ulskip_cli.generation.encoding import encode_pairs, encode_prompts, pad_id, padded, response_tokens


def test_padding_sides():
    left, left_mask = padded([[1, 2, 3], [4]], 0, left=True)
    right, right_mask = padded([[1, 2, 3], [4]], 0, left=False)
    assert left.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert right.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert left_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right_mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_responses_end_with_the_end_token(tokenizer):
    assert response_tokens(tokenizer, " a")[-1] == tokenizer.eos_token_id
    batch = encode_pairs(tokenizer, [("the cat", " der"), ("a", " a b c")])
    ends = batch.response_mask.sum(1) - 1
    assert (batch.response_ids[torch.arange(2), ends] == tokenizer.eos_token_id).all()
    assert batch.prompt_ids.shape == batch.prompt_mask.shape


def test_prompts_decode_to_themselves(tokenizer):
    ids, mask = encode_prompts(tokenizer, ["Hund im Haus", "a"])
    assert tokenizer.decode(ids[1][mask[1].bool()]) == "a"
    assert pad_id(tokenizer) == tokenizer.pad_token_id
