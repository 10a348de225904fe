"""Factories and the inward shell."""
