"""Optimization profiles from the lengths of texts."""
