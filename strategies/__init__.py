"""What to do with tokens."""
