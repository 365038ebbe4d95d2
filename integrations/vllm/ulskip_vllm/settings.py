"""The check of a server's settings in vLLM's configuration."""

from pathlib import Path

import vllm
from vllm.config import VllmConfig

from ulskip_vllm import CONNECTOR, LOGITS_PROCESSOR, MODELS, PROMPT_LENGTHS
from ulskip_vllm.pair_export import (
    ROLES,
    PairExport,
    SetupError,
    check_tensor_parallel,
    check_version,
    read_config,
)


def checked_pair(config: VllmConfig, role: str) -> PairExport:
    """Return the pair that a server of a role serves; raise SetupError if a setting is invalid or
    not supported.
    """
    transfer, model = config.kv_transfer_config, config.model_config
    connector = PROMPT_LENGTHS if role == "serve" else CONNECTOR
    found = transfer and (transfer.kv_connector, transfer.kv_role)
    if transfer is None or found != (connector, ROLES[role]):
        raise SetupError(
            f"expected the KV connector {connector} and kv_role {ROLES[role]}, got {found}; start"
            f" the server with `ulskip-vllm {role}`"
        )
    extra = transfer.kv_connector_extra_config
    check_version(vllm.__version__, bool(extra.get("allow_untested_vllm")))
    required = {"export"} if role == "serve" else {"export", "handoff_dir"}
    if not required <= {key for key, value in extra.items() if value}:
        raise SetupError(
            f"{connector} requires {' and '.join(sorted(required))} in kv_connector_extra_config,"
            f" got {sorted(extra)}"
        )
    pair = PairExport.read(Path(extra["export"]))
    pair.check_model(role, Path(model.model))
    check_tensor_parallel(
        read_config(Path(model.model)), config.parallel_config.tensor_parallel_size
    )
    if role == "decode" and LOGITS_PROCESSOR not in map(str, model.logits_processors or ()):
        raise SetupError(
            f"a decode server requires --logits-processors {LOGITS_PROCESSOR}; start it with"
            " `ulskip-vllm decode`"
        )
    if role == "serve" and model.architecture not in MODELS.values():
        raise SetupError(
            f"expected the architecture {' or '.join(MODELS.values())}, got {model.architecture};"
            " start the server with `ulskip-vllm serve`, without --hf-overrides"
        )
    for setting, is_set in _not_supported(config, role).items():
        if is_set:
            raise SetupError(
                f"`ulskip-vllm {role}` does not support {setting}; start the server without it"
            )
    return pair


def _not_supported(config: VllmConfig, role: str) -> dict[str, bool]:
    """Return the settings that a role does not support, and whether they are set."""
    parallel, model = config.parallel_config, config.model_config
    settings = {
        "--pipeline-parallel-size above 1": parallel.pipeline_parallel_size > 1,
        "--decode-context-parallel-size above 1": parallel.decode_context_parallel_size > 1,
        "--prefill-context-parallel-size above 1": parallel.prefill_context_parallel_size > 1,
        "--speculative-config": config.speculative_config is not None,
        "--enable-lora": config.lora_config is not None,
        "Model Runner V2 (set VLLM_USE_V2_MODEL_RUNNER=0)": config.use_v2_model_runner,
        "a multimodal model": model.is_multimodal_model,
    }
    if role != "prefill":
        settings[
            "--enable-prefix-caching, because answers of the kept layers would be reused as prompts"
        ] = bool(config.cache_config.enable_prefix_caching)
    if role == "decode":
        assert config.kv_transfer_config is not None
        settings["--async-scheduling"] = bool(config.scheduler_config.async_scheduling)
        settings["--kv-load-failure-policy recompute"] = (
            config.kv_transfer_config.kv_load_failure_policy != "fail"
        )
    if role == "serve":
        settings["torch.compile and CUDA graphs (set --enforce-eager)"] = not model.enforce_eager
        settings["--enable-dbo"] = parallel.use_ubatching
        settings["--runner pooling"] = model.runner_type != "generate"
    return settings
