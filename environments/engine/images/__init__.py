"""Makes the layers of container images, and speaks to other registries."""
