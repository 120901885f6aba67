"""How much of the input is still in a layer of a CNN, and what does it look like?"""
