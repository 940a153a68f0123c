"""Plots and units for people, as text. Knows nothing of what is drawn."""
