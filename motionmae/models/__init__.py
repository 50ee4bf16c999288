"""The models: ViT encoder and decoders, MotionMAE, masks, targets, classifier. No import of data or training."""
