"""Iterative solvers for batches of problems: CG, CGLS, L-BFGS, Lanczos, and one bookkeeping of their ends."""
