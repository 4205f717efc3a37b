"""What `python -m local` runs."""
