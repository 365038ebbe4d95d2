"""The check of the options of `vllm serve` before vLLM starts. `settings.py` checks vLLM's whole
configuration again.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ulskip_vllm.pair_export import SetupError

_LONG_NAMES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dcp": "--decode-context-parallel-size",
    "-pcp": "--prefill-context-parallel-size",
    "-sc": "--speculative-config",
}
_ONLY_ONE = (
    "--pipeline-parallel-size",
    "--decode-context-parallel-size",
    "--prefill-context-parallel-size",
)
_REFUSED = (
    "--model",
    "--kv-transfer-config",
    "--kv-offloading-size",
    "--speculative-config",
    "--spec-method",
    "--spec-model",
    "--enable-lora",
)
_REFUSED_BY_ROLE = {
    "prefill": (),
    "decode": ("--enable-prefix-caching", "--async-scheduling"),
    "serve": ("--enable-prefix-caching", "--hf-overrides", "--no-enforce-eager", "--enable-dbo"),
}


def checked_options(role: str, arguments: Sequence[str]) -> dict[str, str]:
    """Return the options by their long names, with values; raise SetupError if a role does not
    support one of them.
    """
    options = {}
    for argument, following in pairwise([*arguments, ""]):
        if argument.startswith("-"):
            given, equals, value = argument.partition("=")
            # VLLM accepts --an_option, and --an-option.key of a JSON object.
            name = given.replace("_", "-").split(".")[0]
            options[_LONG_NAMES.get(name, name)] = (
                value if equals or following.startswith("-") else following
            )
    for name in (*_REFUSED, *_REFUSED_BY_ROLE[role]):
        if name in options:
            raise SetupError(f"`ulskip-vllm {role}` does not support {name}; leave it out")
    for name in _ONLY_ONE:
        if options.get(name, "1") != "1":
            raise SetupError(
                f"`ulskip-vllm {role}` does not support {name} above 1, got {options[name]}; leave"
                " it out"
            )
    return options


def tensor_parallel_size(options: Mapping[str, str]) -> int:
    """Return the tensor-parallel size that options set; raise SetupError if it is not a positive
    number.
    """
    size = options.get("--tensor-parallel-size", "1")
    if not size.isdecimal() or size == "0":
        raise SetupError(f"expected a number after --tensor-parallel-size, got {size!r}")
    return int(size)
