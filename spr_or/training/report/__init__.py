"""What a run leaves behind: numbers, pictures and a page."""
