"""Clips from an FFCV file (``.beton``). FFCV is an optional package."""
