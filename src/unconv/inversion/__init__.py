"""Images from the features of any layer of a network."""
