"""The noise schedule, the mode table and the one sampling loop."""
