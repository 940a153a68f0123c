"""nopad in other people's frameworks: one file each, which imports that framework and no other (docs/adapters.md)."""
