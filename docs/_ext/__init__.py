"""Sphinx extensions that generate reference pages from the code."""
