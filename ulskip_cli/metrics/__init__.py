"""How good the answers are: thin layers over the field's own scorers."""
