"""The only Prefect code: flows of a few lines, the command line, and lineage as pages."""
