"""Messages of standard APIs, under names of our own."""
