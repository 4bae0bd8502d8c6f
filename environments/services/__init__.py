"""Rows and files together: short functions for requests and workers, without access checks."""
