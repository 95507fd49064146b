"""What `uwm bench` measures of ingestion."""
