"""Images from features: stage after stage, or the whole network at once."""
