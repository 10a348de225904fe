"""The resolver port, its dnspython implementation and its cache."""
