"""ViT encoder and decoders, MotionMAE, masks, targets, classifier. Does not import motionmae.data or training."""
