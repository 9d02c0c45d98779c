"""One file per command of `vnnify`, and what they share; `app` puts them together."""
