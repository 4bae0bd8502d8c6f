"""The machine: child processes, confinement, disk and memory."""
