"""condastore: conda environments that are flexible, reproducible and governed."""

__version__ = "0.1.0"
