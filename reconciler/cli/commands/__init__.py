"""One module for each command. Slow imports stay inside the functions that need them."""
