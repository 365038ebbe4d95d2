"""Training with layer skipping: transformers' Trainer with a loss that matches decoding. The prompt
runs through the layers of `prompt_layers` and the response through the kept layers. Start with
`training_run.run_training`, which shows the whole flow; `two_pass_loss` implements the method.
`preflight` imports no torch.
"""
