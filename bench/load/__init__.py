"""Load on servers: requests at planned times, and what became of them."""
