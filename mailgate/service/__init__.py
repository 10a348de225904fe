"""The program: settings to object graph, start, stop, log."""
