"""Container images: layers, base images, loading, and access to other registries."""
