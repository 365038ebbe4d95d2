"""From prompts to tokens: decoding in two phases, and the loss of given responses under the same schedule."""
