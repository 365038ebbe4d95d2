"""A check of layer skipping on a tiny random instance of one causal LM class, against an uncached
reference.
"""

import signal
from contextlib import contextmanager
from dataclasses import dataclass, replace

import tiny_configs
import torch
from tiny_configs import NUM_LAYERS, VOCAB_SIZE
from transformers import GenerationConfig
from uncached_reference import reference_logits

from ulskip_cli.core.answer import Ends, Request
from ulskip_cli.core.config_schema import DecodingConfig
from ulskip_cli.core.engines import engine_named
from ulskip_cli.core.errors import UsageError
from ulskip_cli.core.schedule import Schedule
from ulskip_cli.engines.base import Prompts, Views
from ulskip_cli.engines.decoder import Decoder
from ulskip_cli.engines.torch.static_cache import unsupported_by_loop
from ulskip_cli.inference import kv_cache, shallow_view
from ulskip_cli.inference.teacher_forcing import encode_prompt, predict_response

KEPT_SETS = ((0, 2, 3, 5), (0, 3, 5), (0, 5), (1, 3, 4))
PROMPT_LEN, STEPS = 9, 7
PADDING_CHANGES = "left padding changes answers"
NEAR = 2e-4  # largest difference that counts as rounding, in standard deviations of the logits
WORKS, REFUSED, NOT_BUILT, UNDECIDED = "works", "refused", "not built", "undecided"
WRONG, FAILS = "silently wrong", "fails"  # faults of ulskip; the committed page has none


@dataclass(frozen=True)
class Verdict:
    """The result of the check for one class.

    Attributes:
        name: the class.
        model_types: model types that use the class.
        outcome: one of the constants above.
        layers: the kinds of layers in the checked instance.
        engines: the engines that decode it.
        note: the reason of the outcome, or limitations.
    """

    name: str
    model_types: tuple[str, ...]
    outcome: str
    layers: str = ""
    engines: str = ""
    note: str = ""


class TooLong(Exception):
    """A check took more time than its budget."""


def judge(name, model_types, seconds=60):
    """Check one class of transformers, on a tiny instance of its first model type; return its
    `Verdict`, and never raise. `seconds` of CPU time are for making it, and as many for the check.
    """
    made = Verdict(name, tuple(model_types), NOT_BUILT)
    try:
        with _budget(seconds):
            model = tiny_configs.build(model_types[0])
            model(random_ids(1, 4))
    except TooLong:
        return replace(made, note=f"no tiny instance within {seconds} seconds")
    except Exception as error:
        if _encoder_decoder(model_types[0]):
            return replace(made, outcome=REFUSED, note="an encoder-decoder's decoder")
        return replace(made, note=_line(error))
    made = replace(made, layers=_kinds(model))
    try:
        with _budget(seconds):
            return _check(model, made)
    except TooLong:
        return replace(made, outcome=FAILS, note=f"not done within {seconds} seconds")
    except UsageError as error:
        return replace(made, outcome=REFUSED, note=str(error))
    except Exception as error:
        return replace(made, outcome=FAILS, note=_line(error))


def _check(model, made):
    """Check every kept set against the uncached reference, then the engines against each other,
    then padding; return the verdict `made`, completed. Raises UsageError if ulskip refuses the
    model.
    """
    shallow_view.num_layers(model)  # raises UsageError, as the next decoder does
    ids = random_ids(1, PROMPT_LEN)
    notes, engines = [], ["transformers"]
    decoder_for(model, KEPT_SETS[0])
    if _own_generate_differs(model, ids):
        return replace(
            made,
            outcome=UNDECIDED,
            note="transformers' own generate gives other tokens than the model's forward pass",
        )
    kept_sets = [*KEPT_SETS, *_kept_sets_of_one_kind(model)]
    for kept in kept_sets:
        try:
            decoder = decoder_for(model, kept)
        except UsageError as error:
            if "only attention layers count positions" not in str(error):
                raise
            notes = ["kept layers without attention among them are refused"]
            continue
        wrong = _differs(model, decoder, kept, ids)
        if wrong:
            return replace(made, outcome=WRONG, note=f"{list(kept)}: {wrong}")
    decoder = decoder_for(model, KEPT_SETS[0])
    reason = unsupported_by_loop(decoder.views.model)
    if reason is None:
        wrong = _engines_differ(decoder)
        if wrong:
            return replace(made, outcome=WRONG, note=wrong)
        engines.append("fast")
    else:
        notes.append(f"not fast: {reason}")
    padding = _padding(model, decoder)
    if padding == PADDING_CHANGES:
        return replace(made, outcome=WRONG, note=padding)
    notes += [padding] if padding else []
    return replace(made, outcome=WORKS, engines=", ".join(engines), note="; ".join(notes))


def _differs(model, decoder, kept, ids):
    """Compare tokens and logits under a schedule with the reference; describe the first difference,
    or return None if they agree.
    """
    ones = torch.ones_like(ids)
    (tokens,) = _generated(decoder, "transformers", ids, ones)
    response = torch.tensor([tokens])
    inputs = torch.cat([ids, response], 1)[:, :-1]
    # [1, STEPS, vocab_size], from the last prompt position, which predicts the first new token
    expected = reference_logits(model, inputs, PROMPT_LEN, kept)[:, PROMPT_LEN - 1 :]
    full = reference_logits(model, inputs, PROMPT_LEN, range(NUM_LAYERS))[:, PROMPT_LEN - 1 :]
    scale = expected.std()
    if float((expected[:, 1:] - full[:, 1:]).abs().max() / scale) < 100 * NEAR:
        return "skipping does not change the logits, so the check proves nothing"
    best = expected.topk(2).values[0]
    clear = (best[:, 0] - best[:, 1]) / scale > NEAR  # False where rounding decides the token
    if not torch.equal(expected.argmax(-1)[0][clear], response[0][clear]):
        return "other tokens than the uncached reference"
    with torch.no_grad():
        prompt = encode_prompt(decoder.views.prompt_model, ids, ones)
        logits = predict_response(decoder.views.stages, prompt, response, torch.ones_like(response))
    error = float((logits - expected).abs().max() / scale)
    # Single steps of a recurrent state are rounded differently from a scan over the sequence.
    limit = NEAR * (25 if kv_cache.is_recurrent(kv_cache.new_cache(model)) else 1)
    return f"teacher-forced logits are off by {error:.2g}" if error > limit else None


