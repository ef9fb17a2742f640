"""What happened to a run: facts, how they are written and read, and what follows from them."""
