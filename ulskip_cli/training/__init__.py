"""Training with skipping: transformers' Trainer with a loss that sees what decoding will see."""
