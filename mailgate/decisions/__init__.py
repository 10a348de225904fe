"""Each decision, kept on disk and told to an operator."""
