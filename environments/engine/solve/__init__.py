"""Solving: specification to lock, in confined processes."""
