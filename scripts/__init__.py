"""Helpers of the Makefile and the tests, with the standard library only."""
