"""Pure rules: no I/O, no clock, no event loop. Same input, same output."""
