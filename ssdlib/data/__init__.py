"""Images and annotations: read, checked, drawn, augmented and loaded. Nothing here knows the model."""
