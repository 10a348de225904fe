"""mailgate: a mail gateway that says why, lets a change be tried first, and keeps what it accepted."""

__version__ = "0.1.0"
