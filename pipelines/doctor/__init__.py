"""The doctor: says all that is wrong with a source or a dataset."""
