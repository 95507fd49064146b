"""From stores to batches: sample order, mixtures, reading, augmentation, normalization."""
