"""The Open Inference Protocol over gRPC: each call becomes a request of the HTTP routes, in this process."""
