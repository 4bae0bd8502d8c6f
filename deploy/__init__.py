"""How condastore is shown and deployed."""
