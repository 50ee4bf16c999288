"""Reading clips from an FFCV file (``.beton``). FFCV is an optional dependency."""
