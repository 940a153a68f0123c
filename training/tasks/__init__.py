"""What can be learned: a file for each task, and the registry that names them."""
