"""Looking after a store: verification, orphans, backup."""
