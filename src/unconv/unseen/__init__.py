"""What a layer cannot see of an image, and what no attacker can do with its features."""
