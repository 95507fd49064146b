"""Measuring trained policies against trivial baselines."""
