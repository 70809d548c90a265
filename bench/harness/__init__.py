"""What the scenarios share: programs built, processes talked to, rows to report."""
