"""The store: immutable Zarr parts, their shards, and reading from them."""
