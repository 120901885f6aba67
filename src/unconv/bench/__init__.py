"""Floors and peers: what the parts cost, beside bare torch calls and beside other libraries on the same work."""
