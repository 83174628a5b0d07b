"""From a picture to its map."""
