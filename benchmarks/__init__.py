"""Measure speed as ratios within one run; nothing here fails for being slow."""
