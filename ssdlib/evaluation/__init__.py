"""How good a detector is: detections matched with ground truth, and what is counted from the matches."""
