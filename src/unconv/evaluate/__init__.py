"""Runs: a directory that survives a crash, and the main job that fills it."""
