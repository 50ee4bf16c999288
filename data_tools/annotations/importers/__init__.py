"""Readers of the official annotation files, one module for one or several similar data sets."""
