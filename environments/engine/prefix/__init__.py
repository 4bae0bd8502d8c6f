"""Prefixes: linking, compiled files, sizes and smoke tests."""
