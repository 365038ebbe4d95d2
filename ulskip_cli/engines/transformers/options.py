"""The options of transformers' `generate` in a decoding configuration."""

from ulskip_cli.core.config_schema import AUTO, DecodingConfig
from ulskip_cli.core.errors import UsageError, unknown
from ulskip_cli.core.options import Table

# Options that have a key of their own under `decoding`.
OWN_KEYS = {
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_beams",
    "no_repeat_ngram_size",
    "max_new_tokens",
    "repetition_penalty",
    "stop_strings",
    "prompt_lookup_num_tokens",
}
LOOKED_UP = 10  # tokens; transformers' own default
# Options that would give other token counts or other tokens than a row says. Transformers itself
# refuses other options that it does not support.
REFUSED = {
    "max_length",
    "min_length",
    "eos_token_id",
    "num_return_sequences",
    "token_healing",
    "use_cache",
    "cache_implementation",
    "guidance_scale",
    "assistant_early_exit",
    "use_mtp",
}


def check(decoding: DecodingConfig) -> None:
    """Raise UsageError for unknown or unsupported options in `decoding.generate_kwargs`."""
    if not decoding.generate_kwargs:
        return
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    refused = REFUSED | OWN_KEYS
    passed = {key for key in GenerationConfig().to_dict() if not key.startswith("_")} - refused
    for key in decoding.generate_kwargs:
        if key in refused:
            raise UsageError(
                f"decoding.generate_kwargs.{key} is not supported, because a key of decoding sets"
                " it, or it changes the token counts or the decoding method; remove that option"
            )
        if key not in passed:
            raise unknown("option of transformers' generate", key, sorted(passed))
    try:
        GenerationConfig(**settings(decoding)).validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        reason = next(
            (line for line in str(error).splitlines() if line.startswith("- ")),
            str(error).split("\n")[0],
        )
        raise UsageError(
            "decoding.generate_kwargs is refused by transformers"
            f" ({reason.removeprefix('- ')[:200]}); correct the option"
        ) from None


def settings(decoding: DecodingConfig) -> Table:
    """Convert a decoding configuration to options of `generate`; the options override the
    checkpoint's own defaults.
    """
    # Greedy decoding ignores these three; transformers' defaults cause no warning.
    sampling: Table = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if decoding.do_sample:
        sampling = {key: getattr(decoding, key) for key in sampling}
    return {
        **sampling,
        "do_sample": decoding.do_sample,
        "num_beams": decoding.num_beams,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
        "repetition_penalty": decoding.repetition_penalty,
        "max_new_tokens": decoding.max_new_tokens,
        "prompt_lookup_num_tokens": (
            LOOKED_UP if decoding.draft_tokens == AUTO else decoding.draft_tokens or None
        ),
        **(decoding.generate_kwargs or {}),
    }
