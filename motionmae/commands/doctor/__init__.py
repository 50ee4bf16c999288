"""Commands `motionmae doctor data` and `motionmae doctor gpu`."""
