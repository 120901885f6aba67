"""Inputs from codes: given a ``Code``, find the ``x`` that the conv block has received."""
