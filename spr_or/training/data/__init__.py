"""Images and labels on their way into training."""
