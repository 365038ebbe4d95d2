"""Where models come from: what their files say without loading them, and the loading itself."""
