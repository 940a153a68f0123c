"""One scheduler for all callers of a model: threads and coroutines share micro-batches. Knows no model."""
