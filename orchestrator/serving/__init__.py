"""Models behind one OpenAI-compatible address: workers, the router before them, their keeper."""
