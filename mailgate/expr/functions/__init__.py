"""What expressions can call; functions that look outward take a port."""
