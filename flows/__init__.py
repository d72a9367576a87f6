"""Prefect flows and the command line: graphs that say what happens in which order."""
