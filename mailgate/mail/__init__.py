"""The nouns of mail as frozen values: no I/O, no Twisted, no decisions."""
