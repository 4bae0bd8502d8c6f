"""Wheels beside conda packages: resolution, builds, conversion and installation."""
