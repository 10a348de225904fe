"""Outbound decisions."""
