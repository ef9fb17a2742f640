"""Read, claim, save and load sharded checkpoints in an object store."""
