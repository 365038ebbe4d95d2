"""Serve a pair of ulskip with vLLM: prompts run through all layers, generated tokens through the
kept layers.

Two ways: `ulskip-vllm serve DIR` starts one server of the full model (start reading in
`kept_layers_model.py`); `ulskip-vllm prefill DIR`, `ulskip-vllm decode DIR` and `ulskip-vllm proxy`
start two servers and their proxy (`connector.py`).
"""

CONNECTOR = "KeptLayersConnector"
CONNECTOR_MODULE = "ulskip_vllm.connector"
LOGITS_PROCESSOR = "ulskip_vllm.first_token:FirstToken"
PROMPT_LENGTHS = "PromptLengthsConnector"
PROMPT_LENGTHS_MODULE = "ulskip_vllm.prompt_lengths"
MIDDLEWARE = "ulskip_vllm.request_check.RequestCheck"
MODELS = {  # classes in kept_layers_model.py, by the architecture of the checkpoint
    "LlamaForCausalLM": "KeptLayersLlamaForCausalLM",
    "MistralForCausalLM": "KeptLayersMistralForCausalLM",
    "Qwen2ForCausalLM": "KeptLayersQwen2ForCausalLM",
    "Qwen3ForCausalLM": "KeptLayersQwen3ForCausalLM",
}
TESTED_VLLM = ("0.32",)  # releases of vLLM that the tests ran with
