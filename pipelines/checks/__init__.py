"""Checks of what a source brings: damage, doubtful content, duplicates, and the filters made of them."""
