from types import SimpleNamespace

import torch

from ulskip_cli.inference.engines.runtime import RuntimeEngine


class Room:
    """A loaded runtime with room for some sequences of a length."""

    def __init__(self, batch_size, num_tokens):
        self.batch_size, self.num_tokens = batch_size, num_tokens

    def fits(self, batch_size, num_tokens):
        return batch_size <= self.batch_size and num_tokens <= self.num_tokens


def request(batch_size, prompt_len, length=4):
    decoding = SimpleNamespace(max_new_tokens=8)
    return SimpleNamespace(input_ids=torch.zeros(batch_size, prompt_len), length=length, decoding=decoding)


def test_only_a_load_takes_time_so_that_timed_pairs_run_once():
    engine = RuntimeEngine("llama_cpp", [], Room)
    seconds = [engine.prepare(request(*shape)) for shape in ((2, 10), (2, 10), (1, 5), (4, 10), (4, 10))]
    assert [spent > 0 for spent in seconds] == [True, False, False, True, False]
    assert seconds[1] == 0
