"""Learning: data loading, networks, training, evaluation and the report."""
