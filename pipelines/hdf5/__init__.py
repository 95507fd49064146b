"""HDF5 files of strangers: what they hold, read in a child process with bounds on everything."""
