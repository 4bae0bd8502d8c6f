"""Makes files of a lock's packages: archives, file systems, installers, image layers."""
