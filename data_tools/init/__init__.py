"""`motionmae init`: look at a folder of videos, and write configs that fit the videos and this machine."""
