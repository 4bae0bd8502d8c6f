"""Does condastore keep its budgets? Numbers are held against floors of the same run."""
