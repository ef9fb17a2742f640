"""Models behind one OpenAI-compatible address: workers, their router, who restarts them."""
