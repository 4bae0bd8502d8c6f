"""Packages: download, validation, extraction and the shared cache."""
