"""Measuring: processes, turns, records."""
