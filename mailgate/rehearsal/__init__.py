"""Trying a change first: the engine of live mail, driven without sockets by a table of answers."""
