import torch
from reference import NUM_LAYERS, random_ids

from ulskip_cli.generation import calibrate as calibration
from ulskip_cli.generation.calibrate import ROUNDS, WARM_UP, calibrate, counts
from ulskip_cli.generation.decode import Decoder
from ulskip_cli.schema import DecodingConfig


def test_few_layers_are_counted_once():
    assert counts(3) == [3, 2]
    assert counts(12) == [12, 8, 4, 2]


def test_the_line_comes_from_steps_taken_in_turns(llama, monkeypatch):
    timed = []
    generate = Decoder.generate

    def clocked(self, *args, **options):
        output = generate(self, *args, **options)
        timed.append(len(self.stages[0].kept))
        seconds = (calibration.NEW_TOKENS - 1) * (0.5 + 0.25 * len(self.stages[0].kept))
        return type(output)(**{**vars(output), "decode_seconds": seconds})

    monkeypatch.setattr(Decoder, "generate", clocked)
    ids, done = random_ids(2, 5), []
    fit = calibrate(llama, NUM_LAYERS, [(ids, torch.ones_like(ids))], DecodingConfig(name="g"), 0, done.append)
    assert (round(fit.fixed_seconds, 6), round(fit.layer_seconds, 6)) == (0.5, 0.25)
    assert done == list(range(1, WARM_UP + ROUNDS + 1))
    assert timed[:3] == [6, 4, 2]
    assert timed[3:6] == [4, 2, 6]
