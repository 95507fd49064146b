"""Lineage made visible: drawings, pages for the Prefect UI, text, JSON, Graphviz and one HTML page.

All of it shows the same two things: a `LineageGraph`, and the sections of details about each node.
"""
