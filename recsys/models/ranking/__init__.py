"""From histories to ranked items."""
