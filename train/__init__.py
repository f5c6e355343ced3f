"""Training: synthetic video, and the small training run behind the demo."""
