"""Lineage made visible: drawings, pages for the Prefect UI, text and JSON.

All of it shows the same two things: a `LineageGraph`, and the sections of details about each node.
"""
