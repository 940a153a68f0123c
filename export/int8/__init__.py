"""Graphs with int8 products."""
