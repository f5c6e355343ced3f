"""Video and images in: decoding, frame sampling, frame sources and the processor."""
