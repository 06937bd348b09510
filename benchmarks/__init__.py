"""Speed, as ratios taken in one run: nothing here fails for being slow."""
