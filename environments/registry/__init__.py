"""Container registry: the pull API of OCI distribution 1.1, below `/v2/`."""
