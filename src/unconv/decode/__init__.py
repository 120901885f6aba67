"""Inputs from codes: given a ``Code``, find the ``x`` that the stage has seen."""
