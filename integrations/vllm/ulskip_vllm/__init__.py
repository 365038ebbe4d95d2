"""Serve a pair of ulskip with vLLM: a prefill server runs all layers, a decode server the kept layers.

`ulskip-vllm prefill DIR`, `ulskip-vllm decode DIR` and `ulskip-vllm proxy` start the three processes. Start reading in
`connector.py`.
"""

CONNECTOR = "KeptLayersConnector"
CONNECTOR_MODULE = "ulskip_vllm.connector"
LOGITS_PROCESSOR = "ulskip_vllm.first_token:FirstToken"
TESTED_VLLM = ("0.32",)  # releases of vLLM that the tests ran with
