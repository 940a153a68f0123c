"""Expected latencies on GPUs that are not at hand."""
