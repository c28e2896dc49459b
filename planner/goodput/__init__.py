"""What a whole run takes: days, GPU-hours, money and energy, failures included."""
