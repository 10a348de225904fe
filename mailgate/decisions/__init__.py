"""Each decision, kept on disk in a bounded ring and told to an operator."""
