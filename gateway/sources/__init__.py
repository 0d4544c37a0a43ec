"""Transforms in files: scripts and notebooks, what can be told of them without running them, and new ones.

Used by the command line only; nothing here runs a user's code.
"""
