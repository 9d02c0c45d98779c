"""One file per command of `vnnify`; `quantize.cli` puts them together."""
