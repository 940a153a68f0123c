"""Plots and units for people, as text. Knows nothing of the data that it draws."""
