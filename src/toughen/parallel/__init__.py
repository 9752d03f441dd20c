"""Several processes: the only package that knows ranks."""
