"""Talk to a model behind any server of the OpenAI API, in a terminal or through a pipe."""
