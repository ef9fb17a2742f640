"""What clouds say that they billed for a run: read by tag, sorted into our parts."""
