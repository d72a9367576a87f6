"""Runs that are killed, and what the next run makes of it: `python -m benchmarks.kills`."""
