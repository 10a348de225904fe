"""The outward shell: Twisted transports as awaitable streams."""
