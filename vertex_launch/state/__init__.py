"""What one pass keeps for the next: the lock and the ledger."""
