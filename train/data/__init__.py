"""Turn conversations into tokens with a loss mask, in a reproducible order."""
