"""``python -m motionmae report``: a run, or several beside each other, as one HTML file for people."""
