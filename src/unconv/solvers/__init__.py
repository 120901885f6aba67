"""Iterative solvers for batches of problems."""
