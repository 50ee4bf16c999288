"""What a pre-trained model is worth and what it sees: recognition, DAVIS, reconstructions."""
