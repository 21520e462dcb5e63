"""One run: what is known, executed, remembered."""
