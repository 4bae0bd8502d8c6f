"""The container registry's door: the pull side of OCI distribution 1.1, below `/v2/`."""
