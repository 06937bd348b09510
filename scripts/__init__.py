"""Helpers of the Makefile and the tests; standard library only."""
