"""The work of the flows and commands as plain functions; imports no prefect."""
