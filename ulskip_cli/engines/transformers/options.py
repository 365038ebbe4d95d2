"""The options of transformers' `generate` in a decoding configuration."""

from ulskip_cli.core.config_schema import AUTO, DecodingConfig
from ulskip_cli.core.errors import UsageError, reason, unknown
from ulskip_cli.core.files import Table

# Keys of decoding that transformers has too.
SHARED = ("do_sample", "num_beams", "no_repeat_ngram_size", "repetition_penalty", "max_new_tokens")
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
    "stop_strings",
}


def check_generate_kwargs(decoding: DecodingConfig) -> None:
    """Raise UsageError for unknown or unsupported options in `decoding.generate_kwargs`."""
    if not decoding.generate_kwargs:
        return
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    refused = REFUSED | generate_settings(DecodingConfig()).keys()
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
        GenerationConfig(**generate_settings(decoding)).validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"decoding.generate_kwargs is refused by transformers ({reason(error)}); correct the"
            " option"
        ) from None


def generate_settings(decoding: DecodingConfig) -> Table:
    """Convert a decoding configuration to options of `generate`; the options override the
    checkpoint's own defaults.
    """
    # Greedy decoding ignores these three; transformers' defaults cause no warning.
    sampling: Table = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if decoding.do_sample:
        sampling = {key: getattr(decoding, key) for key in sampling}
    return {
        **sampling,
        **{key: getattr(decoding, key) for key in SHARED},
        "prompt_lookup_num_tokens": (
            LOOKED_UP if decoding.draft_tokens == AUTO else decoding.draft_tokens or None
        ),
        **(decoding.generate_kwargs or {}),
    }
