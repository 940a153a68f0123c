"""Recipes: the other commands one after the other, each run only where something it depends on has changed."""
