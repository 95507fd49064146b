"""What bytes and numbers mean: episodes, the store, its versions and its lineage; and small tools that all share."""
