"""Benchmarks that anyone can run: `uwm bench loader|ingest|store`. Every claim is a ratio of one interleaved run."""
