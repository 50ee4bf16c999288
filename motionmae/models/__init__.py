"""The method: position tables, ViT, MotionMAE, masks, targets, classifier. Knows nothing of data or training."""
