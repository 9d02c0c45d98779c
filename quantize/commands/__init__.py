"""One file per command of `vnnify`, and what they share; `quantize.cli` puts them together."""
