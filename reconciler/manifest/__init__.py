"""The desired file, env files and settings file: YAML to records, errors with FILE:LINE:COL."""
