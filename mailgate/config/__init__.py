"""TOML text to frozen settings; every error at once, with its place."""
