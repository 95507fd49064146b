"""Tables, plots and the report page, made from result files only."""
