"""Write-once records of what came from what, and the way back to every raw file."""
