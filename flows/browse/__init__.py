"""A dataset version in the browser: its episodes with filters, videos, curves and provenance."""
