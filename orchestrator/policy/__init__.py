"""Where and when to run: pure functions of what is known, used by every backend alike."""
