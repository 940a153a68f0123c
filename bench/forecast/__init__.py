"""Expected latencies on GPUs that were not measured."""
