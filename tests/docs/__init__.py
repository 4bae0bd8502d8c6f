"""The documentation: it builds, its commands exist, and its tours run."""
