"""Directories and lists that decisions ask."""