def _own_generate_differs(model, ids):
    """Return True if generate of the full model differs from its forward pass, so that there is no
    reference.
    """
    plain = GenerationConfig(max_new_tokens=STEPS, do_sample=False, pad_token_id=0, use_cache=True)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain
    )
    logits = reference_logits(model, out[:, :-1], PROMPT_LEN, range(NUM_LAYERS))[
        0, PROMPT_LEN - 1 :
    ]
    best = logits.topk(2).values
    clear = (best[:, 0] - best[:, 1]) / logits.std() > NEAR  # as in `_differs`
    return not torch.equal(logits.argmax(-1)[clear], out[0, PROMPT_LEN:][clear])


def _kept_sets_of_one_kind(model):
    """Make kept sets of the layers of one kind each, for a model with several kinds. The class of a
    layer's cache is its kind.
    """
    kind_of = [type(layer).__name__ for layer in kv_cache.new_cache(model).layers]
    sets = [
        tuple(layer for layer in range(len(kind_of)) if kind_of[layer] == kind)
        for kind in sorted(set(kind_of))
    ]
    return [kept for kept in sets if 0 < len(kept) < NUM_LAYERS and kept not in KEPT_SETS]


def _engines_differ(decoder):
    """Compare the torch engine with transformers' generate on one batch; describe the difference,
    or return None if they agree.
    """
    ids = random_ids(3, PROMPT_LEN, seed=1)
    ones = torch.ones_like(ids)
    tokens = [_generated(decoder, engine, ids, ones) for engine in ("transformers", "torch")]
    num_equal = sum(a == b for a, b in zip(*tokens, strict=True))
    if num_equal >= 2:  # one may be a near tie
        return None
    return f"{3 - num_equal} of 3 answers of the torch engine differ from those of generate"


def _padding(model, decoder):
    """Return a note if left padding changes answers, which is a fault of ulskip unless it does so
    for the full model too, or if the model refuses it; None if it works.
    """
    full = decoder_for(model, tuple(range(NUM_LAYERS)))

    def changed(decoder, seed=2):
        """True if a prompt with 4 tokens of padding gets another answer than without."""
        ids = random_ids(2, PROMPT_LEN, seed=seed)
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        together = _generated(decoder, "transformers", ids * mask, mask)[0]
        (alone,) = _generated(decoder, "transformers", ids[:1, 4:], mask[:1, 4:])
        return together != alone

    try:
        if not changed(decoder):
            return None
        # Five prompts: rounding of the full model may not show in one of them.
        return (
            f"{PADDING_CHANGES}, of the full model too"
            if any(changed(full, seed) for seed in range(2, 7))
            else PADDING_CHANGES
        )
    except Exception as error:
        return f"no left padding: {_line(error)}"


def decoder_for(model, kept):
    """Make a decoder that uses the kept layers."""
    return Decoder(Views.of(model, Schedule.from_layers(NUM_LAYERS, kept)))


def _generated(decoder, engine, ids, mask):
    """Return the greedy tokens of an engine."""
    ends = Ends.of(decoder.views.model)
    request = Request(DecodingConfig(name="g"), STEPS, ends=ends)
    decoder = Decoder(decoder.views, engine_named(engine))
    return decoder.generate(Prompts(ids, mask), request).token_ids


def random_ids(batch, length, seed=0):
    """Draw random token ids, [batch, length]."""
    return torch.randint(
        2, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def _kinds(model):
    """Name the kinds of a model's layers from its cache and config."""
    config = model.config.get_text_config(decoder=True)
    try:
        kinds = {type(layer).__name__ for layer in kv_cache.new_cache(model).layers}
    except Exception:
        kinds = set()
    words = {
        "DynamicLayer": "attention",
        "DynamicSlidingWindowLayer": "sliding window",
        "LinearAttentionLayer": "recurrent",
        "LinearAttentionAndFullAttentionLayer": "attention beside recurrent",
        "DummyLayer": "no cache",
        "LinearAttentionAndSlidingWindowAttentionLayer": "sliding window beside recurrent",
        "DynamicIndexedLayer": "indexed attention",
        "DeepseekV4CSACache": "compressed attention",
        "DeepseekV4HCACache": "compressed attention",
    }
    found = sorted({words.get(kind, kind) for kind in kinds})
    experts = any(
        getattr(config, key, None)
        for key in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    )
    return ", ".join([*found, *(["experts"] if experts else [])])


def _encoder_decoder(model_type):
    return bool(getattr(tiny_configs.CONFIG_MAPPING[model_type], "is_encoder_decoder", False))


def _line(error):
    """Return an error as one line: its first, or its last if the first only introduces the rest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0] if not lines[0].endswith(':') else lines[-1]}"[:160]


@contextmanager
def _budget(seconds):
    """Raise TooLong in the block after so many seconds of CPU time of this process."""

    def stop(*_):
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
