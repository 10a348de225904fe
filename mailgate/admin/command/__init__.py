"""The commands of `mailgate`, a file for each group."""
