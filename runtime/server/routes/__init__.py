"""The routes, a file for each protocol."""
