"""The model card of a checkpoint: what it was made from, how, at what cost, how good it is."""
