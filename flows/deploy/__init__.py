"""What a site runs where and when, brought to a Prefect server."""
