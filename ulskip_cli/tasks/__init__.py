"""What is asked of a model: examples, the prompts made of them, and how answers are judged."""
