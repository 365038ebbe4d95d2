"""Training with layer skipping: transformers' Trainer with a loss that matches decoding.

The loss runs the prompt through all layers and the response through the kept layers. The package
writes a plain model folder with its `training.json`. `preflight` imports no torch. Start with
`run.run_training`, which shows the whole flow; `two_pass_loss` implements the method.
"""
