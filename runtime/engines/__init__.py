"""Engines, which compute logits from a packed batch. `base` holds the contract and the registry."""
