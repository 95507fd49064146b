"""Datasets for other people's tools."""
