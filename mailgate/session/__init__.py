"""Inbound decisions."""
