"""Sends the news of a run to where its user has asked for them, each once."""
