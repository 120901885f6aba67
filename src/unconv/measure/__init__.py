"""Measures of a layer: how sparse it is, how alike its filters are, how nearly it keeps norms."""
