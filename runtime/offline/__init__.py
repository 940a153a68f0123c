"""Answering files of texts, resumably."""
