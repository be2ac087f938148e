"""What several methods use: rows of weights, gates, feature maps, who writes and reads a channel."""
