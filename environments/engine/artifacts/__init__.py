"""Artifacts made from a lock's packages: archives, file systems, installers and bundles."""
