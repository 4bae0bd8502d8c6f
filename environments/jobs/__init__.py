"""Work that one actor runs: long, leased and restartable."""
