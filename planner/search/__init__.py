"""From every legal layout to the best plan."""
